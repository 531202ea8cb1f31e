package saru

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"saru/lib/config"
	"saru/lib/flow"
	"saru/lib/program/programtest"
	"saru/saru/core"
)

// plain compares addresses, which have no exported fields.
var plain = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestParseOptions(t *testing.T) {
	addr := netip.MustParseAddr
	bySource := flow.SenseOf(flow.SrcAddr)
	// with returns the defaults with changes; the host name is not among them.
	with := func(change func(*Options)) Options {
		o := defaultOptions()
		o.Node = "d1"
		o.Interfaces = []string{"eth0"}
		o.Virtuals = []netip.Addr{addr("192.0.2.1")}
		if change != nil {
			change(&o)
		}
		return o
	}
	usual := []string{"--interface", "eth0", "--virtual", "192.0.2.1"}
	tests := []struct {
		name string
		file string
		args []string
		want Options
	}{
		{name: "defaults", args: usual, want: with(nil)},
		{
			name: "everything",
			args: strings.Fields(`--debug --log_facility local0 --interface eth0 --interface eth1.5 --group [ff02::81]:8851
				--key_file /k --control /c --metrics [::1]:9850 --check --id 2 --virtual 192.0.2.1 --virtual [] --virtual auto
				--sense src-addr --sense 2001:db8::1=dst-port,src-addr --weight 0 --keepalive 30ms --warntime 200ms --deadtime 250ms --lease 160ms
				--guard 10ms --start-delay 0 --ping_node 192.0.2.254 --ping_node fe80::1%eth0 --partition available --survivor_delay never --expect 3
				--inside eth2 --masquerade 10.0.0.0/24 --masquerade 2001:db8:1::/64 --mac_mode external --mac 02-00-5E-00-01-01 --syncd /s`),
			want: with(func(o *Options) {
				o.Debug, o.Check = true, true
				o.LogFacility = "local0"
				o.Interfaces = []string{"eth0", "eth1.5"}
				o.Group = netip.MustParseAddrPort("[ff02::81]:8851")
				o.KeyFile, o.Control, o.Metrics = "/k", "/c", "[::1]:9850"
				o.ID = 2
				o.Virtuals, o.VirtualAuto = []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}, true
				o.Sense, o.Senses = bySource, map[netip.Addr]flow.Sense{addr("2001:db8::1"): flow.SenseOf(flow.SrcAddr, flow.DstPort)}
				o.Weight = 0
				o.Keepalive, o.Warntime, o.Deadtime = 30*time.Millisecond, 200*time.Millisecond, 250*time.Millisecond
				o.Lease, o.Guard, o.StartDelay = 160*time.Millisecond, 10*time.Millisecond, 0
				o.PingNodes = []netip.Addr{addr("192.0.2.254"), addr("fe80::1%eth0")}
				o.Partition, o.SurvivorDelay, o.Expect = core.WithAvailable, core.Never, 3
				o.Inside, o.Masquerade = "eth2", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
				o.MAC, o.Syncd = "02:00:5e:00:01:01", "/s"
			}),
		},
		{
			// The bars of issue 4.
			name: "quick timers",
			args: append(usual, "--keepalive", "30ms", "--deadtime", "250ms", "--lease", "160ms"),
			want: with(func(o *Options) {
				o.Keepalive, o.Deadtime, o.Lease = 30*time.Millisecond, 250*time.Millisecond, 160*time.Millisecond
			}),
		},
		{
			name: "command line replaces the file's repeatables",
			file: "interface eth5\nvirtual auto\nvirtual 192.0.2.9\nsense src-addr\nsense 192.0.2.1=src-port\nweight 7\npartition quorum\n",
			args: append(usual, "--sense", "192.0.2.1=src-addr", "--weight", "65535"),
			want: with(func(o *Options) {
				o.Senses = map[netip.Addr]flow.Sense{addr("192.0.2.1"): bySource}
				o.Weight, o.Partition = 65535, core.WithQuorum
			}),
		},
		{
			name: "the file's senses stay",
			file: "sense src-addr\nsense 192.0.2.1=dst-addr\nsyncd none\n",
			args: usual,
			want: with(func(o *Options) {
				o.Sense, o.Senses, o.Syncd = bySource, map[netip.Addr]flow.Sense{addr("192.0.2.1"): flow.SenseOf(flow.DstAddr)}, ""
			}),
		},
		{
			name: "syncd after none",
			file: "syncd none\nsurvivor_delay never\ninsecure\n",
			args: append(usual, "--syncd", "/run/s", "--survivor_delay", "0"),
			want: with(func(o *Options) { o.Syncd, o.SurvivorDelay, o.Insecure, o.KeyFile = "/run/s", 0, true, "" }),
		},
		{
			name: "mapped addresses are unmapped",
			args: []string{"--interface", "eth0", "--virtual", "::ffff:192.0.2.1", "--sense", "::ffff:192.0.2.1=src-addr"},
			want: with(func(o *Options) { o.Senses = map[netip.Addr]flow.Sense{addr("192.0.2.1"): bySource} }),
		},
		{
			name: "auto alone, with a sense for an address that may be found",
			args: []string{"--interface", "eth0", "--virtual", "auto", "--sense", "192.0.2.7=src-addr"},
			want: with(func(o *Options) {
				o.Virtuals, o.VirtualAuto, o.Senses = nil, true, map[netip.Addr]flow.Sense{addr("192.0.2.7"): bySource}
			}),
		},
		{
			name: "closing needs no interface, and timers do not matter", args: []string{"--close", "--virtual", "192.0.2.1", "--lease", "1s"},
			want: with(func(o *Options) { o.Close, o.Interfaces, o.Lease = true, nil, time.Second }),
		},
		{name: "opening needs nothing", args: []string{"--open", "--id", "255"}, want: with(func(o *Options) { o.Open, o.ID, o.Interfaces, o.Virtuals = true, 255, nil, nil })},
		{name: "nor does cleaning up", args: []string{"--cleanup"}, want: with(func(o *Options) { o.Cleanup, o.Interfaces, o.Virtuals = true, nil, nil })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Always with a file: this machine's own must not matter.
			file := programtest.File(t, "saru.conf", "node d1\n"+tt.file, 0o600)
			tt.want.ConfigFile = file
			args := []string{"--config", file}
			for _, arg := range tt.args {
				args = append(args, strings.ReplaceAll(arg, "[]", "2001:db8::1"))
			}
			got, err := ParseOptions(args)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, plain); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	parse := func(args []string) error { _, err := ParseOptions(args); return err }
	const usual = "--interface a --virtual 192.0.2.1 "
	programtest.ParseRefuses(t, parse, []programtest.BadOptions{
		{Name: "no interface", Args: "--virtual 192.0.2.1", Want: "--interface: required"},
		{Name: "interface twice", Args: usual + "--interface a", Want: `--interface "a": given twice`},
		{Name: "keys and none", Args: "--interface a --insecure --key_file /k", Want: "--insecure and --key_file exclude each other"},
		{Name: "check and cleanup", Args: usual + "--check --cleanup", Want: "--check and --cleanup exclude each other"},
		{Name: "cleanup and close", Args: usual + "--cleanup --close", Want: "--cleanup and --close exclude each other"},
		{Name: "close and open", Args: usual + "--open --close", Want: "--close and --open exclude each other"},
		{Name: "group without port", Args: "--group 224.0.0.81", Want: `--group "224.0.0.81": must be a multicast address with a port`},
		{Name: "node of that name", Args: "--node kernel", Want: `--node "kernel": "kernel" is what sync compare calls`},
		{Name: "id 0", Args: "--id 0", Want: `--id "0": must be a number from 1 to 255`},
		{Name: "no virtual", Args: "--interface a", Want: "--virtual: required"},
		{Name: "no virtual to close", Args: "--close", Want: "--virtual: required"},
		{Name: "virtual with port", Args: "--virtual 192.0.2.1:80", Want: `--virtual "192.0.2.1:80": must be an address that the directors share`},
		{Name: "virtual twice", Args: usual + "--virtual ::ffff:192.0.2.1", Want: `--virtual "192.0.2.1": given twice`},
		{Name: "virtual multicast", Args: "--virtual 224.0.0.1", Want: "must be an address that the directors share"},
		{Name: "virtual loopback", Args: "--virtual ::1", Want: "must be an address that the directors share"},
		{Name: "virtual unspecified", Args: "--virtual 0.0.0.0", Want: "must be an address that the directors share"},
		{Name: "virtual broadcast", Args: "--virtual 255.255.255.255", Want: "must be an address that the directors share"},
		{Name: "virtual link-local", Args: "--virtual fe80::1", Want: "must be an address that the directors share"},
		{Name: "virtual zone", Args: "--virtual fe80::1%eth0", Want: "must be an address that the directors share"},
		{Name: "virtual name", Args: "--virtual www", Want: "must be an address that the directors share"},
		{Name: "sense unknown", Args: "--sense src", Want: `--sense "src": must be LIST or ADDR=LIST: unknown field "src"; there are src-addr,src-port,dst-addr,dst-port`},
		{Name: "sense empty", Args: "--sense ''", Want: `--sense "": must be LIST or ADDR=LIST: no field`},
		{Name: "sense field twice", Args: "--sense src-addr,src-addr", Want: "field src-addr is there twice"},
		{Name: "sense twice", Args: "--sense src-addr --sense src-port", Want: `--sense "src-port": a sense for every address is given twice`},
		{Name: "sense of an address twice", Args: "--sense 192.0.2.1=src-addr --sense ::ffff:192.0.2.1=src-port", Want: "a sense for 192.0.2.1 is given twice"},
		{Name: "sense without address", Args: "--sense =src-addr", Want: `--sense "=src-addr": must be LIST or ADDR=LIST with a virtual address`},
		{Name: "sense without list", Args: "--sense 192.0.2.1=", Want: `--sense "192.0.2.1=": must be LIST or ADDR=LIST: no field`},
		{Name: "sense of no virtual", Args: usual + "--sense 192.0.2.2=src-addr", Want: `--sense "192.0.2.2=src-addr": 192.0.2.2 is no --virtual`},
		{Name: "weight", Args: "--weight 65536", Want: `--weight "65536": must be a number from 0 to 65535`},
		{Name: "weight negative", Args: "--weight=-1", Want: "must be a number from 0 to 65535"},
		{Name: "keepalive without unit", Args: "--keepalive 100", Want: `--keepalive "100": must be a time with its unit (100ms, 2s) from 10ms to 1m`},
		{Name: "keepalive short", Args: "--keepalive 9ms", Want: "from 10ms to 1m"},
		{Name: "guard 0", Args: "--guard 0", Want: `--guard "0": must be a time with its unit (100ms, 2s) from 1ms to 1m`},
		{Name: "start_delay", Args: "--start_delay 2h", Want: "from 0s to 1h"},
		{Name: "lease short", Args: usual + "--lease 299ms", Want: "--lease 299ms is below 2 --keepalive + 100ms = 300ms"},
		{Name: "lease long", Args: usual + "--lease 431ms", Want: "--deadtime 500ms is below --lease + 50ms + --guard = 501ms"},
		{Name: "guard long", Args: usual + "--guard 151ms", Want: "--deadtime 500ms is below --lease + 50ms + --guard = 501ms"},
		{Name: "keepalive long", Args: usual + "--keepalive 101ms", Want: "--lease 300ms is below 2 --keepalive + 100ms"},
		{Name: "warntime short", Args: usual + "--warntime 100ms", Want: "--warntime 100ms must be above --keepalive 100ms"},
		{Name: "warntime long", Args: usual + "--warntime 501ms", Want: "at most --deadtime 500ms"},
		{Name: "ping node name", Args: "--ping_node router", Want: `--ping_node "router": must be the address of a node`},
		{Name: "ping node multicast", Args: "--ping_node ff02::1", Want: "must be the address of a node"},
		{Name: "ping node link-local", Args: "--ping_node fe80::1", Want: "must say of a link-local address"},
		{Name: "ping node zone", Args: "--ping_node 2001:db8::1%eth0", Want: "must say of a link-local address, and of no other"},
		{Name: "ping node twice", Args: usual + "--ping_node 192.0.2.2 --ping_node 192.0.2.2", Want: `--ping_node "192.0.2.2": given twice`},
		{Name: "ping node is virtual", Args: usual + "--ping_node 192.0.2.1", Want: `--ping_node "192.0.2.1": is a --virtual`},
		{Name: "partition", Args: "--partition majority", Want: `--partition "majority": must be quorum or available`},
		{Name: "survivor_delay", Args: "--survivor_delay always", Want: `--survivor_delay "always": must be a time with its unit (100ms, 2s) from 0s to 1h, or never`},
		{Name: "expect 0", Args: "--expect 0", Want: `--expect "0": must be a number from 1 to 64`},
		{Name: "expect many", Args: "--expect 65", Want: "must be a number from 1 to 64"},
		{Name: "inside", Args: "--inside a/b", Want: `--inside "a/b": must be the name of an interface`},
		{Name: "masquerade address", Args: "--masquerade 10.0.0.1", Want: `--masquerade "10.0.0.1": must be a network`},
		{Name: "masquerade host bits", Args: "--masquerade 10.0.0.1/24", Want: "must be a network, no address in it: 10.0.0.0/24"},
		{Name: "masquerade mapped", Args: "--masquerade ::ffff:10.0.0.0/120", Want: "must be a network"},
		{Name: "masquerade twice", Args: usual + "--inside b --masquerade 10.0.0.0/8 --masquerade 10.0.0.0/8", Want: `--masquerade "10.0.0.0/8": given twice`},
		{Name: "masquerade without inside", Args: usual + "--masquerade 10.0.0.0/8", Want: "--masquerade 10.0.0.0/8: needs --inside"},
		{Name: "mac_mode of later", Args: "--mac_mode shared", Want: `--mac_mode "shared": is not in this release, which has external only`},
		{Name: "mac_mode stealth", Args: "--mac_mode stealth", Want: "is not in this release"},
		{Name: "mac_mode multicast", Args: "--mac_mode multicast", Want: "is not in this release"},
		{Name: "mac_mode unknown", Args: "--mac_mode none", Want: `--mac_mode "none": must be external`},
		{Name: "mac short", Args: "--mac 02:00:5e:00:01", Want: `--mac "02:00:5e:00:01": must be a MAC address`},
		{Name: "mac EUI-64", Args: "--mac 02:00:5e:10:00:00:00:01", Want: "must be a MAC address"},
		{Name: "mac broadcast", Args: "--mac ff:ff:ff:ff:ff:ff", Want: "must be a MAC address"},
		{Name: "syncd", Args: "--syncd off", Want: `--syncd "off": must be the absolute path of a socket, or none`},
		{Name: "syncd empty", Args: "--syncd ''", Want: `--syncd "": must be the path of a socket, at most 107 bytes long, or none`},
	})
}

