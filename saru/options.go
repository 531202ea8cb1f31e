package saru

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"saru/lib/config"
	"saru/lib/flow"
	"saru/lib/program"
	"saru/proto/coord"
	"saru/saru/core"
)

// DefaultConfigFile is read where it is present, unless --config names another.
const DefaultConfigFile = "/etc/saru/saru.conf"

// Options are saru's options, checked each by itself and against each other.
// Whether files, interfaces and the kernel fit is looked at later.
type Options struct {
	program.Common

	// ID tells several farms of one director apart: each has a filter of its own.
	ID int
	// Virtuals are the addresses that are shared; VirtualAuto: those that IPVS has services for as well.
	Virtuals    []netip.Addr
	VirtualAuto bool
	// Sense is that of every address that Senses does not name.
	Sense  flow.Sense
	Senses map[netip.Addr]flow.Sense
	// Weight 0: this director owns nothing for as long as another one can.
	Weight uint16

	Keepalive, Warntime, Deadtime, Lease, Guard, StartDelay time.Duration

	PingNodes     []netip.Addr
	Partition     core.Partition
	SurvivorDelay time.Duration // core.Never: a minority stays closed
	Expect        int           // 0: unknown

	// Inside is the interface of LVS-NAT real servers; empty: there is none.
	Inside     string
	Masquerade []netip.Prefix
	MACMode    string
	MAC        string // as net.HardwareAddr writes it; empty: none
	// Syncd is the control socket of syncd; empty: there is no syncd.
	Syncd string

	// Close and Open change the filter and end.
	Close, Open bool
}

// Choices of options.
const (
	PartitionQuorum    = "quorum"
	PartitionAvailable = "available"

	MACExternal = "external"

	virtualAuto   = "auto"
	survivorNever = "never"
	syncdNone     = "none"
)

// futureMACModes are those of DESIGN 4.5, for which package ethernet is missing yet.
var futureMACModes = []string{"shared", "stealth", "multicast"}

// Limits of the timers. A heartbeat each 10 ms is what 64 directors can still hear of each other; more than a minute is no cluster.
const (
	minTimer = 10 * time.Millisecond
	maxTimer = time.Minute

	// minGuard is more than copies of one packet are apart on a segment (docs/SAFETY.md, A7).
	minGuard = time.Millisecond

	maxDelay = time.Hour
)

// maxExpect is the largest farm.
const maxExpect = coord.MaxMembers

// ParseOptions reads saru's command line (without the program's name) and its
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
		Common:        program.DefaultCommon("saru", 8850),
		ID:            1,
		Sense:         flow.Default.Sense,
		Weight:        100,
		Keepalive:     100 * time.Millisecond,
		Warntime:      250 * time.Millisecond,
		Deadtime:      500 * time.Millisecond,
		Lease:         300 * time.Millisecond,
		Guard:         20 * time.Millisecond,
		StartDelay:    30 * time.Second,
		SurvivorDelay: 5 * time.Second,
		MACMode:       MACExternal,
		Syncd:         "/run/saru/syncd.sock",
	}
}

// Flags returns saru's options with their defaults, for what must agree with
// them: man pages, shell completion, configuration files.
func Flags() *pflag.FlagSet {
	o := defaultOptions()
	return o.flags()
}

// Help returns the text of --help.
func Help() string {
	return `Usage: saru --interface IF --virtual ADDR [OPTION]...

Lets each packet to a virtual address through at exactly one of the directors
that share it, and gives a director's share to the others when it dies.

Options:
` + Flags().FlagUsagesWrapped(100) + `      --help                  this text

Names may be written with "-" for "_". The configuration file holds one option a
line, "name value", and "#" comments; the command line wins.
Exit status: 0 good, 1 refused or failed while running, 2 usage or environment.
See saru(8), saru.conf(5), saructl(8).
`
}

