package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
)

// What is compared: connections that are opened on each of two directors at once; and how long both sides then have. A kernel holds what does
// not fill a message for up to three seconds (ip_vs_sync.c, IPVS_SYNC_FLUSH_TIME and IPVS_SYNC_CHECK_PERIOD).
const (
	benchBurst  = 3000
	benchSettle = 4 * time.Second
)

// side is one of the two that are compared, on directors of its own: the first two are loaded.
type side struct {
	name      string
	directors []*farm.Node
	churn     *churn
	pids      []int // of the processes that mirror, and of the kernel's threads
}

// processor is how much processor time the side's processes and threads have used: the first number of schedstat, in nanoseconds, as a
// kernel's thread may need less than the ticks of /proc/PID/stat. What the kernel does in soft interrupts, and in forwarding to hand records
// to its master thread, is in neither side's figure.
func (s *side) processor(t testing.TB) (sum time.Duration) {
	t.Helper()
	for _, pid := range s.pids {
		tasks, err := filepath.Glob(filepath.Join("/proc", itoa(pid), "task/*/schedstat"))
		must(t, err)
		if len(tasks) == 0 {
			t.Fatalf("%s: process %d has ended", s.name, pid)
		}
		for _, task := range tasks { // the Go runtime keeps its threads
			text, err := os.ReadFile(task)
			must(t, err)
			first, _, _ := strings.Cut(string(text), " ")
			n, err := strconv.ParseInt(first, 10, 64)
			must(t, err)
			sum += time.Duration(n)
		}
	}
	return sum
}

// outcome is what became of connections that were opened.
type outcome struct {
	made, missing, stale int // the latter two of all others' kernels
	rate                 float64
	processor            time.Duration
}

// measure opens connections and looks at the kernels benchSettle later.
func (s *side) measure(b *testing.B, open func(*churn) (span, float64)) (o outcome) {
	b.Helper()
	before := s.processor(b)
	made, rate := open(s.churn)
	time.Sleep(benchSettle)
	o.processor, o.rate = s.processor(b)-before, rate
	o.made, o.missing, o.stale, _ = shortfall(b, s.directors, s.churn.keys(made))
	if o.made != made.count() {
		b.Errorf("%s: %d connections of %d are in the kernels of those where they were opened", s.name, o.made, made.count())
	}
	if o.missing >= o.copies(s) || o.processor <= 0 {
		b.Errorf("%s: nothing was mirrored: %+v", s.name, o)
	}
	return o
}

// copies is how many entries the other kernels should have.
func (o *outcome) copies(s *side) int { return o.made * (len(s.directors) - 1) }

// each is the processor time for a connection.
func (o *outcome) each() time.Duration { return o.processor / time.Duration(o.made) }

func (o *outcome) add(p outcome) {
	o.made, o.missing, o.stale = o.made+p.made, o.missing+p.missing, o.stale+p.stale
	o.rate, o.processor = o.rate+p.rate, o.processor+p.processor
}

