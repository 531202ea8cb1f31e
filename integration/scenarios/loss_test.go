package scenarios

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"saru/integration/farm"
)

// Load of the scenario with loss: how many connections a second are opened on each of two directors, and for how long. An emulated guest
// with two CPUs, which three syncds share with the load, can do about twice as many. SARU_CHURN_RATE changes the rate.
const (
	churnRate = 600
	churnTime = 2 * time.Second
)

// lossWords are the kinds of loss. What is reordered overtakes what was sent in the 3 to 7 ms before it.
var lossWords = []struct {
	percent int
	words   string
}{
	{1, "loss 1% delay 5ms 2ms reorder 10% duplicate 1% limit 100000"},
	{5, "loss 5% delay 5ms 2ms reorder 10% duplicate 1% limit 100000"},
	{20, "loss 20% delay 5ms 2ms reorder 10% duplicate 1% limit 100000"},
}

// impair has all directors lose what comes by the sync segment.
func impair(t testing.TB, directors []*farm.Node, words string) {
	t.Helper()
	for _, d := range directors {
		must(t, d.Impair(farm.Sync, words))
	}
}

// impaired adds up what the directors have received and lost.
func impaired(t testing.TB, directors []*farm.Node) (passed, dropped uint64) {
	t.Helper()
	for _, d := range directors {
		p, n, err := d.Impaired(farm.Sync)
		must(t, err)
		passed, dropped = passed+p, dropped+n
	}
	return passed, dropped
}

// kernelGroup keeps the kernels' own messages from syncd.
const kernelGroup = "224.0.0.82"

// kernelSync has the kernels mirror by themselves, each to all others, with the settings under which they send the most.
func kernelSync(t testing.TB, directors []*farm.Node) {
	t.Helper()
	for _, d := range directors {
		must(t, d.Sysctl("net/ipv4/vs/sync_threshold", "0 0"))
		must(t, d.Sysctl("net/ipv4/vs/sync_refresh_period", "10"))
		for _, role := range []string{"master", "backup"} {
			_, err := d.Run("ipvsadm", "--start-daemon", role, "--mcast-interface", string(farm.Sync), "--mcast-group", kernelGroup, "--syncid", "1")
			must(t, err)
		}
	}
}

// churnPlan is the load.
func churnPlan(t testing.TB) (rate int, length time.Duration) {
	t.Helper()
	rate = churnRate
	if v := os.Getenv("SARU_CHURN_RATE"); v != "" {
		var err error
		rate, err = strconv.Atoi(v)
		must(t, err)
	}
	return rate, churnTime * time.Duration(rounds(t, 1))
}

// countersOf adds up the counters of all daemons.
func countersOf(t testing.TB, daemons []*daemon) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, s := range daemons {
		for name, n := range s.ask(t).Counters {
			all[name] += n
		}
	}
	return all
}

// raised is what counters have gone up by since.
func raised(now, before map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range now {
		if n != before[name] {
			out[name] = n - before[name]
		}
	}
	return out
}

// TestLoss: what the sync segment loses, reorders and doubles is repaired: a second after the load has stopped no director lacks anything.
// Beside it, under the same load and the same loss, the kernel's own sync on other directors. These have more time: a kernel holds what does
// not fill a message for up to three seconds (ip_vs_sync.c, IPVS_SYNC_FLUSH_TIME and IPVS_SYNC_CHECK_PERIOD).
func TestLoss(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 6, RealServers: 2, SyncSegment: true})
	rate, length := churnPlan(t)
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	ours, kernels := f.Directors[:3], f.Directors[3:]
	kernelSync(t, kernels)
	daemons := startSyncds(t, ours)
	c, kc := newChurn(t, ours[:2]...), newChurn(t, kernels[:2]...)
	kernelsLack := 0
	for _, loss := range lossWords {
		name := fmt.Sprintf("loss %d %%, reordering, duplication", loss.percent)
		impair(t, f.Directors, loss.words)
		kMade, kRate := kc.runFor(t, rate, length)

		before := countersOf(t, daemons)
		passedBefore, lostBefore := impaired(t, ours)
		made, got := c.runFor(t, rate, length)
		stopped := time.Now()
		time.Sleep(time.Second)
		for _, s := range daemons {
			st := s.ask(t)
			if n := st.Connections.Local + st.Connections.Remote; n != c.next {
				t.Errorf("%s: the replica of %s has %d of %d entries %v after the load", name, s.node.Name, n, c.next, time.Since(stopped))
			}
			for _, p := range st.Peers {
				if p.GivenUp != 0 {
					t.Errorf("%s: %s has %+v", name, s.node.Name, p)
				}
			}
		}
		for i, found := range lookUpOnAll(t, ours, c.keys(made)) {
			if n := made.count() - len(found); n != 0 {
				t.Errorf("%s: the kernel of %s lacks %d of %d entries", name, ours[i].Name, n, made.count())
			}
		}
		asked := time.Since(stopped)
		total, missing, stale, _ := shortfall(t, ours, c.keys(made))
		passed, lost := impaired(t, ours)
		passed, lost = passed-passedBefore, lost-lostBefore
		delta := raised(countersOf(t, daemons), before)
		t.Logf("RESULT %s; syncd: %d entries at %.0f/s on two directors; %d packets of %d lost at three; %.0f bytes of repair for each lost one "+
			"(a datagram has %d); replicas looked at 1 s after the stop, kernels up to %v after it; listed then: %d missing and %d stale of %d at peers",
			name, total, got, lost, passed+lost, float64(delta["repair_bytes"])/float64(max(1, lost)), delta["sent_bytes"]/max(1, delta["sent_datagrams"]),
			asked.Round(100*time.Millisecond), missing, stale, 2*total)
		t.Logf("%s: counters of all: %v", name, delta)
		if total != made.count() || missing+stale > 0 {
			t.Errorf("%s: %d entries, want %d; %d are missing, %d are stale", name, total, made.count(), missing, stale)
		}
		if delta["repair_recovered"] == 0 {
			t.Errorf("%s: nothing was repaired", name)
		}

		total, missing, stale, _ = shortfall(t, kernels, kc.keys(kMade))
		t.Logf("RESULT %s; kernel's own sync: %d entries at %.0f/s on two directors; %d missing and %d stale of %d at peers", name, total, kRate, missing, stale, 2*total)
		kernelsLack += missing + stale
	}
	// Of 1 % alone a kernel may lose nothing: it sends few messages.
	if kernelsLack == 0 {
		t.Error("the kernel's own sync lacks nothing: nothing was lost on the segment")
	}
	impair(t, f.Directors, "")
	allEqual(t, "after the loss", daemons)
}
