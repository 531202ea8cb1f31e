package syncd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"saru/lib/config"
	"saru/lib/program"
)

// DefaultConfigFile is read where it is present, unless --config names another.
const DefaultConfigFile = "/etc/saru/syncd.conf"

// Options are syncd's options, checked each by itself and against each other.
// Whether files, interfaces and the kernel fit is looked at later.
type Options struct {
	program.Common

	Tap string
	// TapAddress is the local end of the tap, an IPv4 address; the other end
	// has the address that follows.
	TapAddress     netip.Addr
	Sysctl         string // SysctlApply, SysctlCheck or SysctlOff
	Auth           string // AuthEnforce, AuthPermissive or AuthReceiveOnly
	SyncID         uint8
	Mirror         string // MirrorAll or MirrorTemplates
	MirrorServices []ServiceFilter
	KernelEntries  string // KernelEntriesAll or KernelEntriesNext
	// Join is where this director teaches; invalid: on an address of its own,
	// port 8848. JoinOff: it does not.
	Join    netip.AddrPort
	JoinOff bool
	// Backlog is how many bytes of the own stream are kept for repair.
	Backlog int
	// AuditInterval is the mean time between audits with peers, and with the
	// kernel; 0: there are only those that a loss asks for.
	AuditInterval time.Duration
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

	joinOff = "none"
)

// Limits of --backlog and --audit_interval.
const (
	// minBacklog holds some 700 full datagrams; less would not outlast a hiccup.
	minBacklog = 1 << 20
	maxBacklog = 1 << 30

	minAuditInterval = time.Second
	maxAuditInterval = time.Hour
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
		Common:        program.DefaultCommon("syncd", 8848),
		Tap:           "syncd0",
		TapAddress:    netip.AddrFrom4([4]byte{169, 254, 81, 1}),
		Sysctl:        SysctlApply,
		Auth:          AuthEnforce,
		SyncID:        1,
		Mirror:        MirrorAll,
		KernelEntries: KernelEntriesAll,
		Backlog:       16 << 20,
		AuditInterval: 10 * time.Second,
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
	o.AddFlags(fs, program.Texts{
		DefaultConfigFile: DefaultConfigFile,
		Interface:         "interface to mirror over",
		Insecure:          "anybody on the segment can alter connections",
		Cleanup:           "remove what a killed syncd left behind, exit",
	})
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
	v(config.Value(&o.KernelEntries, "WHERE", config.OneOf(KernelEntriesAll, KernelEntriesNext)), "kernel_entries",
		"kernels that hold an entry: those of all directors, or with saru of owner and next owner of its bucket (next)")
	v(config.Func("ADDR:PORT", "", o.setJoin), "join",
		"address of this director at which it teaches its table to others over TCP; IPv6 as [2001:db8::1]:8848; none: nowhere "+
			"(default: own address of the first --interface that is no VIP, port 8848)")
	v(config.Size(&o.Backlog, minBacklog, maxBacklog), "backlog",
		"how much of what was sent is kept to be sent again to who missed it")
	v(config.Value(&o.AuditInterval, "TIME", config.DurationOrOff(minAuditInterval, maxAuditInterval)), "audit_interval",
		"how often the table is compared with a peer's and with the kernel's, and made equal; 0: only after losses")
	return fs
}

// complete fills in defaults that the machine decides and checks what only
// several options together can tell.
func (o *Options) complete(fs *pflag.FlagSet) error {
	if err := o.Complete(fs); err != nil {
		return err
	}
	if o.Check && o.Cleanup {
		return config.Usagef("--check and --cleanup exclude each other")
	}
	if zone := o.Join.Addr().Zone(); zone != "" && !o.Cleanup && !slices.Contains(o.Interfaces, zone) {
		return config.Usagef("--join %q: %s is no --interface", o.Join, zone)
	}
	if a := o.Join.Addr(); a.IsValid() && (a == o.TapAddress || a == o.TapAddress.Next()) {
		return config.Usagef("--join %q: is an address of the --tap, which no other director reaches", o.Join)
	}
	if o.Cleanup {
		return nil // needs to know what to remove, not where to mirror
	}
	if err := o.CheckInterfaces(); err != nil {
		return err
	}
	if slices.Contains(o.Interfaces, o.Tap) {
		return config.Usagef("--interface %q: is the name of the --tap", o.Tap)
	}
	return nil
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

func (o *Options) setJoin(s string) error {
	if s == joinOff {
		o.Join, o.JoinOff = netip.AddrPort{}, true
		return nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return errors.New("must be an address of this director and a port, such as 192.0.2.1:8848 or [2001:db8::1]:8848, or none")
	}
	addr := a.Addr().Unmap()
	switch {
	case addr.IsUnspecified():
		return errors.New("must be the one address that the other directors are told, none that stands for all")
	case addr.IsMulticast() || addr.Is4() && addr.As4()[0] >= 240: // reserved, with the broadcast address (RFC 6890)
		return errors.New("must be an address of this director, no multicast, broadcast or reserved one")
	case addr.IsLoopback() || addr.Is4() && addr.As4()[0] == 0:
		return errors.New("must be an address that the other directors reach")
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return errors.New("must say of a link-local address at which interface, such as [fe80::1%eth0]:8848")
	case addr.Zone() != "" && !addr.IsLinkLocalUnicast():
		return errors.New("must be without a zone, which link-local addresses have only")
	}
	o.Join, o.JoinOff = netip.AddrPortFrom(addr, a.Port()), false
	return nil
}