func (o *Options) flags() *pflag.FlagSet {
	fs := config.NewFlagSet("saru")
	v := fs.Var
	o.AddFlags(fs, program.Texts{
		DefaultConfigFile: DefaultConfigFile,
		Interface:         "interface that heartbeats go over",
		Insecure:          "anybody on the segment can take the virtual addresses away",
		Cleanup:           "remove what a killed saru left behind, but for the filter, which stays closed; exit",
	})
	config.Flag(fs, &o.Close, "close", "close the virtual addresses on this director, exit; for the boot, before the network comes up")
	config.Flag(fs, &o.Open, "open", "remove the filter, so that this director accepts every packet, exit")
	v(config.Value(&o.ID, "N", config.Between(1, 255)), "id",
		"number of this farm among those of this director, 1 to 255; each needs a --group and a --control of its own")
	v(&virtualList{o: o}, "virtual",
		"virtual address that the directors share; auto: every one that IPVS has services for; required, repeatable")
	v(newSenseList(o), "sense",
		"what decides which director a packet is for: some of src-addr, src-port, dst-addr, dst-port; ADDR=LIST for one virtual address; repeatable")
	v(config.Value(&o.Weight, "N", config.Between[uint16](0, 65535)), "weight",
		"share of this director beside those of others, 0 to 65535; 0: none as long as another one can")
	timer := func(p *time.Duration, name string, low, high time.Duration, usage string) {
		v(config.Value(p, "TIME", config.Duration(low, high)), name, usage)
	}
	timer(&o.Keepalive, "keepalive", minTimer, maxTimer, "time between two heartbeats")
	timer(&o.Warntime, "warntime", minTimer, maxTimer, "a director that is silent for that long is reported")
	timer(&o.Deadtime, "deadtime", minTimer, maxTimer, "a director that is silent for that long is dead")
	timer(&o.Lease, "lease", minTimer, maxTimer, "for how long a director holds its share without support of the others")
	timer(&o.Guard, "guard", minGuard, maxTimer, "time between the end of one director's share and the begin of another's")
	timer(&o.StartDelay, "start_delay", 0, maxDelay, "how long to wait for syncd and for others at the start")
	v(config.List(&o.PingNodes, "ADDR", parsePingNode), "ping_node",
		"node that every director should reach; who reaches fewer than others is drained; repeatable")
	v(config.Func("POLICY", "", o.setPartition), "partition",
		"of sides that do not hear each other, the majority goes on (quorum), or each does (available) (default: quorum from three directors on)")
	v(config.Func("TIME", "5s", o.setSurvivorDelay), "survivor_delay",
		"after which time a minority that reaches all ping nodes goes on; never: it stays closed")
	v(config.Value(&o.Expect, "N", config.Between(1, maxExpect)), "expect",
		"how many directors there are: at a cold start a majority of them must hear each other (default: unknown)")
	v(config.Value(&o.Inside, "IF", config.Interface), "inside", "interface of LVS-NAT real servers")
	v(config.List(&o.Masquerade, "NET", parseNetwork), "masquerade",
		"network inside whose servers may open connections, such as 10.0.0.0/24; repeatable")
	v(config.Value(&o.MACMode, "MODE", parseMACMode), "mac_mode",
		"how the directors come by one MAC address: external, that is by the operator's scripts")
	v(config.Value(&o.MAC, "MAC", parseMAC), "mac", "the shared MAC address: what reaches it by chance is forwarded once or not at all")
	v(config.Func("PATH", o.Syncd, o.setSyncd), "syncd", "control socket of syncd; none: there is no syncd")
	config.CommandLineOnly(fs, "close", "open")
	return fs
}

// complete fills in defaults that the machine decides and checks what only
// several options together can tell.
func (o *Options) complete(fs *pflag.FlagSet) error {
	if err := o.Complete(fs); err != nil {
		return err
	}
	var once []string
	for _, mode := range []struct {
		on   bool
		name string
	}{{o.Check, "--check"}, {o.Cleanup, "--cleanup"}, {o.Close, "--close"}, {o.Open, "--open"}} {
		if mode.on {
			once = append(once, mode.name)
		}
	}
	if len(once) > 1 {
		return config.Usagef("%s and %s exclude each other", once[0], once[1])
	}
	if o.Cleanup || o.Open {
		return nil // what is removed has a name, and that is enough
	}
	if len(o.Virtuals) == 0 && !o.VirtualAuto {
		return config.Usagef("--virtual: required, an address that the directors share, or auto for those that IPVS has services for")
	}
	if err := o.checkVirtuals(); err != nil {
		return err
	}
	if len(o.Masquerade) > 0 && o.Inside == "" {
		return config.Usagef("--masquerade %s: needs --inside, the interface of the real servers", o.Masquerade[0])
	}
	if o.Close {
		return nil // at boot, when there may be nothing but virtual addresses
	}
	if err := o.CheckInterfaces(); err != nil {
		return err
	}
	cfg := o.coreConfig()
	if err := cfg.Check(); err != nil {
		return config.Usagef("%w", err)
	}
	return nil
}

