package ipvssync

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzParse feeds any bytes to the decoder: no panic, the ways to read a message agree, and what is decoded encodes to a message that
// decodes to the same and encodes to the same bytes.
func FuzzParse(f *testing.F) {
	for _, file := range goldenFiles(f) {
		for _, g := range loadGolden(f, file) {
			f.Add(g.data)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		m, err := Parse(b)
		if err != nil {
			if len(b) >= 4 && int(b[2])<<8|int(b[3]) == len(b) {
				t.Fatalf("message of a right size: %v", err)
			}
			return
		}
		var recs []Record
		var seen error
		for rec, err := range m.Records() {
			if seen != nil {
				t.Fatal("something after an error")
			}
			if seen = err; err == nil {
				recs = append(recs, rec)
			}
		}
		end, endErr := m.End()
		if seen == nil && (endErr != nil || end > len(b) || end < m.recordsAt()) {
			t.Fatalf("all records are good, but End() = %d, %v", end, endErr)
		}
		if len(recs) > int(m.Count) {
			t.Fatalf("%d records, header says %d", len(recs), m.Count)
		}
		if !bytes.Equal(b, original) {
			t.Fatal("decoding changed the message")
		}

		again := encode(t, nil, m.Version, m.SyncID, recs)
		if len(again) > len(b)+3 {
			t.Fatalf("%d bytes became %d", len(b), len(again))
		}
		_, recs2 := decode(t, again)
		if diff := cmp.Diff(recs, recs2, compareRecords); diff != "" {
			t.Fatalf("decoded again (-first +second):\n%s", diff)
		}
		if third := encode(t, nil, m.Version, m.SyncID, recs2); !bytes.Equal(again, third) {
			t.Fatalf("encoded again:\n%x\n%x", again, third)
		}
	})
}

// FuzzRecords builds records of any content: what the encoder takes, the decoder gives back.
func FuzzRecords(f *testing.F) {
	f.Add(uint8(6), uint32(0x102), uint16(1), uint32(900), uint32(0), []byte{10, 1, 0, 2, 10, 0, 0, 254, 10, 2, 0, 3}, uint16(1), []byte{}, []byte{}, uint8(3))
	f.Add(uint8(17), uint32(3), uint16(0), uint32(300), uint32(7), bytes.Repeat([]byte{0x20, 1}, 24), uint16(53), []byte("sip"), []byte("call"), uint8(0))
	f.Fuzz(func(t *testing.T, proto uint8, flags uint32, state uint16, timeout, fwmark uint32, addrs []byte, port uint16, name, data []byte, seq uint8) {
		third := len(addrs) / 3
		address := func(i int) netip.AddrPort {
			a, _ := netip.AddrFromSlice(addrs[i*third : (i+1)*third])
			return netip.AddrPortFrom(a, port+uint16(i))
		}
		rec := Record{
			Protocol: proto, Flags: flags, State: state, Timeout: timeout, Fwmark: fwmark,
			Client: address(0), Virtual: address(1), Real: address(2), PEName: name, PEData: data, HasSeq: seq&1 != 0,
		}
		if rec.HasSeq {
			rec.In, rec.Out = Seq{timeout, flags, fwmark}, Seq{fwmark, timeout, flags}
		}
		prefix := make([]byte, seq>>1)
		b := AppendHeaderV1(prefix, seq)
		b, err := AppendRecordV1(b, len(prefix), &rec)
		if err != nil {
			if len(b) != len(prefix)+HeaderLenV1 {
				t.Fatal("buffer changed on an error")
			}
			return
		}
		if n := len(b) - len(prefix) - HeaderLenV1; n != RecordLen(&rec) {
			t.Fatalf("%d bytes, RecordLen says %d", n, RecordLen(&rec))
		}
		if b, err = AppendRecordV1(b, len(prefix), &rec); err != nil {
			t.Fatal(err)
		}
		if err := FinishV1(b, len(prefix), 2); err != nil {
			t.Fatal(err)
		}
		_, recs := decode(t, b[len(prefix):])
		if diff := cmp.Diff([]Record{rec, rec}, recs, compareRecords); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
