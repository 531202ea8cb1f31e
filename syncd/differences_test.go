package syncd

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// tableLookedAt is a table as a look sees the engine.
type tableLookedAt struct{ *table.Table }

func (t tableLookedAt) Lookup(now time.Time, r *ipvssync.Record) (table.Entry, bool, bool) {
	en, known := t.Get(now, r)
	return en, false, known
}

func differentConn(n int) ipvssync.Record {
	return ipvssync.Record{
		Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 4000),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"), Real: netip.MustParseAddrPort("10.9.0.7:8080"),
	}
}

// lookOver looks once at what differs, as a comparison over TCP does: buckets in order, a few entries at a time.
func lookOver(l *look, now time.Time, here, there *table.Table) {
	l.cut = uint64(now.UnixMicro())
	for b := range uint16(table.Buckets) {
		var entries []table.Entry
		there.Bucket(now, b, func(en *table.Entry) bool { entries = append(entries, *en); return true })
		for part := range slices.Chunk(entries, 3) {
			l.theirs(now, tableLookedAt{here}, part)
		}
	}
	for b := range uint16(table.Buckets) {
		l.lacking(now, tableLookedAt{here}, b)
	}
	l.end()
}

// What differs is found on both sides, whether or not the peer has anything of the bucket; what differs in another way at the second look is
// on its way; and what is beyond the limit is counted, not kept.
func TestLook(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a, b := peer.IDOf("a"), peer.IDOf("b")
	for _, limit := range []int{1000, 100, 1} {
		here, there := table.New(now), table.New(now)
		put := func(to *table.Table, n int, from peer.ID, clock uint64) {
			r := differentConn(n)
			if out := to.Put(now, &r, from, table.Stamp{Clock: clock}, 0); out != table.Inserted && out != table.Replaced {
				t.Fatalf("entry %d: %v", n, out)
			}
		}
		for n := range 5000 {
			put(here, n, a, 1)
			put(there, n, a, 1)
		}
		for n := range 100 { // 300 differences
			put(here, 5000+n, a, 1)
			put(there, 6000+n, b, 1)
			put(there, 20*n, b, 2)
		}
		put(there, 7000, b, uint64(now.Add(time.Second).UnixMicro())) // too young
		first := newLook(nil)
		first.limit = limit
		lookOver(first, now, here, there)
		if kept := min(300, limit); first.differ() != 300 || len(first.found) != kept {
			t.Errorf("at most %d: %d differ, %d are kept, want 300 and %d", limit, first.differ(), len(first.found), kept)
		}
		kinds := map[[2]bool]int{}
		for _, f := range first.found {
			kinds[[2]bool{f.here != nil, f.there != nil}]++
		}
		if limit == 1000 && (kinds[[2]bool{true, false}] != 100 || kinds[[2]bool{false, true}] != 100 || kinds[[2]bool{true, true}] != 100) {
			t.Errorf("found %v", kinds)
		}
		for n := range 100 {
			put(here, 6000+n, b, 1) // has arrived
			put(there, 20*n, b, 3)  // changes again
		}
		for n := range 50 {
			put(there, 8000+n, b, 1) // was not there before
		}
		second := newLook(first)
		lookOver(second, now, here, there)
		switch got := second.differ(); {
		case limit == 1000 && (got != 100 || second.more != 0):
			t.Errorf("%d differ at the second look, want 100", got)
		case limit != 1000 && (got < 100 || got > 300 || len(second.found) > limit):
			t.Errorf("at most %d: %d differ at the second look, %d are kept, want 100 to 300", limit, got, len(second.found))
		}
		for n := range 100 {
			put(there, 5000+n, a, 1)
			put(here, 20*n, b, 3)
		}
		for n := range 50 {
			put(here, 8000+n, b, 1)
		}
		third := newLook(second)
		if lookOver(third, now, here, there); third.differ() != 0 {
			t.Errorf("at most %d: %d differ at the third look, when all are equal", limit, third.differ())
		}
	}
}
