package syncd

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"saru/lib/config"
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
				--syncid 255 --mirror templates --mirror_service tcp:192.0.2.1:80 --mirror-service UDP:[2001:db8::1]:53 --kernel_entries all`),
			want: with(func(o *Options) {
				o.Debug, o.Check = true, true
				o.LogFacility = "local0"
				o.Interfaces = []string{"eth0", "eth1.5"}
				o.Group = netip.MustParseAddrPort("[ff02::81]:8849")
				o.KeyFile, o.Control, o.Metrics = "/k", "/c", "[::1]:9848"
				o.Tap, o.TapAddress = "t0", netip.MustParseAddr("10.0.0.1")
				o.Sysctl, o.Auth, o.SyncID = SysctlCheck, AuthPermissive, 255
				o.Mirror = MirrorTemplates
				o.MirrorServices = []ServiceFilter{
					{6, netip.MustParseAddrPort("192.0.2.1:80")},
					{17, netip.MustParseAddrPort("[2001:db8::1]:53")},
				}
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
			file := filepath.Join(t.TempDir(), "syncd.conf")
			if err := os.WriteFile(file, []byte("node d1\n"+tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
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
	tests := []struct {
		name string
		args string // fields; "''" is the empty string
		want string
	}{
		{"no interface", "", "--interface: required"},
		{"interface twice", "--interface a --interface a", `--interface "a": given twice`},
		{"interface is the tap", "--interface syncd0", `--interface "syncd0": is the name of the --tap`},
		{"interface too long", "--interface 0123456789abcdef", "--interface \"0123456789abcdef\": must be the name of an interface"},
		{"interface with slash", "--interface a/b", "must be the name of an interface"},
		{"keys and none", "--interface a --insecure --key_file /k", "--insecure and --key_file exclude each other"},
		{"check and cleanup", "--interface a --check --cleanup", "--check and --cleanup exclude each other"},
		{"config absent", "--config /nonexistent", `--config "/nonexistent": no such file or directory`},
		{"facility", "--log_facility nonsense", `--log_facility "nonsense": must be - (terminal), /FILE or a facility of syslog`},
		{"node empty", "--node ''", `--node "": must be 1 to 63 letters`},
		{"node long", "--node " + long, "must be 1 to 63 letters"},
		{"node space", "--node d_1ä", "must be 1 to 63 letters"},
		{"group without port", "--group 224.0.0.81", `--group "224.0.0.81": must be a multicast address with a port`},
		{"group port 0", "--group 224.0.0.81:0", "must be a multicast address with a port"},
		{"group unicast", "--group 192.0.2.1:8848", "must be a multicast address with a port"},
		{"group without brackets", "--group ff02::81:8848", "must be a multicast address with a port"},
		{"group zone", "--group [ff02::81%eth0]:8848", "must be without a zone"},
		{"group of the machine", "--group [ff01::81]:8848", "must be a group that leaves the machine"},
		{"key file empty", "--key_file ''", `--key_file "": must be the name of a file`},
		{"control long", "--control /" + long + long, "at most 107 bytes"},
		{"metrics without port", "--metrics 127.0.0.1", `--metrics "127.0.0.1": must be an address`},
		{"metrics name", "--metrics localhost:9848", "must be an address"},
		{"tap long", "--tap 0123456789abcdef", `--tap "0123456789abcdef": must be the name of an interface`},
		{"tap address IPv6", "--tap_address fe80::1", `--tap_address "fe80::1": must be a unicast IPv4 address`},
		{"tap address last", "--tap_address 223.255.255.255", "whose successor is one too"},
		{"tap address before loopback", "--tap_address 126.255.255.255", "whose successor is one too"},
		{"sysctl", "--sysctl maybe", `--sysctl "maybe": must be apply, check or off`},
		{"auth", "--auth none", `--auth "none": must be enforce, permissive or receive-only`},
		{"syncid 0", "--syncid 0", `--syncid "0": must be a number from 1 to 255`},
		{"syncid 256", "--syncid 256", `must be a number from 1 to 255`},
		{"mirror", "--mirror some", `--mirror "some": must be all or templates`},
		{"service protocol", "--mirror_service icmp:192.0.2.1:80", `--mirror_service "icmp:192.0.2.1:80": must be tcp, udp or sctp`},
		{"service without brackets", "--mirror_service tcp:2001:db8::1:80", "must be tcp, udp or sctp"},
		{"service without port", "--mirror_service tcp:192.0.2.1", "must be tcp, udp or sctp"},
		{"service multicast", "--mirror_service tcp:224.0.0.1:80", "must have the address of a virtual service"},
		{"kernel entries next", "--kernel_entries next", `--kernel_entries "next": needs saru`},
		{"kernel entries", "--kernel_entries some", `--kernel_entries "some": must be all`},
		{"join is not there", "--join 192.0.2.1:8848", "unknown option --join"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "syncd.conf")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"--config", file}
			for _, arg := range strings.Fields(tt.args) {
				args = append(args, strings.ReplaceAll(arg, "''", ""))
			}
			_, err := ParseOptions(args)
			if _, ok := errors.AsType[*config.UsageError](err); !ok {
				t.Fatalf("error is %v (%T), want a *config.UsageError", err, err)
			}
			if got := err.Error(); !strings.Contains(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("error is %q, want one line with %q", got, tt.want)
			}
		})
	}
}

// TestHelp checks that the help text names every option and fits a terminal.
func TestHelp(t *testing.T) {
	if _, err := ParseOptions([]string{"--help"}); !errors.Is(err, config.ErrHelp) {
		t.Errorf("--help: error %v, want ErrHelp", err)
	}
	help := Help()
	Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(help, "--"+f.Name+" ") || f.Usage == "" {
			t.Errorf("the help text does not explain --%s", f.Name)
		}
	})
	for line := range strings.Lines(help) {
		if len(line) > 101 {
			t.Errorf("line of %d columns: %q", len(line), line)
		}
	}
}
