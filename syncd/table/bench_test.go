package table

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"saru/proto/ipvssync"
)

const million = 1_000_000

// aim makes r the record of another client. As in the engine, there is one record, which lies in the cache; only the table does not.
func aim(r *ipvssync.Record, n int) {
	r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 4000)
}

func aim6(r *ipvssync.Record, n int) {
	a := r.Client.Addr().As16()
	a[13], a[14], a[15] = byte(n>>16), byte(n>>8), byte(n)
	r.Client = netip.AddrPortFrom(netip.AddrFrom16(a), 53)
}

func filled(n int) *Table {
	tab, r := New(t0), tcp(0, 900)
	for i := range n {
		aim(r, i)
		tab.Put(t0, r, 1, at(1), 0)
	}
	return tab
}

// BenchmarkPut updates random entries of a full table: a cache miss or two each.
func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1000, million} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab, r, clock := filled(n), tcp(0, 900), uint64(1)
			b.ReportAllocs()
			for b.Loop() {
				clock++
				aim(r, rand.IntN(n))
				tab.Put(t0, r, 1, at(clock), 0)
			}
		})
	}
}

// BenchmarkLookThenPut is what the engine does with a record of its own kernel: the stamp depends on what is known.
func BenchmarkLookThenPut(b *testing.B) {
	for _, n := range []int{1000, million} {
		tab, r, clock := filled(n), tcp(0, 900), uint64(1)
		b.Run(fmt.Sprintf("twice/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				clock++
				aim(r, rand.IntN(n))
				_, newest, _ := tab.NewestAt(tab.Slot(r), r)
				tab.Put(t0, r, 1, Stamp{newest.Grant, clock}, 0)
			}
		})
		b.Run(fmt.Sprintf("slot/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				clock++
				aim(r, rand.IntN(n))
				s := tab.Slot(r)
				_, newest, _ := tab.NewestAt(s, r)
				tab.PutAt(s, t0, r, 1, Stamp{newest.Grant, clock}, 0)
			}
		})
	}
}

// BenchmarkFill enters a million connections and lets them expire.
func BenchmarkFill(b *testing.B) {
	var put, expire time.Duration
	for b.Loop() {
		start := time.Now()
		tab := filled(million)
		put += time.Since(start)
		start = time.Now()
		if n := tab.Expire(t0.Add(time.Hour)); n != million {
			b.Fatalf("%d entries expired", n)
		}
		expire += time.Since(start)
	}
	b.ReportMetric(float64(put.Nanoseconds())/million/float64(b.N), "ns/put")
	b.ReportMetric(float64(expire.Nanoseconds())/million/float64(b.N), "ns/expiry")
}

// BenchmarkDigest computes the digests of all buckets.
func BenchmarkDigest(b *testing.B) {
	tab, all := filled(million), uint32(0)
	for b.Loop() {
		all = 0
		for bucket := range uint16(Buckets) {
			_, n := tab.Digest(bucket, 5)
			all += n
		}
	}
	if all != million {
		b.Errorf("digests of %d entries", all)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/million/float64(b.N), "ns/conn")
}

// memory returns what a table of a million connections takes for each, in bytes: of the heap, and of what was had from the kernel.
func memory(tb testing.TB, r *ipvssync.Record, aim func(*ipvssync.Record, int)) (heap, sys float64) {
	tb.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tab := New(t0)
	for i := range million {
		aim(r, i)
		tab.Put(t0, r, 1, at(1), 0)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if tab.Len() != million {
		tb.Fatalf("%d entries", tab.Len())
	}
	return float64(after.HeapAlloc-before.HeapAlloc) / million, float64(after.Sys-before.Sys) / million
}

// BenchmarkMemory reports memory, not time. What was had from the kernel is right with one benchmark in a process only, as memory is used again.
func BenchmarkMemory(b *testing.B) {
	for _, f := range []struct {
		name string
		r    *ipvssync.Record
		aim  func(*ipvssync.Record, int)
	}{{"IPv4", tcp(0, 900), aim}, {"IPv6", udp6(0, 900), aim6}} {
		b.Run(f.name, func(b *testing.B) {
			var heap, sys float64
			for b.Loop() {
				h, s := memory(b, f.r, f.aim)
				heap, sys = h, max(sys, s)
			}
			b.ReportMetric(heap, "bytes/conn")
			b.ReportMetric(sys, "sys-bytes/conn")
		})
	}
}

// A million connections take no more than the project promises, everything counted.
func TestMemory(t *testing.T) {
	if heap, _ := memory(t, tcp(0, 900), aim); heap > 92 {
		t.Errorf("an IPv4 connection takes %.1f bytes, want 92 at most", heap)
	}
	if heap, _ := memory(t, udp6(0, 900), aim6); heap > 132 {
		t.Errorf("an IPv6 connection takes %.1f bytes, want 132 at most", heap)
	}
}

func TestNoAllocation(t *testing.T) {
	tab := filled(1000)
	r, clock, now := tcp(1, 900), uint64(1), t0
	if n := testing.AllocsPerRun(100, func() {
		clock++
		now = now.Add(time.Second)
		s := tab.Slot(r)
		_, newest, known := tab.NewestAt(s, r)
		if out := tab.PutAt(s, now, r, 1, Stamp{newest.Grant, clock}, 0); !known || out != Replaced || !tab.Has(r) {
			t.Fatalf("known %v, outcome %v", known, out)
		}
		tab.Put(now, r, 1, at(clock), 0)
		if _, count := tab.Digest(BucketOf(r), clock); count == 0 {
			t.Fatal("not in the digest")
		}
	}); n != 0 {
		t.Errorf("%v allocations per update", n)
	}
}
