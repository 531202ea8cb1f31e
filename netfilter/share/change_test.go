package share

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
	"saru/lib/tun/nstest"
)

func mustOwn(t *testing.T, f *Filter, want []uint64) {
	t.Helper()
	st, err := f.Read()
	must(t, err)
	if !slices.Equal(st.Owned, want) {
		t.Fatalf("the kernel has %x, want %x", st.Owned, want)
	}
}

func mustBeRight(t *testing.T, f *Filter) {
	t.Helper()
	want, err := f.want()
	must(t, err)
	if why, err := inspect(f.namespace, want); why != "" || err != nil {
		t.Fatalf("%s, %v", why, err)
	}
}

func TestApply(t *testing.T) {
	for _, n := range []uint32{1, 63, 4096, flow.MaxBuckets} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			nstest.New(t)
			cfg := testConfig()
			cfg.Function.Buckets = n
			f := mustOpen(t, cfg)
			rng := rand.New(rand.NewPCG(1, 2))
			sets := [][]uint64{buckets(n, all), buckets(n, all), make([]uint64, f.words()), randomHalf(rng, n), randomHalf(rng, n), buckets(n, all)}
			sets = append(sets, buckets(n, func(b uint32) bool { return b != 0 }))
			for _, set := range sets {
				start := time.Now()
				must(t, f.Apply(set))
				t.Logf("%v", time.Since(start))
				mustOwn(t, f, set)
			}
			if f.Apply(make([]uint64, f.words()+1)) == nil {
				t.Error("a set that is too long is taken")
			}
			if n%64 != 0 {
				if f.Apply([]uint64{1 << n}) == nil {
					t.Error("a bucket that is too high is taken")
				}
			}
			mustOwn(t, f, sets[len(sets)-1])
		})
	}
}

// TestApplyReadsBack lets somebody else change the set between two differences.
func TestApplyReadsBack(t *testing.T) {
	nstest.New(t)
	f := mustOpen(t, testConfig())
	first := buckets(4096, func(b uint32) bool { return b < 100 })
	must(t, f.Apply(first))
	nft(t, "delete element inet saru owned { 7 }; add element inet saru owned { 2000 }")
	second := buckets(4096, func(b uint32) bool { return b >= 8 && b < 200 }) // takes 7 away, which is not there
	must(t, f.Apply(second))
	mustOwn(t, f, second)
	nft(t, "delete table inet saru")
	if err := f.Apply(first); err == nil {
		t.Error("Apply without a table succeeds")
	}
}

// TestSetVirtuals changes the addresses back and forth, and compares with tables that were made so at once.
func TestSetVirtuals(t *testing.T) {
	nstest.New(t)
	fresh := func(cfg Config) string {
		f := mustOpen(t, cfg)
		must(t, f.Shutdown())
		return sorted(ruleset(t))
	}
	full := fullConfig()
	lists := map[string][]Virtual{"none": nil, "two": full.Virtuals[:2], "bare": testConfig().Virtuals, "full": full.Virtuals, "others": full.Virtuals[2:]}
	more := slices.Clone(full.Virtuals)
	more[0].Open, more[2].Open, more[1].Mask = false, true, 0
	lists["changed"] = more
	want := map[string]string{}
	for name, list := range lists {
		cfg := full
		cfg.Virtuals = list
		want[name] = fresh(cfg)
	}
	f := mustOpen(t, full)
	rng := rand.New(rand.NewPCG(1, 2))
	names := []string{"none", "two", "bare", "full", "others", "changed"}
	for range 40 {
		name := names[rng.IntN(len(names))]
		must(t, f.SetVirtuals(lists[name]))
		mustBeRight(t, f)
		if diff := cmp.Diff(want[name], sorted(ruleset(t))); diff != "" {
			t.Fatalf("%s: (-made so at once +changed to)\n%s", name, diff)
		}
	}
}

// sorted sorts the parts of a listing, which nft shows in the order in which they were made, and the lines of each.
func sorted(listing string) string {
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(listing, "table inet saru {\n"), "}\n"), "\n\n")
	for i, p := range parts {
		if !strings.Contains(p, "chain ") {
			words := strings.Fields(strings.ReplaceAll(p, ",", " "))
			slices.Sort(words)
			parts[i] = strings.Join(words, " ")
		}
		parts[i] = strings.TrimSpace(parts[i])
	}
	slices.Sort(parts)
	return strings.Join(parts, "\n\n")
}

