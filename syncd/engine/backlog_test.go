package engine

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The backlog has the newest datagrams, as many as fit, whatever their sizes and however its limit changes.
func TestBacklog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := backlog{limit: rapid.IntRange(500, 20_000).Draw(t, "limit")}
		least := b.limit
		var all [][]byte // from number 1
		now := t0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 30).Draw(t, "datagrams") {
					now = now.Add(time.Millisecond)
					d := bytes.Repeat([]byte{byte(len(all))}, rapid.IntRange(1, 450).Draw(t, "bytes"))
					all = append(all, d)
					b.add(now, uint64(len(all)), d)
				}
			},
			"limit": func(t *rapid.T) {
				b.setLimit(rapid.IntRange(500, 20_000).Draw(t, "limit"))
				least = min(least, b.limit)
			},
			"": func(t *rapid.T) {
				newest := uint64(len(all))
				oldest, sum := b.oldest(newest), 0
				for n := oldest; n <= newest; n++ {
					got, it := b.get(n)
					if !bytes.Equal(got, all[n-1]) {
						t.Fatalf("datagram %d of %d to %d: %v", n, oldest, newest, got)
					}
					if want := time.Duration(n-1) * time.Millisecond; it.sent != want {
						t.Fatalf("datagram %d was sent %v after the first", n, it.sent)
					}
					sum += len(got)
				}
				if got, _ := b.get(oldest - 1); got != nil {
					t.Fatalf("datagram %d is there as well", oldest-1)
				}
				if got, _ := b.get(newest + 1); got != nil {
					t.Fatal("a datagram that was not added")
				}
				// A page has room for less than a datagram when the next begins, and one page at a time makes room.
				pages := len(b.pages)
				if sum != b.bytes || b.taken > b.limit || newest > 0 && oldest > 1 && sum < least-450*(pages+2)-least/16 {
					t.Fatalf("%d bytes, counted %d, limit %d", sum, b.bytes, b.limit)
				}
				if newest > 0 && oldest <= newest && b.reach(now) != now.Sub(t0)-time.Duration(oldest)*time.Millisecond {
					t.Fatalf("reaches back for %v", b.reach(now))
				}
			},
		})
	})
}

func TestBacklogDoesNotAllocate(t *testing.T) {
	b, d, n := backlog{limit: 1 << 20}, make([]byte, 1000), uint64(0)
	add := func() { n++; b.add(t0, n, d) }
	for range 5000 {
		add()
	}
	if got := testing.AllocsPerRun(1000, add); got != 0 {
		t.Errorf("%v allocations for a datagram", got)
	}
}