// TestReloadable changes every option of the file in turn: it is either named as one that needs a restart, or taken over.
func TestReloadable(t *testing.T) {
	programtest.Reload[Options]{
		Flags: Flags(), Parse: ParseOptions, Compare: []cmp.Option{plain},
		Restart:   func(wanted, running Options) []string { return wanted.needsRestart(running) },
		Take:      (*Options).takeOver,
		NotInFile: []string{config.ConfigOption, "check", "cleanup", "close", "open"},
		Base:      map[string]string{"interface": "eth0", "node": "d1", "virtual": "192.0.2.1", "inside": "eth2"},
		Changes: map[string]string{
			"debug": "true", "log_facility": "local0", "node": "d9", "interface": "eth9", "group": "239.1.1.1:1", "key_file": "/k",
			"insecure": "true", "control": "/c", "metrics": "[::1]:9850", "id": "2", "virtual": "auto", "sense": "192.0.2.1=src-addr", "weight": "1",
			"keepalive": "50ms", "warntime": "200ms", "deadtime": "1s", "lease": "310ms", "guard": "30ms", "start_delay": "0",
			"ping_node": "192.0.2.254", "partition": "quorum", "survivor_delay": "never", "expect": "2", "inside": "eth9", "masquerade": "10.0.0.0/8",
			"mac": "02:00:5e:00:01:01", "syncd": "none",
		},
		Unchanged: []string{"mac_mode"}, // there is only one
	}.Check(t)
}

