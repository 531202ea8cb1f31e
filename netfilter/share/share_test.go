package share

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
	"saru/lib/tun/nstest"
)

var update = flag.Bool("update", false, "write the golden file")

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	vip4 = netip.MustParseAddr("192.0.2.1")
	vip6 = netip.MustParseAddr("2001:db8::1")
)

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

// testConfig has two addresses, open, without services.
func testConfig() Config {
	sense := flow.SenseOf(flow.SrcAddr, flow.SrcPort)
	return Config{
		Function: flow.Default, Period: 100 * time.Millisecond,
		Virtuals: []Virtual{{Address: vip4, Sense: sense, Open: true}, {Address: vip6, Sense: sense, Open: true}},
	}
}

// fullConfig has something of everything.
func fullConfig() Config {
	cfg := testConfig()
	cfg.Inside = "in0"
	cfg.MAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x51}
	cfg.Masquerade = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}
	cfg.Virtuals[0].Services = []Service{
		{Protocol: tcp, Port: 80, NAT: true, Destinations: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.11:8080"), netip.MustParseAddrPort("10.1.0.12:8080")}},
		{Protocol: tcp, Port: 443, BySource: true, PersistMask: 24},
		{Protocol: tcp, Port: 21, BySource: true},
		{Protocol: udp, Port: 53, Local: true},
		{Protocol: udp, Port: 0, NAT: true, BySource: true, Destinations: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.11:0")}},
		{Fwmark: 7},
	}
	cfg.Virtuals[1].Mask = 64
	cfg.Virtuals[1].Services = []Service{
		{Protocol: tcp, Port: 80}, {Protocol: udp, Port: 500, PersistMask: 48},
		{Protocol: udp, Port: 53, NAT: true, Destinations: []netip.AddrPort{netip.MustParseAddrPort("[fd00:1::11]:53")}},
	}
	cfg.Virtuals = append(cfg.Virtuals,
		Virtual{Address: netip.MustParseAddr("192.0.2.2"), Sense: flow.SenseOf(flow.SrcAddr, flow.SrcPort, flow.DstAddr, flow.DstPort)},
		Virtual{Address: netip.MustParseAddr("2001:db8::2"), Sense: flow.SenseOf(flow.DstPort), Open: true})
	return cfg
}

// nft runs the real tool in the namespace of the test.
func nft(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("nft %s: %v\n%s(the package nftables is needed: make deps)", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var (
	counters = regexp.MustCompile(`packets \d+ bytes \d+`)
	expires  = regexp.MustCompile(`expires \S+`)
)

// ruleset is the listing without the values of counters and clocks.
func ruleset(tb testing.TB) string {
	tb.Helper()
	return expires.ReplaceAllString(counters.ReplaceAllString(nft(tb, "list", "ruleset"), "packets 0 bytes 0"), "expires 0")
}

// mustOpen opens a filter in the namespace of the test. It is not protected against the tool nft.
func mustOpen(tb testing.TB, cfg Config) *Filter {
	tb.Helper()
	f, err := open(cfg, false)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Shutdown() })
	return f
}

// buckets returns the set of buckets for which own is true.
func buckets(n uint32, own func(b uint32) bool) []uint64 {
	set := make([]uint64, (n+63)/64)
	for b := range n {
		if own(b) {
			set[b/64] |= 1 << (b % 64)
		}
	}
	return set
}

func all(uint32) bool { return true }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func lasts(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestListing compares what an operator sees with the golden file.
func TestListing(t *testing.T) {
	nstest.New(t)
	f := mustOpen(t, fullConfig())
	must(t, f.Apply(buckets(flow.Default.Buckets, func(b uint32) bool { return b == 5 || b >= 4093 })))
	must(t, f.Grant(lasts(10*time.Second)))
	got := ruleset(t)
	const golden = "testdata/ruleset.golden"
	if *update {
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	want2, err := f.want()
	must(t, err)
	if why, err := inspect(f.namespace, want2); why != "" || err != nil {
		t.Errorf("inspect: %q, %v", why, err)
	}
}
