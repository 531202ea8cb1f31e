package syncd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"saru/lib/config"
	"saru/lib/logging"
)

// DefaultConfigFile is read where it is present, unless --config names another.
const DefaultConfigFile = "/etc/saru/syncd.conf"

// Options are syncd's options, checked each by itself and against each other.
// Whether files, interfaces and the kernel fit is looked at later.
type Options struct {
	// ConfigFile is the value of --config, empty if it was not given.
	ConfigFile  string
	Debug       bool
	LogFacility string // as in logging.Options
	Node        string
	Interfaces  []string
	Group       netip.AddrPort
	// KeyFile is empty if Insecure is set.
	KeyFile  string
	Insecure bool
	Control  string
	Metrics  string // ADDR:PORT, empty for none
	Check    bool
	Cleanup  bool
	Tap      string
	// TapAddress is the local end of the tap, an IPv4 address; the other end
	// has the address that follows.
	TapAddress     netip.Addr
	Sysctl         string // SysctlApply, SysctlCheck or SysctlOff
	Auth           string // AuthEnforce, AuthPermissive or AuthReceiveOnly
	SyncID         uint8
	Mirror         string // MirrorAll or MirrorTemplates
	MirrorServices []ServiceFilter
	KernelEntries  string // KernelEntriesAll
}

// Choices of options.
const (
	SysctlApply = "apply"
	SysctlCheck = "check"
	SysctlOff   = "off"

	AuthEnforce     = "enforce"
	AuthPermissive  = "permissive"
	AuthReceiveOnly = "receive-only"

	MirrorAll       = "all"
	MirrorTemplates = "templates"

	KernelEntriesAll  = "all"
	KernelEntriesNext = "next"
)

// ServiceFilter names virtual services whose connections are mirrored.
type ServiceFilter struct {
	Protocol uint8 // IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
	// Address is the virtual address and port; port 0 stands for every port,
	// as in a persistent service of ipvsadm.
	Address netip.AddrPort
}

// String returns PROTO:ADDR:PORT as --mirror_service takes it.
func (f ServiceFilter) String() string {
	name := fmt.Sprint(f.Protocol)
	for known, number := range filterProtocols {
		if number == f.Protocol {
			name = known
		}
	}
	return name + ":" + f.Address.String()
}

// filterProtocols are the protocols that IPVS has virtual services for
// (ip_vs_proto.c), with their IPPROTO_* numbers.
var filterProtocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// ParseOptions reads syncd's command line (without the program's name) and its
// configuration file. Errors are of type *config.UsageError, or config.ErrHelp.
func ParseOptions(args []string) (Options, error) {
	o := defaultOptions()
	fs := o.flags()
	if err := config.Parse(fs, args, DefaultConfigFile); err != nil {
		return Options{}, err
	}
	if err := o.complete(fs); err != nil {
		return Options{}, err
	}
	return o, nil
}

func defaultOptions() Options {
	return Options{
		LogFacility:   "daemon",
		Group:         netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 81}), 8848),
		KeyFile:       "/etc/saru/keys",
		Control:       "/run/saru/syncd.sock",
		Tap:           "syncd0",
		TapAddress:    netip.AddrFrom4([4]byte{169, 254, 81, 1}),
		Sysctl:        SysctlApply,
		Auth:          AuthEnforce,
		SyncID:        1,
		Mirror:        MirrorAll,
		KernelEntries: KernelEntriesAll,
	}
}

// Flags returns syncd's options with their defaults, for what must agree with
// them: man pages, shell completion, configuration files.
func Flags() *pflag.FlagSet {
	o := defaultOptions()
	return o.flags()
}

// Help returns the text of --help.
func Help() string {
	return `Usage: syncd --interface IF [OPTION]...

Mirrors the connections of Linux IPVS between directors, so that each of them
can go on with the connections of any other.

Options:
` + Flags().FlagUsagesWrapped(100) + `      --help                         this text

Names may be written with "-" for "_". The configuration file holds one option a
line, "name value", and "#" comments; the command line wins.
Exit status: 0 good, 1 refused or failed while running, 2 usage or environment.
See syncd(8), syncd.conf(5), saructl(8).
`
}

