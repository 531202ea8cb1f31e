package engine

import (
	"fmt"
	"net/netip"
	"testing"

	"saru/lib/flow"
	"saru/proto/mirror"
)

// dealt is the share of member 0 of so many, each of which owns as many buckets; the next owner of a bucket is the member behind its owner.
func dealt(version uint32, members int) *Share {
	n := int(flow.Default.Buckets)
	s := &Share{
		Grant: mirror.NewGrant(1, version), Buckets: flow.Default.Buckets, Seed: flow.DefaultSeed,
		Functions: map[netip.Addr]flow.Function{vip: flow.Default}, Owned: make([]bool, n), Next: make([]bool, n), Held: make([]bool, n),
	}
	for b := range n {
		s.Owned[b], s.Next[b] = b%members == 0, members > 1 && b%members == members-1
		s.Held[b] = s.Owned[b]
	}
	return s
}

// BenchmarkKernelEntries shows what --kernel_entries next saves on one of N directors that share 20,000 connections evenly: entries in its
// kernel, and injections, for each connection of the farm.
func BenchmarkKernelEntries(b *testing.B) {
	const conns = 20000
	for _, next := range []bool{false, true} {
		for _, members := range []int{2, 3, 4, 8, 16, 64} {
			name := "all"
			if next {
				name = "next"
			}
			b.Run(fmt.Sprintf("%s/directors=%d", name, members), func(b *testing.B) {
				var entries, injected float64
				for b.Loop() {
					var sa, sb sink
					x, y := benchEngine(b, "a", &sa), benchEngine(b, "b", &sb)
					y.cfg.KernelNext, y.share.next = next, next
					now := meet(b, x, y, &sa, &sb)
					share := dealt(1, members)
					if _, err := y.SetShare(now, share); err != nil {
						b.Fatal(err)
					}
					own, before := 0, y.counters[Injected]
					for i := range conns {
						r := far(i)
						if bucket, ok := share.Bucket(&r); ok && share.Owned[bucket] {
							y.FromTap(now, kernelMessage(b, r))
							own++
						} else {
							x.FromTap(now, kernelMessage(b, r))
						}
					}
					x.Flush()
					for _, d := range sa.sent {
						y.FromNetwork(now, 0, stockA, d)
					}
					if y.Len() != conns {
						b.Fatalf("the replica has %d of %d", y.Len(), conns)
					}
					injected = float64(y.counters[Injected]-before) / conns
					entries = injected + float64(own)/conns
				}
				b.ReportMetric(entries, "kernel-entries/conn")
				b.ReportMetric(injected, "injected/conn")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkBring is how fast entries are brought when buckets come to this director that were nobody's concern here: of a replica of 100,000
// all, and a hundredth.
func BenchmarkBring(b *testing.B) {
	for _, part := range []int{1, 100} {
		b.Run(fmt.Sprintf("part=%d", part), func(b *testing.B) {
			var sa, sb sink
			x, y := benchEngine(b, "a", &sa), benchEngine(b, "b", &sb)
			y.share.next = true
			now := meet(b, x, y, &sa, &sb)
			for _, m := range kernelMessages(b, 38) {
				x.FromTap(now, m)
			}
			x.Flush()
			for _, d := range sa.sent {
				y.FromNetwork(now, 0, stockA, d)
			}
			version, before := uint32(0), y.counters[Brought]
			tell := func(s *Share) {
				version++
				s.Grant = mirror.NewGrant(1, version)
				if _, err := y.SetShare(now, s); err != nil {
					b.Fatal(err)
				}
				for y.BringOwned(now, 10000) {
				}
			}
			tell(shareOf(1, 1, nil, nil, nil))
			b.ReportAllocs()
			for b.Loop() {
				tell(dealt(1, part))
				b.StopTimer()
				tell(shareOf(1, 1, nil, nil, nil))
				y.bringStep(now, 1)
				b.StartTimer()
			}
			b.StopTimer()
			n := float64(y.counters[Brought] - before)
			if n == 0 {
				b.Fatal("nothing was brought")
			}
			b.ReportMetric(n/b.Elapsed().Seconds(), "brought/s")
			b.ReportMetric(float64(b.N)*tableSize/b.Elapsed().Seconds(), "looked-at/s")
		})
	}
}
