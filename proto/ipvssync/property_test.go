package ipvssync

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// recordGen draws records that the given version can carry in full.
func recordGen(version uint8) *rapid.Generator[Record] {
	return rapid.Custom(func(t *rapid.T) Record {
		six := version == 1 && rapid.Bool().Draw(t, "six")
		addr := func(label string) netip.AddrPort {
			n := 4
			if six {
				n = 16
			}
			a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label))
			return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, label+" port"))
		}
		seq := func(label string) Seq {
			return Seq{rapid.Uint32().Draw(t, label), rapid.Uint32().Draw(t, label), rapid.Uint32().Draw(t, label)}
		}
		r := Record{
			Protocol: rapid.Byte().Draw(t, "protocol"), State: rapid.Uint16().Draw(t, "state"),
			Client: addr("client"), Virtual: addr("virtual"), Real: addr("real"),
			HasSeq: rapid.Bool().Draw(t, "has seq"),
		}
		if r.HasSeq {
			r.In, r.Out = seq("in"), seq("out")
		}
		if version == 0 {
			r.Flags = uint32(rapid.Uint16().Draw(t, "flags")) &^ FlagSeqMask
			if r.HasSeq {
				r.Flags |= rapid.SampledFrom([]uint32{FlagInSeq, FlagOutSeq, FlagSeqMask}).Draw(t, "seq flags")
			}
			return r
		}
		r.Flags = rapid.Uint32().Draw(t, "flags")
		r.Timeout = rapid.Uint32().Draw(t, "timeout")
		r.Fwmark = rapid.Uint32().Draw(t, "fwmark")
		r.PEName = rapid.SliceOfN(rapid.Byte(), 0, MaxPEName).Draw(t, "engine")
		if len(r.PEName) > 0 {
			r.PEData = rapid.SliceOfN(rapid.Byte(), 0, MaxPEData).Draw(t, "engine data")
		}
		return r
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		version := uint8(rapid.IntRange(0, 1).Draw(rt, "version"))
		recs := rapid.SliceOfN(recordGen(version), 0, 60).Draw(rt, "records")
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(rt, "prefix")
		trailer := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(rt, "trailer")
		start := len(prefix)
		b := encode(t, bytes.Clone(prefix), version, 3, recs)
		finish := FinishV0
		if version == 1 {
			b = PadV1(b, start)
			finish = FinishV1
		}
		end := len(b) - start
		b = append(b, trailer...)
		if err := finish(b, start, len(recs)); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(b[:start], prefix) {
			rt.Fatal("prefix changed")
		}
		m, got := decode(t, b[start:])
		if diff := cmp.Diff(recs, got, compareRecords); diff != "" {
			rt.Fatalf("(-want +got):\n%s", diff)
		}
		if gotEnd, err := m.End(); err != nil || gotEnd != end || !bytes.Equal(m.Bytes()[gotEnd:], trailer) {
			rt.Fatalf("End() = %d, %v; want %d", gotEnd, err, end)
		}
	})
}

// fill makes a message of n records.
func fill(t testing.TB, version uint8, n int, rec Record) []byte {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = rec
	}
	return encode(t, nil, version, 1, recs)
}

// samples are the records whose cost is watched.
func samples() map[string]Record {
	v6 := tcp4()
	v6.Client, v6.Virtual, v6.Real = ap("[2001:db8::2]:40000"), ap("[2001:db8::fe]:80"), ap("[2001:db8:1::3]:8080")
	opts := tcp4()
	opts.Flags |= FlagSeqMask
	opts.HasSeq, opts.In, opts.Out = true, Seq{1, 2, 3}, Seq{4, 5, 6}
	opts.PEName, opts.PEData = []byte("sip"), []byte("a84b4c76e66710@pc33.example.com")
	return map[string]Record{"IPv4": tcp4(), "IPv6": v6, "options": opts}
}

// sink keeps results alive.
var sink uint64

// TestAllocations is the gate that neither direction allocates.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, MaxSize)
	for name, rec := range samples() {
		msg := fill(t, 1, 20, rec)
		m, _ := Parse(msg)
		damaged := bytes.Clone(msg)
		damaged[len(damaged)-RecordLen(&rec)] = 2 // type of the last record
		var w Builder
		for op, fn := range map[string]func(){
			"Parse":        func() { m, _ := Parse(msg); sink += uint64(m.Count) },
			"End":          func() { n, _ := m.End(); sink += uint64(n) },
			"Records":      func() { sink += countRecords(m) },
			"Reader":       func() { sink += countReader(m) },
			"AppendV1":     func() { sink += uint64(len(appendV1(buf, &rec, 20))) },
			"damaged":      func() { m, _ := Parse(damaged); sink += countRecords(m) },
			"Builder":      func() { w.Reset(buf, 1, 1472); _ = w.Add(&rec); b, _ := w.Finish(); sink += uint64(len(b)) },
			"AppendErrors": func() { b, _ := AppendRecordV1(buf, 0, &rec); sink += uint64(len(b)) },
		} {
			if n := testing.AllocsPerRun(100, fn); n != 0 {
				t.Errorf("%s of %s: %v allocations", op, name, n)
			}
		}
	}
	v0 := fill(t, 0, 20, tcp4())
	if n := testing.AllocsPerRun(100, func() { m, _ := Parse(v0); sink += countRecords(m) }); n != 0 {
		t.Errorf("decoding version 0: %v allocations", n)
	}
}

func countRecords(m Message) (n uint64) {
	for rec, err := range m.Records() {
		if err == nil {
			n += uint64(rec.Client.Port())
		}
	}
	return n
}

func countReader(m Message) (n uint64) {
	var rec Record
	for r := m.Reader(); r.Next(&rec) == nil; {
		n += uint64(rec.Client.Port())
	}
	return n
}

func appendV1(b []byte, rec *Record, n int) []byte {
	b = AppendHeaderV1(b, 1)
	for range n {
		b, _ = AppendRecordV1(b, 0, rec)
	}
	_ = FinishV1(b, 0, n)
	return b
}
