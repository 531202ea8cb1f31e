package mcast

import (
	"fmt"
	"testing"
	"time"
)

func TestSteadyStateAllocatesNothing(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4}).Links()[0]
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4}).Links()[0]
	bufs := [][]byte{make([]byte, 1448), make([]byte, 1448), make([]byte, 44)}
	msgs := messages(16, 1500)
	allocs := testing.AllocsPerRun(200, func() {
		if _, err := a.WriteBatch(bufs); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(bufs); {
			k, err := b.ReadBatch(msgs)
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	})
	if allocs != 0 && !raceEnabled {
		t.Errorf("%v allocations for 3 datagrams sent and received", allocs)
	}
}

// BenchmarkExchange sends and receives full datagrams over a veth pair, in batches.
func BenchmarkExchange(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			peer := segment(b)
			tx := open(b, Config{Interfaces: []string{"a0"}, Group: group4}).Links()[0]
			rx := openIn(b, peer, Config{Interfaces: []string{"b0"}, Group: group4}).Links()[0]
			_ = rx.SetReadDeadline(time.Time{})
			bufs := make([][]byte, batch)
			for i := range bufs {
				bufs[i] = make([]byte, 1448)
			}
			msgs := messages(batch, 1500)
			b.ReportAllocs()
			b.SetBytes(1448 * int64(batch))
			for b.Loop() {
				if _, err := tx.WriteBatch(bufs); err != nil {
					b.Fatal(err)
				}
				for n := 0; n < batch; {
					k, err := rx.ReadBatch(msgs)
					if err != nil {
						b.Fatal(err)
					}
					n += k
				}
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "datagrams/s")
		})
	}
}
