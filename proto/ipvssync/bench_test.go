package ipvssync

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// perMessage is how many records a benchmark has in a message: as many as fit 1472 bytes with IPv4.
const perMessage = 40

// report adds the cost of one record.
func report(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/perMessage, "ns/record")
	b.ReportAllocs()
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"IPv4", "IPv6", "options"} {
		msg := fill(b, 1, perMessage, samples()[name])
		b.Run(name+"/Records", func(b *testing.B) {
			for b.Loop() {
				m, _ := Parse(msg)
				sink += countRecords(m)
			}
			report(b)
		})
		b.Run(name+"/Reader", func(b *testing.B) {
			for b.Loop() {
				m, _ := Parse(msg)
				sink += countReader(m)
			}
			report(b)
		})
	}
	msg := fill(b, 1, perMessage, tcp4())
	b.Run("IPv4/End", func(b *testing.B) {
		for b.Loop() {
			m, _ := Parse(msg)
			n, _ := m.End()
			sink += uint64(n)
		}
		report(b)
	})
	b.Run("IPv4/encoding-binary", func(b *testing.B) {
		for b.Loop() {
			recs, err := peerDecode(msg)
			if err != nil {
				b.Fatal(err)
			}
			sink += uint64(len(recs))
		}
		report(b)
	})
	v0 := fill(b, 0, perMessage, tcp4())
	b.Run("version0/Records", func(b *testing.B) {
		for b.Loop() {
			m, _ := Parse(v0)
			sink += countRecords(m)
		}
		report(b)
	})
}

func BenchmarkAppend(b *testing.B) {
	buf := make([]byte, 0, MaxSize)
	for _, name := range []string{"IPv4", "IPv6", "options"} {
		rec := samples()[name]
		b.Run(name+"/AppendRecordV1", func(b *testing.B) {
			for b.Loop() {
				sink += uint64(len(appendV1(buf, &rec, perMessage)))
			}
			report(b)
		})
		b.Run(name+"/Builder", func(b *testing.B) {
			var w Builder
			for b.Loop() {
				w.Reset(buf, 1, 0)
				for range perMessage {
					_ = w.Add(&rec)
				}
				out, _ := w.Finish()
				sink += uint64(len(out))
			}
			report(b)
		})
	}
	b.Run("IPv4/encoding-binary", func(b *testing.B) {
		rec := tcp4()
		for b.Loop() {
			out, err := peerEncode(&rec, perMessage)
			if err != nil {
				b.Fatal(err)
			}
			sink += uint64(len(out))
		}
		report(b)
	})
}

// peerHeader and peerRecord are the structures that encoding/binary fills by reflection: what one would write first, and what this package is
// measured against.
type peerHeader struct {
	Reserved, SyncID uint8
	Size             uint16
	Count, Version   uint8
	Spare            uint16
}

type peerRecord struct {
	Type, Protocol             uint8
	VerSize                    uint16
	Flags                      uint32
	State, CPort, VPort, DPort uint16
	Fwmark, Timeout            uint32
	Client, Virtual, Real      [4]byte
}

func peerDecode(msg []byte) ([]peerRecord, error) {
	r := bytes.NewReader(msg)
	var h peerHeader
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return nil, err
	}
	recs := make([]peerRecord, h.Count)
	for i := range recs {
		if err := binary.Read(r, binary.BigEndian, &recs[i]); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

func peerEncode(rec *Record, n int) ([]byte, error) {
	var w bytes.Buffer
	h := peerHeader{SyncID: 1, Size: uint16(HeaderLenV1 + n*RecordLen4), Count: uint8(n), Version: 1}
	if err := binary.Write(&w, binary.BigEndian, &h); err != nil {
		return nil, err
	}
	for range n {
		p := peerRecord{
			Protocol: rec.Protocol, VerSize: RecordLen4, Flags: rec.Flags, State: rec.State,
			CPort: rec.Client.Port(), VPort: rec.Virtual.Port(), DPort: rec.Real.Port(), Fwmark: rec.Fwmark, Timeout: rec.Timeout,
			Client: rec.Client.Addr().As4(), Virtual: rec.Virtual.Addr().As4(), Real: rec.Real.Addr().As4(),
		}
		if err := binary.Write(&w, binary.BigEndian, &p); err != nil {
			return nil, err
		}
	}
	return w.Bytes(), nil
}

// TestPeer makes sure that the benchmark compares equal work.
func TestPeer(t *testing.T) {
	rec := tcp4()
	got, err := peerEncode(&rec, perMessage)
	if err != nil {
		t.Fatal(err)
	}
	want := fill(t, 1, perMessage, rec)
	if !bytes.Equal(got, want) {
		t.Errorf("encoding/binary wrote\n%x\nwant\n%x", got, want)
	}
	recs, err := peerDecode(want)
	if err != nil || len(recs) != perMessage || recs[7].Client != rec.Client.Addr().As4() {
		t.Errorf("encoding/binary read %d records, %v", len(recs), err)
	}
}