// BenchmarkBesideKernel compares syncd with the kernel's own sync in the same guest, each on three directors, all of which tell all others, one
// after the other. "idle" is without connections. "burst" opens connections as fast as two directors take them, once more on a segment that
// loses; "load" opens and ends them at a steady rate. Missing and stale are what the other kernels lack of it when both sides have had the
// same time; syncd must lack nothing in the end.
func BenchmarkBesideKernel(b *testing.B) {
	f := farm.New(b, farm.Spec{Directors: 6, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(b, d.AddServices(churnService))
	}
	ours, kernels := &side{name: "syncd", directors: f.Directors[:3]}, &side{name: "kernel", directors: f.Directors[3:]}
	kernelSync(b, kernels.directors)
	kernels.pids = slices.Concat(syncThreads(b))
	daemons := startSyncds(b, ours.directors)
	for _, pid := range slices.Concat(syncThreads(b)) {
		if !slices.Contains(kernels.pids, pid) {
			ours.pids = append(ours.pids, pid)
		}
	}
	for _, s := range []*side{ours, kernels} {
		if want := 2 * len(s.directors); len(s.pids) != want {
			b.Fatalf("%s: %d threads of the kernel, want a master and a backup of each director: %d", s.name, len(s.pids), want)
		}
		s.churn = newChurn(b, s.directors[:2]...)
	}
	for _, s := range daemons {
		ours.pids = append(ours.pids, s.Pid())
	}
	b.Run("idle", func(b *testing.B) { // the mirrors of three directors in a farm without connections, each
		for b.Loop() {
			for _, s := range []*side{kernels, ours} {
				before := s.processor(b)
				time.Sleep(benchSettle)
				used := s.processor(b) - before
				b.ReportMetric(used.Seconds()*100/benchSettle.Seconds()/float64(len(s.directors)), s.name+"-cpu-%")
			}
		}
		b.ReportMetric(0, "ns/op")
	})
	burst := func(c *churn) (span, float64) {
		began, made := time.Now(), span{c.next, c.next + 2*benchBurst}
		for i := range c.sources {
			for n := made.from + i; n < made.to; n += len(c.sources) {
				must(b, c.sources[i].Open(n, c.to))
			}
		}
		c.next = made.to
		return made, float64(made.count()) / time.Since(began).Seconds()
	}
	rate, length := churnPlan(b)
	for _, load := range []struct {
		name  string
		words string // of the loss on the sync segment
		open  func(*churn) (span, float64)
	}{
		{"burst", "", burst},
		{fmt.Sprintf("load=%d", 2*rate), "", func(c *churn) (span, float64) { return c.runFor(b, rate, length) }},
		{fmt.Sprintf("burst/loss=%d", lossWords[1].percent), lossWords[1].words, burst},
	} {
		b.Run(load.name, func(b *testing.B) {
			if load.words != "" {
				impair(b, f.Directors, load.words)
				defer impair(b, f.Directors, "")
			}
			var us, them outcome
			for b.Loop() {
				them.add(kernels.measure(b, load.open))
				us.add(ours.measure(b, load.open))
				all := ours.churn.keys(span{0, ours.churn.next})
				eventually(b, auditLimit, func() string {
					if _, missing, stale, _ := shortfall(b, ours.directors, all); missing+stale > 0 {
						return fmt.Sprintf("with syncd %d are missing and %d stale of %d", missing, stale, len(all))
					}
					return ""
				})
			}
			n := float64(b.N)
			for s, o := range map[*side]*outcome{ours: &us, kernels: &them} {
				b.ReportMetric(float64(o.made)/n, s.name+"-conns")
				b.ReportMetric(o.rate/n, s.name+"-conns/s")
				b.ReportMetric(float64(o.missing)/n, s.name+"-missing")
				b.ReportMetric(float64(o.stale)/n, s.name+"-stale")
				b.ReportMetric(float64(o.missing+o.stale)*100/float64(o.copies(s)), s.name+"-lacking-%")
				b.ReportMetric(o.each().Seconds()*1e6, s.name+"-cpu-us/conn")
			}
			b.ReportMetric(us.each().Seconds()/them.each().Seconds(), "syncd/kernel-cpu")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkLagBesideKernel compares, in a quiet farm, how long a new connection takes to another director's kernel: with syncd, and with the
// kernel's own sync at the settings with which it sends the soonest. See TestMirrorLag.
func BenchmarkLagBesideKernel(b *testing.B) {
	count, every := lagPlan(b)
	f := farm.New(b, farm.Spec{Directors: 2, RealServers: 2, Clients: 1, SyncSegment: true})
	serve(b, f)
	var sums [2]struct {
		p50, p99 time.Duration
		kept     int
	}
	for b.Loop() {
		for i, mirror := range []func(){
			func() { startSyncds(b, f.Directors) },
			func() { kernelSync(b, f.Directors) },
		} {
			for _, d := range f.Directors { // empty tables, and sysctls as they are after a boot
				must(b, d.PowerOff())
				must(b, d.PowerOn())
				must(b, d.AddServices(services[0]))
			}
			mirror()
			must(b, f.Directors[0].TakeVIP())
			var lags []time.Duration
			for range lagRounds {
				if lags = measureLag(b, f, count, every); len(lags)*100 >= lagKept*count {
					break
				}
			}
			if len(lags) == 0 {
				b.Fatal("the guest stood still all the time")
			}
			s := &sums[i]
			s.p50, s.p99, s.kept = s.p50+quantile(lags, 50), s.p99+quantile(lags, 99), s.kept+len(lags)
		}
	}
	n := float64(b.N)
	for i, name := range []string{"syncd", "kernel"} {
		b.ReportMetric(sums[i].p50.Seconds()*1e3/n, name+"-p50-ms")
		b.ReportMetric(sums[i].p99.Seconds()*1e3/n, name+"-p99-ms")
		b.ReportMetric(float64(sums[i].kept)/n, name+"-conns") // without those that a pause of the guest has falsified
	}
	b.ReportMetric(sums[1].p50.Seconds()/sums[0].p50.Seconds(), "kernel/syncd-p50")
	b.ReportMetric(sums[1].p99.Seconds()/sums[0].p99.Seconds(), "kernel/syncd-p99")
	b.ReportMetric(0, "ns/op")
}
