package syncd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"saru/lib/config"
	"saru/lib/program/programtest"
)

// plain compares addresses, which have no exported fields.
var plain = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func TestParseOptions(t *testing.T) {
	// with returns the defaults with changes; the host name is not among them.
	with := func(change func(*Options)) Options {
		o := defaultOptions()
		o.Node = "d1"
		o.Interfaces = []string{"eth0"}
		if change != nil {
			change(&o)
		}
		return o
	}
	tests := []struct {
		name string
		file string
		args []string
		want Options
	}{
		{name: "defaults", args: []string{"--interface", "eth0"}, want: with(nil)},
		{
			name: "everything",
			args: strings.Fields(`--debug --log_facility local0 --interface eth0 --interface eth1.5 --group [ff02::81]:8849
				--key_file /k --control /c --metrics [::1]:9848 --check --tap t0 --tap_address 10.0.0.1 --sysctl check --auth permissive
				--syncid 255 --mirror templates --mirror_service tcp:192.0.2.1:80 --mirror-service UDP:[2001:db8::1]:53 --kernel_entries next
				--join [2001:db8::1]:8847 --backlog 1g --audit_interval 90s`),
			want: with(func(o *Options) {
				o.Debug, o.Check = true, true
				o.LogFacility = "local0"
				o.Interfaces = []string{"eth0", "eth1.5"}
				o.Group = netip.MustParseAddrPort("[ff02::81]:8849")
				o.KeyFile, o.Control, o.Metrics = "/k", "/c", "[::1]:9848"
				o.Tap, o.TapAddress = "t0", netip.MustParseAddr("10.0.0.1")
				o.Sysctl, o.Auth, o.SyncID = SysctlCheck, AuthPermissive, 255
				o.Mirror, o.KernelEntries = MirrorTemplates, KernelEntriesNext
				o.MirrorServices = []ServiceFilter{
					{6, netip.MustParseAddrPort("192.0.2.1:80")},
					{17, netip.MustParseAddrPort("[2001:db8::1]:53")},
				}
				o.Join, o.Backlog, o.AuditInterval = netip.MustParseAddrPort("[2001:db8::1]:8847"), 1<<30, 90*time.Second
			}),
		},
		{
			name: "command line replaces the file's repeatables",
			file: "interface eth5\ninterface eth6\nmirror_service tcp:192.0.2.9:80\nsyncid 9\nmirror templates\ninsecure\n",
			args: []string{"--interface", "eth0", "--mirror_service", "tcp:192.0.2.1:80", "--syncid", "3"},
			want: with(func(o *Options) {
				o.SyncID, o.Mirror, o.Insecure, o.KeyFile = 3, MirrorTemplates, true, ""
				o.MirrorServices = []ServiceFilter{{6, netip.MustParseAddrPort("192.0.2.1:80")}}
			}),
		},
		{
			name: "nobody is taught, nothing is compared",
			file: "join 192.0.2.1:8848\naudit_interval 1h\nbacklog 1048576\n",
			args: []string{"--interface", "eth0", "--join", "none", "--audit-interval", "0"},
			want: with(func(o *Options) { o.JoinOff, o.AuditInterval, o.Backlog = true, 0, 1<<20 }),
		},
		{
			name: "the command line teaches again",
			file: "join none\n",
			args: []string{"--interface", "eth0", "--join", "[::ffff:192.0.2.1]:8848"},
			want: with(func(o *Options) { o.Join = netip.MustParseAddrPort("192.0.2.1:8848") }),
		},
		{
			name: "taught at a link-local address",
			args: []string{"--interface", "eth0", "--join", "[fe80::1%eth0]:8848"},
			want: with(func(o *Options) { o.Join = netip.MustParseAddrPort("[fe80::1%eth0]:8848") }),
		},
		{
			name: "cleanup needs no interface",
			args: []string{"--cleanup", "--tap", "t0"},
			want: with(func(o *Options) { o.Cleanup, o.Tap, o.Interfaces = true, "t0", nil }),
		},
		{
			name: "mapped addresses are unmapped",
			args: []string{"--interface", "eth0", "--group", "[::ffff:239.1.1.1]:1", "--mirror_service", "sctp:[::ffff:192.0.2.1]:0"},
			want: with(func(o *Options) {
				o.Group = netip.MustParseAddrPort("239.1.1.1:1")
				o.MirrorServices = []ServiceFilter{{132, netip.MustParseAddrPort("192.0.2.1:0")}}
			}),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Always with a file: this machine's own must not matter.
			file := programtest.File(t, "syncd.conf", "node d1\n"+tt.file, 0o600)
			tt.want.ConfigFile = file
			got, err := ParseOptions(append([]string{"--config", file}, tt.args...))
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
	long := strings.Repeat("n", 64)
	parse := func(args []string) error { _, err := ParseOptions(args); return err }
	programtest.ParseRefuses(t, parse, []programtest.BadOptions{
		{Name: "no interface", Args: "", Want: "--interface: required"},
		{Name: "interface twice", Args: "--interface a --interface a", Want: `--interface "a": given twice`},
		{Name: "interface is the tap", Args: "--interface syncd0", Want: `--interface "syncd0": is the name of the --tap`},
		{Name: "interface too long", Args: "--interface 0123456789abcdef", Want: "--interface \"0123456789abcdef\": must be the name of an interface"},
		{Name: "interface with slash", Args: "--interface a/b", Want: "must be the name of an interface"},
		{Name: "keys and none", Args: "--interface a --insecure --key_file /k", Want: "--insecure and --key_file exclude each other"},
		{Name: "check and cleanup", Args: "--interface a --check --cleanup", Want: "--check and --cleanup exclude each other"},
		{Name: "config absent", Args: "--config /nonexistent", Want: `--config "/nonexistent": no such file or directory`},
		{Name: "facility", Args: "--log_facility nonsense", Want: `--log_facility "nonsense": must be - (terminal), /FILE or a facility of syslog`},
		{Name: "node empty", Args: "--node ''", Want: `--node "": must be 1 to 63 letters`},
		{Name: "node long", Args: "--node " + long, Want: "must be 1 to 63 letters"},
		{Name: "node of that name", Args: "--node kernel", Want: `--node "kernel": "kernel" is what sync compare calls`},
		{Name: "node space", Args: "--node d_1ä", Want: "must be 1 to 63 letters"},
		{Name: "group without port", Args: "--group 224.0.0.81", Want: `--group "224.0.0.81": must be a multicast address with a port`},
		{Name: "group port 0", Args: "--group 224.0.0.81:0", Want: "must be a multicast address with a port"},
		{Name: "group unicast", Args: "--group 192.0.2.1:8848", Want: "must be a multicast address with a port"},
		{Name: "group without brackets", Args: "--group ff02::81:8848", Want: "must be a multicast address with a port"},
		{Name: "group zone", Args: "--group [ff02::81%eth0]:8848", Want: "must be without a zone"},
		{Name: "group of the machine", Args: "--group [ff01::81]:8848", Want: "must be a group that leaves the machine"},
		{Name: "key file empty", Args: "--key_file ''", Want: `--key_file "": must be the name of a file`},
		{Name: "control long", Args: "--control /" + long + long, Want: "at most 107 bytes"},
		{Name: "metrics without port", Args: "--metrics 127.0.0.1", Want: `--metrics "127.0.0.1": must be an address`},
		{Name: "metrics name", Args: "--metrics localhost:9848", Want: "must be an address"},
		{Name: "tap long", Args: "--tap 0123456789abcdef", Want: `--tap "0123456789abcdef": must be the name of an interface`},
		{Name: "tap address IPv6", Args: "--tap_address fe80::1", Want: `--tap_address "fe80::1": must be a unicast IPv4 address`},
		{Name: "tap address last", Args: "--tap_address 223.255.255.255", Want: "whose successor is one too"},
		{Name: "tap address before loopback", Args: "--tap_address 126.255.255.255", Want: "whose successor is one too"},
		{Name: "sysctl", Args: "--sysctl maybe", Want: `--sysctl "maybe": must be apply, check or off`},
		{Name: "auth", Args: "--auth none", Want: `--auth "none": must be enforce, permissive or receive-only`},
		{Name: "syncid 0", Args: "--syncid 0", Want: `--syncid "0": must be a number from 1 to 255`},
		{Name: "syncid 256", Args: "--syncid 256", Want: `must be a number from 1 to 255`},
		{Name: "mirror", Args: "--mirror some", Want: `--mirror "some": must be all or templates`},
		{Name: "service protocol", Args: "--mirror_service icmp:192.0.2.1:80", Want: `--mirror_service "icmp:192.0.2.1:80": must be tcp, udp or sctp`},
		{Name: "service without brackets", Args: "--mirror_service tcp:2001:db8::1:80", Want: "must be tcp, udp or sctp"},
		{Name: "service without port", Args: "--mirror_service tcp:192.0.2.1", Want: "must be tcp, udp or sctp"},
		{Name: "service multicast", Args: "--mirror_service tcp:224.0.0.1:80", Want: "must have the address of a virtual service"},
		{Name: "kernel entries", Args: "--kernel_entries some", Want: `--kernel_entries "some": must be all or next`},
		{Name: "join without port", Args: "--join 192.0.2.1", Want: `--join "192.0.2.1": must be an address of this director and a port`},
		{Name: "join port 0", Args: "--join 192.0.2.1:0", Want: "must be an address of this director and a port"},
		{Name: "join without address", Args: "--join :8848", Want: "must be an address of this director and a port"},
		{Name: "join name", Args: "--join d1:8848", Want: "must be an address of this director and a port"},
		{Name: "join without brackets", Args: "--join 2001:db8::1:8848", Want: "must be an address of this director and a port"},
		{Name: "join unspecified", Args: "--join 0.0.0.0:8848", Want: `--join "0.0.0.0:8848": must be the one address`},
		{Name: "join unspecified IPv6", Args: "--join [::]:8848", Want: "must be the one address"},
		{Name: "join multicast", Args: "--join 224.0.0.81:8848", Want: "must be an address of this director, no multicast"},
		{Name: "join multicast IPv6", Args: "--join [ff02::81]:8848", Want: "must be an address of this director, no multicast"},
		{Name: "join broadcast", Args: "--join 255.255.255.255:8848", Want: "must be an address of this director, no multicast"},
		{Name: "join loopback", Args: "--join 127.0.0.1:8848", Want: "must be an address that the other directors reach"},
		{Name: "join mapped loopback", Args: "--join [::ffff:127.0.0.1]:8848", Want: "must be an address that the other directors reach"},
		{Name: "join link-local", Args: "--join [fe80::1]:8848", Want: "must say of a link-local address at which interface"},
		{Name: "join link-local elsewhere", Args: "--interface a --join [fe80::1%b]:8848", Want: `--join "[fe80::1%b]:8848": b is no --interface`},
		{Name: "join zone", Args: "--join [2001:db8::1%eth0]:8848", Want: "must be without a zone"},
		{Name: "join on the tap", Args: "--interface a --join 169.254.81.2:8848", Want: `--join "169.254.81.2:8848": is an address of the --tap`},
		{Name: "backlog small", Args: "--backlog 1023K", Want: `--backlog "1023K": must be a size in bytes from 1M to 1G, K, M and G stand for powers of 1024`},
		{Name: "backlog large", Args: "--backlog 1025M", Want: "must be a size in bytes from 1M to 1G"},
		{Name: "backlog huge", Args: "--backlog 4294967295G", Want: "must be a size in bytes from 1M to 1G"},
		{Name: "backlog unit", Args: "--backlog 16MB", Want: "must be a size in bytes from 1M to 1G"},
		{Name: "backlog negative", Args: "--backlog -1", Want: "must be a size in bytes from 1M to 1G"},
		{Name: "audit without unit", Args: "--audit_interval 10", Want: `--audit_interval "10": must be a time with its unit (2s, 5m) from 1s to 1h, or 0 for off`},
		{Name: "audit too often", Args: "--audit_interval 999ms", Want: "from 1s to 1h, or 0 for off"},
		{Name: "audit too seldom", Args: "--audit_interval 61m", Want: "from 1s to 1h, or 0 for off"},
		{Name: "audit negative", Args: "--audit_interval -10s", Want: "from 1s to 1h, or 0 for off"},
	})
}

// TestReloadable changes every option of the file in turn: it is either named as one that needs a restart, or taken over.
func TestReloadable(t *testing.T) {
	programtest.Reload[Options]{
		Flags: Flags(), Parse: ParseOptions, Restart: Options.needsRestart, Take: (*Options).takeOver, Compare: []cmp.Option{plain},
		NotInFile: []string{config.ConfigOption, "check", "cleanup"},
		Base:      map[string]string{"interface": "eth0", "node": "d1"},
		Changes: map[string]string{
			"debug": "true", "log_facility": "local0", "node": "d9", "interface": "eth9", "group": "239.1.1.1:1", "key_file": "/k",
			"insecure": "true", "control": "/c", "metrics": "[::1]:9848", "tap": "t0", "tap_address": "10.0.0.1", "sysctl": "check",
			"auth": "permissive", "syncid": "9", "mirror": "templates", "mirror_service": "tcp:192.0.2.1:80", "kernel_entries": "next",
			"join": "none", "backlog": "1M", "audit_interval": "0",
		},
	}.Check(t)
}

func TestHelp(t *testing.T) {
	if _, err := ParseOptions([]string{"--help"}); !errors.Is(err, config.ErrHelp) {
		t.Errorf("--help: error %v, want ErrHelp", err)
	}
	programtest.Help(t, Flags(), Help())
}
