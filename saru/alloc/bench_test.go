package alloc

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

// BenchmarkMovement compares what changes of membership move, and how even the shares are, as a table of metrics: of all buckets, percent
// that change their owner when one of N leaves and when one joins, percent that do so needlessly (they were not the leaver's, or do not become
// the newcomer's; both kinds of change together), and the largest deviation from an exact share in percent of that share. It measures no time:
// the same history for each scheme, once a process.
func BenchmarkMovement(b *testing.B) {
	for _, sc := range []struct {
		name  string
		fresh func() scheme
	}{
		{"ours", func() scheme { return &ours{} }},
		{"modulo", func() scheme { return modulo{} }},
		{"rendezvous", func() scheme { return rendezvous{} }},
		{"xt_cluster-renumbered", func() scheme { return ranges{} }},
		{"xt_cluster-adopted", func() scheme { return &adopted{} }},
	} {
		for _, weighted := range []bool{false, true} {
			for _, n := range sizes {
				weights := "equal"
				if weighted {
					weights = "1to4"
				}
				b.Run(fmt.Sprintf("scheme=%s/weights=%s/directors=%d", sc.name, weights, n), func(b *testing.B) {
					b.StopTimer()
					m := replayOnce(b.Name(), sc.fresh, n, weighted)
					percent := func(moved, changes int) float64 {
						return 100 * float64(moved) / float64(changes) / buckets
					}
					b.ReportMetric(percent(m.movedLeave, m.leaves), "moved_leave_pct")
					b.ReportMetric(percent(m.movedJoin, m.joins), "moved_join_pct")
					b.ReportMetric(percent(m.beyondLeave+m.beyondJoin, m.leaves+m.joins), "needless_pct")
					b.ReportMetric(m.percent, "deviation_pct")
					b.ReportMetric(0, "ns/op") // leaves it out
				})
			}
		}
	}
}

// replayed holds the results by benchmark: the testing package calls a benchmark again and again, with larger b.N each time.
var replayed sync.Map

func replayOnce(name string, fresh func() scheme, n int, weighted bool) movement {
	if m, ok := replayed.Load(name); ok {
		return m.(movement)
	}
	m := replay(fresh(), n, weighted)
	replayed.Store(name, m)
	return m
}

var sink int

// BenchmarkAllocate is the time of one call for 64 directors.
func BenchmarkAllocate(b *testing.B) {
	const n = 64
	even := slices.Repeat([]uint32{100}, n)
	nobody := slices.Repeat([]uint8{None}, buckets)
	start := &farm{nobody, nobody, even}
	leave := newFarm(buckets, even...)
	leave.leave(n / 2)
	join := newFarm(buckets, even[1:]...)
	join.join(n/2, 100)
	reweigh := newFarm(buckets, even...)
	reweigh.weights = nil
	for i := range n {
		reweigh.weights = append(reweigh.weights, uint32(100+mix(uint64(i))%400))
	}
	for _, tc := range []struct {
		name string
		farm *farm
	}{{"start", start}, {"leave", leave}, {"join", join}, {"all-weights-change", reweigh}} {
		b.Run(tc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				owner, _ := Allocate(tc.farm.owner, tc.farm.next, tc.farm.weights)
				sink += len(owner)
			}
		})
	}
}
