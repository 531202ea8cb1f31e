package guard

import (
	"context"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/tun/nstest"
)

var update = flag.Bool("update", false, "write the golden file")

func TestMain(m *testing.M) {
	if spec := os.Getenv(senderEnv); spec != "" {
		os.Exit(sendAsUser(spec))
	}
	nstest.Main(m)
}

func testConfig() Config {
	return Config{
		Device: "syncd0", Group: netip.MustParseAddrPort("224.0.0.81:8848"),
		Peer: netip.MustParseAddr("169.254.81.2"), Local: netip.MustParseAddr("169.254.81.1"), TickPort: 8849,
	}
}

// nft runs the real tool, which is the oracle of these tests, in the namespace of the test.
func nft(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("nft %s: %v\n%s(the package nftables is needed: make deps)", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)

// ruleset is the listing without the counters' values.
func ruleset(tb testing.TB) string {
	tb.Helper()
	return counters.ReplaceAllString(nft(tb, "list", "ruleset"), "counter packets 0 bytes 0")
}

func mustInstall(tb testing.TB) {
	tb.Helper()
	if err := Install(testConfig()); err != nil {
		tb.Fatal(err)
	}
}

func mustCheck(tb testing.TB, want bool) {
	tb.Helper()
	if ok, err := Check(testConfig()); ok != want || err != nil {
		tb.Errorf("Check: %v, %v; want %v", ok, err, want)
	}
}

// TestListing compares what an operator sees with the golden file, and lets nft read its own listing back.
func TestListing(t *testing.T) {
	nstest.New(t)
	mustInstall(t)
	got := ruleset(t)
	const golden = "testdata/ruleset.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	mustCheck(t, true)

	// The same rules, written by nft, are the same to the kernel and to Check.
	file := t.TempDir() + "/rules.nft"
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	nft(t, "flush", "ruleset")
	mustCheck(t, false)
	nft(t, "-f", file)
	mustCheck(t, true)
}

func TestInstallAndRemove(t *testing.T) {
	nstest.New(t)
	nft(t, "add table inet other { chain c { type filter hook input priority 0; policy drop; } ; }")
	other := ruleset(t)
	if err := Remove(DefaultTable); err != nil {
		t.Errorf("Remove without a table: %v", err)
	}
	mustInstall(t)
	first, handles := ruleset(t), nft(t, "-a", "list", "table", "inet", DefaultTable)
	mustInstall(t)
	if diff := cmp.Diff(handles, nft(t, "-a", "list", "table", "inet", DefaultTable)); diff != "" {
		t.Errorf("what was right has been replaced:\n%s", diff)
	}
	nft(t, "flush chain inet "+DefaultTable+" input")
	mustInstall(t)
	if diff := cmp.Diff(first, ruleset(t)); diff != "" {
		t.Errorf("a second Install is not the same:\n%s", diff)
	}
	if err := Remove(""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(other, ruleset(t)); diff != "" {
		t.Errorf("Remove left or took something:\n%s", diff)
	}
}

// alterations are what others may do to the table.
var alterations = map[string]struct{ how, why string }{
	"flush ruleset":  {"flush ruleset", "table syncd was deleted"},
	"delete table":   {"delete table inet syncd", "table syncd was deleted"},
	"flush table":    {"flush table inet syncd", "rules of chain prerouting were changed"},
	"flush chain":    {"flush chain inet syncd output", "rules of chain output were changed"},
	"delete chain":   {"flush chain inet syncd forward; delete chain inet syncd forward", "chain forward was deleted"},
	"add chain":      {"add chain inet syncd mine", "a chain was added"},
	"add rule":       {"add rule inet syncd input accept", "rules of chain input were changed"},
	"insert rule":    {"insert rule inet syncd input iifname syncd0 accept", "rules of chain input were changed"},
	"policy":         {"chain inet syncd input { policy drop; }", "chain input was changed"},
	"dormant":        {"table inet syncd { flags dormant; }", "table syncd has got flags"},
	"flush and more": {"flush ruleset; add table inet firewall; add chain inet firewall c", "table syncd was deleted"},
}

func TestCheckFindsAlterations(t *testing.T) {
	for name, tt := range alterations {
		t.Run(name, func(t *testing.T) {
			nstest.New(t)
			mustInstall(t)
			nft(t, tt.how)
			cfg, _ := testConfig().check()
			why, err := inspect(cfg)
			if why != tt.why || err != nil {
				t.Errorf("inspect: %q, %v; want %q", why, err, tt.why)
			}
			mustCheck(t, false)
			mustInstall(t)
			mustCheck(t, true)
		})
	}
}

func TestCheckIgnoresOthers(t *testing.T) {
	nstest.New(t)
	mustInstall(t)
	nft(t, "add table inet firewall; add chain inet firewall input { type filter hook input priority 0; }; add table ip syncd; add chain ip syncd output")
	mustCheck(t, true)
	other := testConfig()
	other.TickPort = 0
	if ok, err := Check(other); ok || err != nil {
		t.Errorf("another configuration: %v, %v", ok, err)
	}
}

func TestBadConfig(t *testing.T) {
	nstest.New(t)
	for name, change := range map[string]func(*Config){
		"no device":   func(c *Config) { c.Device = "" },
		"long device": func(c *Config) { c.Device = strings.Repeat("x", 16) },
		"IPv6 group":  func(c *Config) { c.Group = netip.MustParseAddrPort("[ff02::81]:8848") },
		"unicast":     func(c *Config) { c.Group = netip.MustParseAddrPort("10.0.0.1:8848") },
		"no port":     func(c *Config) { c.Group = netip.MustParseAddrPort("224.0.0.81:0") },
		"no peer":     func(c *Config) { c.Peer = netip.Addr{} },
		"one address": func(c *Config) { c.Peer = c.Local },
	} {
		cfg := testConfig()
		change(&cfg)
		if Install(cfg) == nil {
			t.Errorf("%s: Install takes it", name)
		}
		if _, err := Check(cfg); err == nil {
			t.Errorf("%s: Check takes it", name)
		}
		if Watch(t.Context(), cfg, func(string) {}) == nil {
			t.Errorf("%s: Watch takes it", name)
		}
	}
}

// watch runs Watch until the test ends and returns its reports.
func watch(t *testing.T, ns *nstest.NS) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	mends := make(chan string, 100)
	wait := ns.Go(t, func() {
		if err := Watch(ctx, testConfig(), func(why string) { mends <- why }); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wait()
	})
	return mends
}

func next(t *testing.T, mends <-chan string) string {
	t.Helper()
	select {
	case why := <-mends:
		return why
	case <-time.After(2 * time.Second): // less than pollInterval: an event must do it
		t.Fatal("nothing was mended")
		return ""
	}
}

func TestWatchMends(t *testing.T) {
	for name, tt := range alterations {
		t.Run(name, func(t *testing.T) {
			ns := nstest.New(t)
			mends := watch(t, ns)
			if why := next(t, mends); why != "table syncd was deleted" {
				t.Fatalf("at first: %q", why)
			}
			for range 2 {
				start := time.Now()
				nft(t, tt.how)
				// The reason may be another half of the truth when the table changes while it is being read.
				why := next(t, mends)
				t.Logf("mended %v after nft was started: %s", time.Since(start), why)
				for deadline := time.Now().Add(2 * time.Second); ; {
					if ok, _ := Check(testConfig()); ok {
						break
					}
					if time.Now().After(deadline) {
						t.Fatal("the table is not right")
					}
				}
			}
		})
	}
}

// TestWatchIsFast measures from the end of a flush, in the same process, to the report that the table is right again.
func TestWatchIsFast(t *testing.T) {
	ns := nstest.New(t)
	mends := watch(t, ns)
	next(t, mends)
	var took []time.Duration
	for range 50 {
		c, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		c.FlushRuleset()
		start := time.Now()
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		next(t, mends)
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	median := took[len(took)/2]
	t.Logf("median of 50: %v, worst %v", median, took[len(took)-1])
	if median > 200*time.Millisecond { // 10 to 25 ms here: each transaction waits for the kernel's RCU
		t.Errorf("median of 50: %v", median)
	}
}

// TestWatchLeavesOthersAlone changes other tables a thousand times; there must be no mends and hardly any work.
func TestWatchLeavesOthersAlone(t *testing.T) {
	ns := nstest.New(t)
	mends := watch(t, ns)
	next(t, mends)
	nft(t, "add table inet lease; add set inet lease s { type ipv4_addr; }; add chain inet lease c")
	for range 20 {
		nft(t, "add element inet lease s { 10.0.0.1 }; delete element inet lease s { 10.0.0.1 }; add rule inet lease c accept")
	}
	select {
	case why := <-mends:
		t.Errorf("mended %q", why)
	case <-time.After(100 * time.Millisecond):
	}
}

func TestWatchEndsAtOnce(t *testing.T) {
	nstest.New(t)
	ctx, cancel := context.WithCancel(context.Background())
	if err := Watch(ctx, testConfig(), func(string) { cancel() }); err != nil {
		t.Error(err)
	}
	mustCheck(t, true) // it leaves the table; Remove is the caller's
}