func (o *Options) checkVirtuals() error {
	if len(o.Virtuals) > coord.MaxVirtuals {
		return config.Usagef("--virtual: %d addresses, at most %d", len(o.Virtuals), coord.MaxVirtuals)
	}
	for i, a := range o.Virtuals {
		if slices.Contains(o.Virtuals[:i], a) {
			return config.Usagef("--virtual %q: given twice", a)
		}
		if slices.Contains(o.PingNodes, a) {
			return config.Usagef("--ping_node %q: is a --virtual, which this director answers itself", a)
		}
	}
	for i, a := range o.PingNodes {
		if slices.Contains(o.PingNodes[:i], a) {
			return config.Usagef("--ping_node %q: given twice", a)
		}
	}
	for i, n := range o.Masquerade {
		if slices.Contains(o.Masquerade[:i], n) {
			return config.Usagef("--masquerade %q: given twice", n)
		}
	}
	for a := range o.Senses {
		if !o.VirtualAuto && !slices.Contains(o.Virtuals, a) {
			return config.Usagef("--sense %q: %s is no --virtual", a.String()+"="+o.Senses[a].String(), a)
		}
	}
	return nil
}

// unicast reads an address that a host can have; link-local ones of IPv6 too.
func unicast(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	a = a.Unmap()
	switch {
	case err != nil || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
		return a, false
	case a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240): // "this network", and reserved with the broadcast address (RFC 6890)
		return a, false
	}
	return a, true
}

func parseVirtual(s string) (netip.Addr, error) {
	a, ok := unicast(s)
	if !ok || a.Is6() && a.IsLinkLocalUnicast() || a.Zone() != "" {
		return netip.Addr{}, errors.New("must be an address that the directors share, such as 192.0.2.1 or 2001:db8::1, or auto")
	}
	return a, nil
}

func parsePingNode(s string) (netip.Addr, error) {
	a, ok := unicast(s)
	if !ok {
		return netip.Addr{}, errors.New("must be the address of a node that answers pings, such as 192.0.2.254 or fe80::1%eth0")
	}
	if linkLocal := a.Is6() && a.IsLinkLocalUnicast(); linkLocal != (a.Zone() != "") {
		return netip.Addr{}, errors.New("must say of a link-local address, and of no other, at which interface, such as fe80::1%eth0")
	}
	return a, nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() || p.Addr().Zone() != "" || p.Addr().IsMulticast() {
		return p, errors.New("must be a network, such as 10.0.0.0/24 or 2001:db8:1::/64")
	}
	if p != p.Masked() {
		return p, fmt.Errorf("must be a network, no address in it: %s", p.Masked())
	}
	return p, nil
}

func parseMACMode(s string) (string, error) {
	if slices.Contains(futureMACModes, s) {
		return s, fmt.Errorf("is not in this release, which has %s only: the directors' shared MAC address is set up by scripts", MACExternal)
	}
	if s != MACExternal {
		return s, fmt.Errorf("must be %s", MACExternal)
	}
	return s, nil
}

func parseMAC(s string) (string, error) {
	a, err := net.ParseMAC(s)
	if err != nil || len(a) != 6 || a.String() == "00:00:00:00:00:00" || a.String() == "ff:ff:ff:ff:ff:ff" {
		return s, errors.New("must be a MAC address, such as 02:00:5e:00:01:01")
	}
	return a.String(), nil
}

func (o *Options) setPartition(s string) error {
	p, ok := map[string]core.Partition{PartitionQuorum: core.WithQuorum, PartitionAvailable: core.WithAvailable}[s]
	if !ok {
		return fmt.Errorf("must be %s or %s", PartitionQuorum, PartitionAvailable)
	}
	o.Partition = p
	return nil
}

func (o *Options) setSurvivorDelay(s string) error {
	if s == survivorNever {
		o.SurvivorDelay = core.Never
		return nil
	}
	d, err := config.Duration(0, maxDelay)(s)
	if err != nil {
		return fmt.Errorf("%w, or %s", err, survivorNever)
	}
	o.SurvivorDelay = d
	return nil
}

func (o *Options) setSyncd(s string) error {
	if s == syncdNone {
		o.Syncd = ""
		return nil
	}
	path, err := config.SocketPath(s)
	if err != nil {
		return fmt.Errorf("%w, or %s", err, syncdNone)
	}
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("must be the absolute path of a socket, or %s", syncdNone)
	}
	o.Syncd = path
	return nil
}