// TestSetVirtualsKeeps changes other addresses under traffic: each packet to an address that stays passes, and lease, owned buckets and counters stay.
func TestSetVirtualsKeeps(t *testing.T) {
	w := newWorld(t)
	f, s := w.owner(100*time.Millisecond), w.stream()
	must(t, f.Grant(lasts(time.Minute)))
	stop, changed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { changed <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			list := testConfig().Virtuals
			if n%2 == 0 {
				list = append(list[:1:1], fullConfig().Virtuals[2:]...)
				list[0].Services = []Service{{Protocol: tcp, Port: 443, BySource: true}}
			}
			if err := f.SetVirtuals(list); err != nil {
				t.Error(err)
				return
			}
			n++
		}
	}()
	sent, lost := 0, 0
	for start := time.Now(); time.Since(start) < time.Second; sent++ {
		if !s.passes() {
			lost++
		}
	}
	close(stop)
	n := <-changed
	t.Logf("%d packets during %d changes, %d lost", sent, n, lost)
	if lost > 0 || n < 10 || sent < 1000 {
		t.Errorf("%d packets during %d changes, %d lost", sent, n, lost)
	}
	st, err := f.Read()
	must(t, err)
	if st.Lease < 50*time.Second || st.Virtuals[0].Own.Packets != uint64(sent) || st.Virtuals[0].Foreign.Packets != 0 {
		t.Errorf("%d were sent: %+v", sent, st.Virtuals)
	}
	mustOwn(t, f, buckets(4096, all))
}

// alterations are what others may do to the table.
var alterations = map[string]struct{ how, why string }{
	"flush ruleset":   {"flush ruleset", "table saru was deleted"},
	"delete table":    {"delete table inet saru", "table saru was deleted"},
	"flush table":     {"flush table inet saru", "rules of chain ports-192.0.2.1 were changed"},
	"flush chain":     {"flush chain inet saru vip-2001_db8__1", "rules of chain vip-2001_db8__1 were changed"},
	"add chain":       {"add chain inet saru mine", "a chain was added"},
	"add rule":        {"add rule inet saru share accept", "rules of chain share were changed"},
	"insert rule":     {"insert rule inet saru vip-192.0.2.1 accept", "rules of chain vip-192.0.2.1 were changed"},
	"policy":          {"chain inet saru share { policy drop; }", "chain share was changed"},
	"dormant":         {"table inet saru { flags dormant; }", "table saru has got other flags"},
	"own more":        {"add element inet saru owned { 4000 }", "set owned was changed"},
	"own less":        {"delete element inet saru owned { 5 }", "set owned was changed"},
	"own another":     {"delete element inet saru owned { 5 }; add element inet saru owned { 4000 }", "set owned was changed"},
	"forget address":  {"delete element inet saru virtual4 { 192.0.2.1 }", "set virtual4 was changed"},
	"forget port":     {"delete element inet saru ported4 { 192.0.2.1 . tcp }", "set ported4 was changed"},
	"other protocols": {"delete element inet saru ported { udp }", "set ported was changed"},
	"endless lease":   {"flush set inet saru lease; add element inet saru lease { ipv4, ipv6 }", "set lease was changed"},
}

func TestWatchMends(t *testing.T) {
	for name, tt := range alterations {
		t.Run(name, func(t *testing.T) {
			ns := nstest.New(t)
			f := mustOpen(t, testConfig())
			mends := watch(t, ns, f)
			for range 2 {
				must(t, f.Apply(buckets(4096, func(b uint32) bool { return b < 10 })))
				must(t, f.Grant(lasts(time.Minute)))
				start := time.Now()
				nft(t, tt.how)
				select {
				// The reason may be another half of the truth when the table changes while it is being read.
				case why := <-mends:
					t.Logf("mended %v after nft was started: %s", time.Since(start), why)
				case <-time.After(2 * time.Second): // less than pollInterval: an event must do it
					t.Fatal("nothing was mended")
				}
				mustBeRight(t, f)
				st, err := f.Read()
				must(t, err)
				if st.Lease != 0 || st.Fence != 0 || !none(st.Owned) {
					t.Errorf("mended to a table that is not closed: %+v", st)
				}
			}
		})
	}
}

func TestInspectNames(t *testing.T) {
	for name, tt := range alterations {
		t.Run(name, func(t *testing.T) {
			nstest.New(t)
			f := mustOpen(t, testConfig())
			must(t, f.Apply(buckets(4096, func(b uint32) bool { return b < 10 })))
			nft(t, tt.how)
			want, err := f.want()
			must(t, err)
			if why, err := inspect(f.namespace, want); why != tt.why || err != nil {
				t.Errorf("inspect: %q, %v; want %q", why, err, tt.why)
			}
		})
	}
}

