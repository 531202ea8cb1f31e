package table

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/proto/ipvssync"
)

// Looking ahead changes nothing, whatever happens to the table between the look and what it was for.
func TestExpectChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		with, without := New(t0), New(t0)
		now := t0
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			now = now.Add(drawTime(t, "pause", 3*time.Second))
			var batch []said
			for range rapid.IntRange(0, 60).Draw(t, "updates") {
				u := drawSaid(t, rapid.IntRange(0, 2000).Draw(t, "client"), now)
				batch = append(batch, u)
				with.Expect(u.r)
			}
			if rapid.Bool().Draw(t, "sweep") {
				with.Expire(now)
				without.Expire(now)
			}
			if rapid.Bool().Draw(t, "fetch") { // else what was noted is for a later one
				with.Fetch()
			}
			for _, u := range batch {
				a, b := with.Put(now, u.r, u.from, u.stamp, 0), without.Put(now, u.r, u.from, u.stamp, 0)
				if a != b {
					t.Fatalf("outcome %v, without looking ahead %v", a, b)
				}
			}
		}
		cut := uint64(now.UnixMicro())
		if with.Len() != without.Len() || fmt.Sprint(sums(with, cut)) != fmt.Sprint(sums(without, cut)) {
			t.Fatalf("%d entries, without looking ahead %d", with.Len(), without.Len())
		}
	})
}

// There is room for aheadMost notes, each time anew, and they need no memory.
func TestExpectRoom(t *testing.T) {
	for name, record := range map[string]func(int, uint32) *ipvssync.Record{"IPv4": tcp, "IPv6": udp6} {
		tab, r := New(t0), record(1, 900)
		tab.Put(t0, r, 1, at(1), 0)
		allocs := testing.AllocsPerRun(10, func() {
			n := 1
			for tab.Expect(r) {
				n++
			}
			if tab.Expect(r) || n != aheadMost {
				t.Errorf("%s: room for %d", name, n)
			}
			tab.Fetch()
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// BenchmarkAhead updates random entries of a full table after a look ahead at as many as the name says. One second of the table's time goes
// by meanwhile, so that every entry moves to another slot of the wheel.
func BenchmarkAhead(b *testing.B) {
	for _, n := range []int{1, 8, 38, 64, aheadMost} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab, clock, now, r := filled(million), uint64(1), t0.Add(time.Second), tcp(0, 900)
			batch := make([]ipvssync.Record, n)
			b.ReportAllocs()
			for b.Loop() {
				clock++
				for i := range batch {
					batch[i] = *r
					aim(&batch[i], rand.IntN(million))
				}
				if n > 1 {
					for i := range batch {
						tab.Expect(&batch[i])
					}
					tab.Fetch()
				}
				for i := range batch {
					tab.Put(now, &batch[i], 1, at(clock), 0)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/record")
		})
	}
}