func (o *Options) flags() *pflag.FlagSet {
	fs := config.NewFlagSet("syncd")
	v := fs.Var
	v(config.Value(&o.ConfigFile, "FILE", config.Path), config.ConfigOption,
		"configuration file (default "+DefaultConfigFile+" where present)")
	config.Flag(fs, &o.Debug, "debug", "log what is otherwise only counted")
	v(config.Value(&o.LogFacility, "NAME", parseFacility), "log_facility",
		"where to log: a facility of syslog, - for the terminal, or /FILE")
	v(config.Value(&o.Node, "NAME", parseNode), "node",
		"name of this director in the farm (default: the host name)")
	v(config.List(&o.Interfaces, "IF", config.Interface), "interface",
		"interface to mirror over; required, repeatable")
	v(config.Value(&o.Group, "ADDR:PORT", config.Group), "group",
		"multicast group of the farm; IPv6 as [ff02::81]:8848")
	v(config.Value(&o.KeyFile, "FILE", config.Path), "key_file",
		"keys that sign and verify messages, mode 0600; saructl genkey makes one")
	config.Flag(fs, &o.Insecure, "insecure", "run without keys: anybody on the segment can alter connections")
	v(config.Value(&o.Control, "PATH", config.SocketPath), "control", "control socket")
	v(config.Value(&o.Metrics, "ADDR:PORT", parseMetrics), "metrics",
		"serve Prometheus metrics there (default off)")
	config.Flag(fs, &o.Check, "check", "check configuration and kernel, print what is missing, exit")
	config.Flag(fs, &o.Cleanup, "cleanup", "remove what a killed syncd left behind, exit")
	v(config.Value(&o.Tap, "NAME", config.Interface), "tap", "name of the device between syncd and the kernel")
	v(config.Value(&o.TapAddress, "ADDR", parseTapAddress), "tap_address",
		"IPv4 address of the tap; its other end has the next one")
	v(config.Value(&o.Sysctl, "MODE", config.OneOf(SysctlApply, SysctlCheck, SysctlOff)), "sysctl",
		"set the IPVS sysctls that are needed (apply), refuse if they differ (check), do not look (off)")
	v(config.Value(&o.Auth, "MODE", config.OneOf(AuthEnforce, AuthPermissive, AuthReceiveOnly)), "auth",
		"take signed messages only (enforce), those of stock kernels too (permissive), or so and send unsigned (receive-only)")
	v(config.Value(&o.SyncID, "N", config.Between[uint8](1, 255)), "syncid", "sync id on the wire, 1 to 255")
	v(config.Value(&o.Mirror, "WHAT", config.OneOf(MirrorAll, MirrorTemplates)), "mirror",
		"mirror all connections, or persistence templates only")
	v(config.List(&o.MirrorServices, "PROTO:ADDR:PORT", parseService), "mirror_service",
		"mirror this virtual service; repeatable (default: every service)")
	v(config.Value(&o.KernelEntries, "WHERE", parseKernelEntries), "kernel_entries",
		"directors whose kernels hold an entry: all")
	config.CommandLineOnly(fs, config.ConfigOption, "check", "cleanup")
	return fs
}

// complete fills in defaults that the machine decides and checks what only
// several options together can tell.
func (o *Options) complete(fs *pflag.FlagSet) error {
	if o.Insecure {
		if fs.Changed("key_file") {
			return config.Usagef("--insecure and --key_file exclude each other: with keys every message is signed, without them none")
		}
		o.KeyFile = ""
	}
	if o.Check && o.Cleanup {
		return config.Usagef("--check and --cleanup exclude each other")
	}
	if !fs.Changed("node") {
		name, err := os.Hostname()
		if err != nil {
			return config.Usagef("--node: read the host name: %w", err)
		}
		if o.Node, err = parseNode(name); err != nil {
			return config.Usagef("--node: the host name %q does not do, give a name: %w", name, err)
		}
	}
	if o.Cleanup {
		return nil // needs to know what to remove, not where to mirror
	}
	if len(o.Interfaces) == 0 {
		return config.Usagef("--interface: required, the name of an interface that all directors share")
	}
	for i, name := range o.Interfaces {
		if slices.Contains(o.Interfaces[:i], name) {
			return config.Usagef("--interface %q: given twice", name)
		}
		if name == o.Tap {
			return config.Usagef("--interface %q: is the name of the --tap", name)
		}
	}
	return nil
}

func parseFacility(s string) (string, error) { return s, logging.CheckFacility(s) }

// maxNode is the longest label of a host name (RFC 1035, section 2.3.4).
const maxNode = 63

func parseNode(s string) (string, error) {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r))
	}
	if s == "" || len(s) > maxNode || strings.ContainsFunc(s, bad) || s[0] == '-' || s[0] == '.' {
		return "", fmt.Errorf("must be 1 to %d letters, digits, '.', '-' and '_', beginning with none of '.' and '-'", maxNode)
	}
	return s, nil
}

func parseMetrics(s string) (string, error) {
	address := s
	if strings.HasPrefix(s, ":") {
		address = "0.0.0.0" + s // as elsewhere in Go: every address
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil || a.Port() == 0 || a.Addr().IsMulticast() {
		return "", errors.New("must be an address of this machine with a port, such as 127.0.0.1:9848 or [::1]:9848")
	}
	return s, nil
}

func parseTapAddress(s string) (netip.Addr, error) {
	usable := func(a netip.Addr) bool {
		// 240.0.0.0/4 is reserved, 0.0.0.0/8 "this network" (RFC 6890).
		b := a.As4()
		return b[0] != 0 && b[0] < 240 && !a.IsMulticast() && !a.IsLoopback()
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() || !usable(a) || !usable(a.Next()) {
		return netip.Addr{}, errors.New("must be a unicast IPv4 address whose successor is one too, such as 169.254.81.1")
	}
	return a, nil
}

func parseService(s string) (ServiceFilter, error) {
	name, address, _ := strings.Cut(s, ":")
	protocol, ok := filterProtocols[strings.ToLower(name)]
	a, err := netip.ParseAddrPort(address)
	if !ok || err != nil {
		return ServiceFilter{}, errors.New("must be tcp, udp or sctp, an address and a port, such as tcp:192.0.2.1:80 or tcp:[2001:db8::1]:80")
	}
	addr := a.Addr().Unmap()
	if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
		return ServiceFilter{}, errors.New("must have the address of a virtual service")
	}
	return ServiceFilter{Protocol: protocol, Address: netip.AddrPortFrom(addr, a.Port())}, nil
}

func parseKernelEntries(s string) (string, error) {
	if s == KernelEntriesNext {
		return "", errors.New("needs saru, which syncd does not listen to yet: must be all")
	}
	if s != KernelEntriesAll {
		return "", errors.New("must be all")
	}
	return s, nil
}