// watch runs Watch until the test ends and returns its reports.
func watch(t *testing.T, ns *nstest.NS, f *Filter) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	mends := make(chan string, 100)
	wait := ns.Go(t, func() {
		if err := f.Watch(ctx, func(why string) { mends <- why }); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wait()
	})
	return mends
}

// TestWatchIsFast measures from the end of a flush to the report that the table is there again.
func TestWatchIsFast(t *testing.T) {
	ns := nstest.New(t)
	f := mustOpen(t, testConfig())
	mends := watch(t, ns, f)
	var took []time.Duration
	for range 20 {
		nft(t, "flush ruleset")
		start := time.Now()
		<-mends
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("median of 20: %v, worst %v", took[10], took[19])
	if took[10] > 200*time.Millisecond {
		t.Errorf("median of 20: %v", took[10])
	}
}

// TestWatchLeavesAlone does everything that the owner and others may do; there must be no mends.
func TestWatchLeavesAlone(t *testing.T) {
	ns := nstest.New(t)
	f := mustOpen(t, testConfig())
	mends := watch(t, ns, f)
	rng := rand.New(rand.NewPCG(1, 2))
	must(t, f.Grant(lasts(time.Minute)))
	for i := range 30 {
		must(t, f.Apply(randomHalf(rng, 4096)))
		must(t, f.Renew(lasts(time.Minute)))
		must(t, f.SetVirtuals(fullConfig().Virtuals[:i%4]))
		nft(t, "add table inet other; add chain inet other c; delete table inet other; add table ip saru; delete table ip saru")
	}
	must(t, f.CloseShare())
	_, err := f.mend()
	must(t, err)
	select {
	case why := <-mends:
		t.Errorf("mended %q", why)
	case <-time.After(100 * time.Millisecond):
	}
}

// TestProtected shows that nobody else can change a table with an owner, that it outlives the owner, and that the next one takes it over. Linux 6.9 is needed for that; an older kernel
// must say so.
func TestProtected(t *testing.T) {
	nstest.New(t)
	f, err := Open(testConfig())
	must(t, err)
	st, err := f.Read()
	must(t, err)
	findings, err := Check(testConfig())
	must(t, err)
	lacks := slices.ContainsFunc(findings, func(f Finding) bool { return strings.Contains(string(f), "owner and persist") })
	if st.Protected == lacks {
		t.Fatalf("protected %v, findings %q", st.Protected, findings)
	}
	if !st.Protected {
		t.Logf("this kernel protects no table: %q", findings)
		must(t, f.Shutdown())
		return
	}
	must(t, f.Apply(buckets(4096, all)))
	must(t, f.Grant(lasts(time.Minute)))
	nft(t, "flush ruleset")
	mustBeRight(t, f)
	mustOwn(t, f, buckets(4096, all))
	if err := Remove(""); !errors.Is(err, unix.EPERM) {
		t.Errorf("Remove by somebody else: %v", err)
	}
	if err := InstallClosed(testConfig()); !errors.Is(err, unix.EPERM) {
		t.Errorf("InstallClosed by somebody else: %v", err)
	}
	if second, err := Open(testConfig()); !errors.Is(err, unix.EPERM) {
		t.Errorf("Open by somebody else: %v, %v", second, err)
	}
	must(t, f.SetVirtuals(fullConfig().Virtuals))
	mustBeRight(t, f)
	must(t, f.install()) // as mend does
	mustBeRight(t, f)
	must(t, f.Apply(buckets(4096, all)))
	// As if the process died.
	f.mu.Lock()
	f.release()
	f.mu.Unlock()
	if !strings.Contains(nft(t, "list", "ruleset"), "chain vip-192.0.2.1") {
		t.Error("the table is gone with its owner")
	}
	f, err = Open(testConfig())
	must(t, err)
	mustBeRight(t, f)
	mustOwn(t, f, make([]uint64, 64))
	must(t, f.Shutdown())
	must(t, InstallClosed(testConfig()))
	must(t, Remove(""))
}

func TestInstallAndRemove(t *testing.T) {
	nstest.New(t)
	nft(t, "add table inet other { chain c { type filter hook input priority 0; policy drop; } ; }; add table ip saru; add table inet saru-2")
	others := ruleset(t)
	must(t, Remove(""))
	must(t, InstallClosed(testConfig()))
	first := ruleset(t)
	nft(t, "add table inet "+coverTable(DefaultTable)) // as one that was killed in the middle leaves it behind where the kernel knows no owners
	must(t, InstallClosed(testConfig()))
	if diff := cmp.Diff(first, ruleset(t)); diff != "" {
		t.Errorf("a second time it is not the same:\n%s", diff)
	}
	f := mustOpen(t, testConfig())
	mustBeRight(t, f)
	must(t, f.Shutdown())
	if err := f.Apply(make([]uint64, 64)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Apply after Shutdown: %v", err)
	}
	if diff := cmp.Diff(first, ruleset(t)); diff != "" {
		t.Errorf("Shutdown leaves something else:\n%s", diff)
	}
	nft(t, "add table inet "+coverTable(DefaultTable))
	must(t, Remove(""))
	if diff := cmp.Diff(others, ruleset(t)); diff != "" {
		t.Errorf("left or took something:\n%s", diff)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	nstest.New(t)
	f := mustOpen(t, fullConfig())
	before := ruleset(t)
	findings, err := Check(fullConfig())
	must(t, err)
	t.Logf("findings: %q", findings)
	for _, finding := range findings {
		if !strings.Contains(string(finding), "owner and persist") { // Linux 6.9
			t.Errorf("finding on a kernel on which all of these tests pass: %s", finding)
		}
	}
	if diff := cmp.Diff(before, ruleset(t)); diff != "" {
		t.Errorf("Check changed something:\n%s", diff)
	}
	mustBeRight(t, f)
}

func TestBadConfig(t *testing.T) {
	nstest.New(t)
	for name, change := range map[string]func(*Config){
		"seed 0":        func(c *Config) { c.Function.Seed = 0 },
		"no buckets":    func(c *Config) { c.Function.Buckets = 0 },
		"many buckets":  func(c *Config) { c.Function.Buckets = flow.MaxBuckets + 1 },
		"no period":     func(c *Config) { c.Period = 0 },
		"no sense":      func(c *Config) { c.Virtuals[0].Sense = 0 },
		"no address":    func(c *Config) { c.Virtuals[0].Address = netip.Addr{} },
		"multicast":     func(c *Config) { c.Virtuals[0].Address = netip.MustParseAddr("224.0.0.1") },
		"zone":          func(c *Config) { c.Virtuals[0].Address = netip.MustParseAddr("fe80::1%eth0") },
		"twice":         func(c *Config) { c.Virtuals = append(c.Virtuals, c.Virtuals[0]) },
		"twice, mapped": func(c *Config) { c.Virtuals[1].Address = netip.AddrFrom16(vip4.As16()) },
		"mask":          func(c *Config) { c.Virtuals[0].Mask = 33 },
		"persist mask": func(c *Config) {
			c.Virtuals[0].Services = []Service{{Protocol: tcp, Port: 1, BySource: true, PersistMask: 33}}
		},
		"protocol":       func(c *Config) { c.Virtuals[0].Services = []Service{{Protocol: 1, Port: 1}} },
		"long interface": func(c *Config) { c.Inside = strings.Repeat("x", 16) },
		"no inside":      func(c *Config) { c.Masquerade = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"no network":     func(c *Config) { c.Inside, c.Masquerade = "in0", []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} },
		"NAT by dst-port": func(c *Config) {
			c.Virtuals[0].Sense, c.Virtuals[0].Services = flow.SenseOf(flow.DstPort), []Service{{Protocol: tcp, Port: 1, NAT: true}}
		},
		"one server, two functions": func(c *Config) {
			at := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}
			c.Inside = "in0"
			c.Virtuals[0].Services = []Service{{Protocol: tcp, Port: 80, NAT: true, Destinations: at}, {Protocol: tcp, Port: 81, NAT: true, BySource: true, Destinations: at}}
		},
		"destination of another family": func(c *Config) {
			c.Virtuals[0].Services = []Service{{Protocol: tcp, Port: 80, NAT: true, Destinations: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:80")}}}
		},
	} {
		cfg := testConfig()
		change(&cfg)
		if f, err := Open(cfg); err == nil {
			t.Errorf("%s: Open takes it", name)
			_ = f.Shutdown()
		}
		if strings.Contains(nft(t, "list", "ruleset"), "saru") {
			t.Fatalf("%s: left something behind", name)
		}
	}
}
