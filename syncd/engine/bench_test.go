package engine

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// tableSize is how many connections the replica of a benchmark has, and how many datagrams of the stream it takes to touch each once.
const tableSize = 100_000

// sink is an output that costs next to nothing. It keeps what is sent when told to.
type sink struct {
	datagrams, records int
	keep               bool
	sent               [][]byte
}

func (s *sink) Send(b []byte) {
	s.datagrams++
	if s.keep {
		s.sent = append(s.sent, append([]byte(nil), b...))
	}
}

func (s *sink) Inject(*ipvssync.Record) { s.records++ }

func benchEngine(t testing.TB, name string, s *sink) *Engine {
	t.Helper()
	keys, err := seal.Parse([]byte("1 abababababababababababababababababababababababababababababababab"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewRing(keys, "syncd", "224.0.0.81:8848")
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{
		Node: name, Incarnation: 7, Links: []string{"eth0", "eth1"}, SyncID: 1, Ring: ring, Tick: tickVS, Teaches: teaches(name), Output: s, Now: t0,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

// far is connection i of many.
func far(i int) ipvssync.Record {
	r := conn(0)
	r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(1024+i%60000))
	return r
}

// kernelMessages are messages of per records each, which touch every connection of the table once, not in the order of its entries.
func kernelMessages(t testing.TB, per int) [][]byte {
	var msgs [][]byte
	for i := 0; i < tableSize; i += per {
		var recs []ipvssync.Record
		for j := range min(per, tableSize-i) {
			recs = append(recs, far((i+j)*7919%tableSize))
		}
		msgs = append(msgs, kernelMessage(t, recs...))
	}
	return msgs
}

// meet makes two engines know each other.
func meet(t testing.TB, a, b *Engine, sa, sb *sink) time.Time {
	now := t0
	sa.keep, sb.keep = true, true
	for range 100 {
		now = now.Add(20 * time.Millisecond)
		for _, pair := range [][2]*Engine{{a, b}, {b, a}} {
			pair[0].Tick(now)
			if pull, ok := pair[0].NextPull(now); ok {
				session(now, now, pair[0], pair[1], pull, 0)
			}
			if pair[0].Unconfirmed() {
				pair[0].Injected(now, pair[0].Mark())
			}
		}
		for _, d := range sa.sent {
			b.FromNetwork(now, 0, stockA, d)
		}
		for _, d := range sb.sent {
			a.FromNetwork(now, 0, stockA, d)
		}
		sa.sent, sb.sent = nil, nil
	}
	if !a.Synced() || !b.Synced() || b.peers.Get(a.self) == nil {
		t.Fatal("the engines do not know each other")
	}
	return now
}

// alone lets an engine find out that nobody else is there.
func alone(e *Engine) time.Time {
	now := t0
	for !e.Synced() {
		now = now.Add(TickInterval)
		e.Tick(now)
		if e.Unconfirmed() {
			e.Injected(now, e.Mark())
		}
	}
	return now
}

// stream returns datagrams of a's stream, full ones, as many as are asked for; each touches other connections than the one before.
func stream(t testing.TB, a *Engine, s *sink, now time.Time, msgs [][]byte, from, datagrams int) ([][]byte, int) {
	t.Helper()
	s.keep, s.sent = true, make([][]byte, 0, datagrams+1)
	for len(s.sent) < datagrams {
		a.FromTap(now, msgs[from%len(msgs)])
		from++
	}
	out := s.sent
	s.sent = nil
	return out, from
}

// BenchmarkOut is the way of a record from the kernel's message to a signed datagram, with a table of 100,000 connections.
func BenchmarkOut(b *testing.B) {
	for _, per := range []int{1, 40} {
		b.Run(fmt.Sprintf("records=%d", per), func(b *testing.B) {
			var s sink
			e, msgs := benchEngine(b, "a", &s), kernelMessages(b, per)
			now, i := alone(e), 0
			for _, m := range msgs {
				e.FromTap(now, m)
			}
			e.Flush()
			before := e.counters[SentRecords]
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Duration(per) * time.Microsecond)
				e.FromTap(now, msgs[i%len(msgs)])
				i++
			}
			b.StopTimer()
			n := e.counters[SentRecords] - before
			if n != uint64(i*per) || e.table.Len() != tableSize {
				b.Fatalf("%d of %d records sent, %d in the table, %d damaged", n, i*per, e.table.Len(), e.counters[TapDamaged])
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(n)/float64(s.datagrams), "records/datagram")
		})
	}
}

// BenchmarkIn is the way of a record from a signed datagram of 38 to the injection, with a table of 100,000 connections. The
// datagrams are made outside of the timer, in batches that each touch every connection at least once.
func BenchmarkIn(b *testing.B) {
	for _, links := range []int{1, 2} {
		b.Run(fmt.Sprintf("links=%d", links), func(b *testing.B) {
			var sa, sb sink
			x, y := benchEngine(b, "a", &sa), benchEngine(b, "b", &sb)
			now := meet(b, x, y, &sa, &sb)
			msgs := kernelMessages(b, 38)
			batch, from := stream(b, x, &sa, now, msgs, 0, len(msgs))
			for _, d := range batch {
				y.FromNetwork(now, 0, stockA, d)
			}
			i, records, before := len(batch), sb.records, y.counters
			b.ReportAllocs()
			for b.Loop() {
				if i == len(batch) {
					b.StopTimer()
					now = now.Add(100 * time.Millisecond)
					batch, from = stream(b, x, &sa, now, msgs, from, len(msgs))
					i = 0
					b.StartTimer()
				}
				for l := range links {
					y.FromNetwork(now, l, stockA, batch[i])
				}
				i++
			}
			b.StopTimer()
			n := sb.records - records
			if n == 0 || y.table.Len() != tableSize || y.counters[RemoteStale] != before[RemoteStale] || y.counters[DropReplayed] != before[DropReplayed] {
				b.Fatalf("%d injected, %d in the table: %v", n, y.table.Len(), y.counters)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkDrop is what a datagram costs that is not believed: the price of a flood.
func BenchmarkDrop(b *testing.B) {
	var sa, sb sink
	x, y := benchEngine(b, "a", &sa), benchEngine(b, "b", &sb)
	now := meet(b, x, y, &sa, &sb)
	batch, _ := stream(b, x, &sa, now, kernelMessages(b, 38), 0, 1)
	forged := append([]byte(nil), batch[0]...)
	forged[len(forged)-1] ^= 1
	version := append([]byte(nil), batch[0]...)
	version[len(version)-76]++
	for name, d := range map[string][]byte{
		"forged": forged, "version": version, "stock": kernelMessage(b, conn(1)), "truncated": batch[0][:700],
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				y.FromNetwork(now, 0, stockA, d)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "datagrams/s")
		})
	}
}

// In the steady state, that is for connections that the table has, nothing allocates on either way.
func TestNoAllocations(t *testing.T) {
	var sa, sb sink
	a, b := benchEngine(t, "a", &sa), benchEngine(t, "b", &sb)
	now := meet(t, a, b, &sa, &sb)
	msgs := kernelMessages(t, 38)
	batch, from := stream(t, a, &sa, now, msgs, 0, len(msgs))
	for _, d := range batch {
		b.FromNetwork(now, 0, stockA, d)
	}
	now = now.Add(time.Second)
	fresh, _ := stream(t, a, &sa, now, msgs, from, 200)
	sa.keep, sa.sent = false, nil
	for name, fn := range map[string]func(){
		"in": func() { b.FromNetwork(now, 0, stockA, fresh[0]); fresh = fresh[1:] },
	} {
		records := sb.records
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if sb.records-records < 100*30 {
			t.Errorf("%s: %d records", name, sb.records-records)
		}
	}
	if n := b.table.Len(); n != tableSize {
		t.Errorf("%d entries", n)
	}
	if a.table.Origin(a.self) != tableSize || b.table.Origin(a.self) != tableSize {
		t.Errorf("origins: %d and %d", a.table.Origin(a.self), b.table.Origin(a.self))
	}
	var walked int
	for c := (table.Cursor{}); !c.Done; {
		c = b.table.Walk(now, c, 1<<20, func(*table.Entry) bool { walked++; return true })
	}
	if walked != tableSize {
		t.Errorf("walked %d", walked)
	}
}