// Ping nodes are exchanged while it runs, as many for as many.
func TestReloadPingNodes(t *testing.T) {
	all := func(texts ...string) (out []netip.Addr) {
		for _, s := range texts {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	for _, tt := range []struct {
		from, to []netip.Addr
		taken    bool
	}{
		{all("192.0.2.2", "2001:db8::2"), all("2001:db8::3", "192.0.2.3"), true},
		{all("192.0.2.2"), all("192.0.2.2", "192.0.2.3"), false},
		{all("192.0.2.2"), all("2001:db8::2"), false},
		{all("192.0.2.2"), nil, false},
	} {
		running, wanted := Options{PingNodes: tt.from}, Options{PingNodes: tt.to}
		restart := wanted.needsRestart(running)
		running.takeOver(wanted)
		if taken := cmp.Equal(running.PingNodes, tt.to, plain); taken != tt.taken || taken != (len(restart) == 0) {
			t.Errorf("%v instead of %v: taken over %v, want %v; restart for %v", tt.to, tt.from, taken, tt.taken, restart)
		}
	}
}

func TestHelp(t *testing.T) {
	if _, err := ParseOptions([]string{"--help"}); !errors.Is(err, config.ErrHelp) {
		t.Errorf("--help: error %v, want ErrHelp", err)
	}
	programtest.Help(t, Flags(), Help())
}
