package transfer

import (
	"net/netip"
	"testing"

	"saru/lib/peer"
	wire "saru/proto/transfer"
)

// mill is a Source that makes its entries up and costs nothing.
type mill struct {
	state State
	each  int // entries a bucket
	entry Entry
}

func (m *mill) Digests(cut uint64, buckets []uint16, dst []Digest) []Digest { return dst }
func (m *mill) State() State                                                { return m.state }
func (m *mill) OriginName(id peer.ID) string                                { return "" }

func (m *mill) Bucket(bucket uint16, fn func(*Entry) bool) {
	e := &m.entry // one session at a time
	for i := range m.each {
		e.Record.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(bucket >> 8), byte(bucket)}), uint16(i))
		e.Stamp.Clock = 1e15 + uint64(i)*uint64(bucket)*1e6%900e6 // within 15 minutes
		if !fn(e) {
			return
		}
	}
}

// BenchmarkJoin is a join of a million entries over the loopback interface, signed, where neither table costs anything.
func BenchmarkJoin(b *testing.B) {
	const entries = 1_000_000
	m := &mill{state: newReplica(teacher).state, entry: conn4(1), each: (entries + wire.Buckets - 1) / wire.Buckets}
	m.state.Entries = uint64(m.each) * wire.Buckets
	auth := signed(b, key1)
	dial, _ := serveTCP(b, NewServer(m, auth, quiet))
	pupil := newReplica(pupilN)
	var res Result
	b.ReportAllocs()
	for b.Loop() {
		var err error
		res, err = Pull(b.Context(), dial(), pupil.config(auth), Request{
			Purpose: Join, Expect: Teacher{m.state.Node, m.state.Incarnation}, Learn: func([]Entry, map[peer.ID]string) {},
		})
		if err != nil || res.Entries != m.state.Entries {
			b.Fatalf("%d entries, error %v", res.Entries, err)
		}
	}
	b.SetBytes(int64(res.Bytes))
	b.ReportMetric(float64(res.Bytes)/1e6, "MB/join")
	b.ReportMetric(float64(res.Bytes)/float64(res.Entries), "B/entry")
}
