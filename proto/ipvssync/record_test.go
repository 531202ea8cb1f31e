package ipvssync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var compareRecords = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// tcp4 is the connection of most rows here and of layout.hex.
func tcp4() Record {
	return Record{
		Protocol: ProtocolTCP, Flags: FlagTunnel, State: TCPEstablished, Timeout: 900,
		Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:80"), Real: ap("10.2.0.3:8080"),
	}
}

func TestRecords(t *testing.T) {
	v4 := Record{
		Protocol: ProtocolTCP, Flags: FlagInactive | FlagTunnel, State: TCPEstablished, Timeout: 900, Fwmark: 42,
		Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:80"), Real: ap("10.2.0.3:8080"),
	}
	seq := Record{
		Protocol: ProtocolTCP, Flags: FlagSeqMask, State: TCPEstablished, Timeout: 900, HasSeq: true, In: Seq{1, 2, 3}, Out: Seq{4, 0xfffffffb, 6},
		Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:21"), Real: ap("10.2.0.3:21"), PEName: []byte("sip"), PEData: []byte("call42"),
	}
	template := Record{
		Protocol: ProtocolTCP, Flags: FlagTemplate, State: TemplateAssured, Timeout: 60,
		Client: ap("10.1.0.0:0"), Virtual: ap("10.0.0.254:21"), Real: ap("10.2.0.3:0"),
	}
	mapped := Record{
		Protocol: ProtocolTCP, Client: ap("[::ffff:10.1.0.2]:1"), Virtual: ap("[2001:db8::fe]:2"), Real: ap("[::ffff:10.2.0.3]:3"),
	}
	v0seq := Record{
		Protocol: ProtocolTCP, Flags: FlagOutSeq, State: TCPEstablished, HasSeq: true,
		Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:21"), Real: ap("10.2.0.3:21"), In: Seq{1, 2, 3}, Out: Seq{4, 5, 6},
	}
	for _, tt := range []struct {
		name    string
		version uint8
		syncID  uint8
		recs    []Record
		want    []byte
	}{
		{"v1 IPv4", 1, 7, []Record{v4}, goldenMessage(t, "v1 one TCP connection over IPv4")},
		{"v1 IPv6", 1, 255, []Record{{
			Protocol: ProtocolUDP, Flags: FlagDRoute, Timeout: 300,
			Client: ap("[2001:db8::2]:53"), Virtual: ap("[2001:db8:0:1::fe]:8000"), Real: ap("[2001:db8:0:2::3]:53"),
		}}, goldenMessage(t, "v1 one UDP flow over IPv6")},
		{"v1 all options and padding", 1, 1, []Record{seq, template}, goldenMessage(t, "v1 sequence deltas, engine data and name, padding before the next record")},
		{"v1 empty", 1, 7, nil, goldenMessage(t, "v1 no records")},
		{"v1 IPv6 record keeps mapped addresses", 1, 0, []Record{mapped}, unhex(t, `00 00 0050 01 01 0000 01 06 0048 00000000 0000 0001 0002 0003 00000000 00000000
			00000000000000000000ffff0a010002 20010db80000000000000000000000fe 00000000000000000000ffff0a020003`)},
		{"v1 engine name alone", 1, 0, []Record{{PEName: []byte("sip"), Client: ap("1.1.1.1:1"), Virtual: ap("2.2.2.2:2"), Real: ap("3.3.3.3:3")}}, unhex(t, `00 00 0031 01 01 0000
			00 00 0029 00000000 0000 0001 0002 0003 00000000 00000000 01010101 02020202 03030303 03 03 736970`)},
		{"v0", 0, 9, []Record{
			{Protocol: ProtocolTCP, Flags: FlagDRoute, State: TCPEstablished, Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:80"), Real: ap("10.2.0.3:8080")},
			{Protocol: ProtocolUDP, Flags: FlagTunnel, Client: ap("10.1.0.3:53"), Virtual: ap("10.0.0.254:8000"), Real: ap("10.2.0.4:53")},
		}, goldenMessage(t, "v0 two connections")},
		{"v0 sequence deltas", 0, 9, []Record{v0seq}, goldenMessage(t, "v0 sequence deltas of a little-endian sender")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, prefix := range []string{"", "x", "four"} {
				got := encode(t, []byte(prefix), tt.version, tt.syncID, tt.recs)
				if !bytes.Equal(got, append([]byte(prefix), tt.want...)) {
					t.Fatalf("after prefix %q\n got %x\nwant %x", prefix, got[len(prefix):], tt.want)
				}
			}
			m, recs := decode(t, tt.want)
			wantHeader := Header{Version: tt.version, SyncID: tt.syncID, Size: uint16(len(tt.want)), Count: uint8(len(tt.recs))}
			if diff := cmp.Diff(wantHeader, m.Header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.recs, recs, compareRecords); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			if end, err := m.End(); end != len(tt.want) || err != nil {
				t.Errorf("End() = %d, %v; want %d", end, err, len(tt.want))
			}
		})
	}
}

// TestRecordBytes checks that parsed options alias the message and cannot grow over what follows.
func TestRecordBytes(t *testing.T) {
	b := goldenMessage(t, "v1 sequence deltas, engine data and name, padding before the next record")
	before := bytes.Clone(b)
	_, recs := decode(t, b)
	_ = append(recs[0].PEData, "overwritten"...)
	if !bytes.Equal(b, before) {
		t.Error("appending to PEData changed the message")
	}
	b[bytes.IndexByte(b, 'c')] = 'X'
	if got := string(recs[0].PEData); got != "Xall42" {
		t.Errorf("PEData = %q: not an alias of the message", got)
	}
}

func TestEncodeErrors(t *testing.T) {
	with := func(f func(*Record)) Record {
		r := tcp4()
		f(&r)
		return r
	}
	for _, tt := range []struct {
		name string
		rec  Record
		v1   error
		v0   error
	}{
		{"no addresses", Record{}, ErrFamily, ErrFamily},
		{"client of another family", with(func(r *Record) { r.Client = ap("[2001:db8::1]:1") }), ErrFamily, ErrFamily},
		{"real server of another family", with(func(r *Record) { r.Real = ap("[2001:db8::1]:1") }), ErrFamily, ErrFamily},
		{"real server missing", with(func(r *Record) { r.Real = netip.AddrPort{} }), ErrFamily, ErrFamily},
		{"mapped client among IPv4", with(func(r *Record) { r.Client = ap("[::ffff:10.1.0.2]:1") }), ErrFamily, ErrFamily},
		{"IPv6", Record{Client: ap("[::1]:1"), Virtual: ap("[::2]:1"), Real: ap("[::3]:1")}, nil, ErrFamilyV0},
		{"engine name too long", with(func(r *Record) { r.PEName = make([]byte, 17) }), ErrPENameLong, nil},
		{"engine name at its limit", with(func(r *Record) { r.PEName = make([]byte, 16) }), nil, nil},
		{"engine data too long", with(func(r *Record) { r.PEName, r.PEData = []byte("sip"), make([]byte, 256) }), ErrPEDataLong, nil},
		{"engine data at its limit", with(func(r *Record) { r.PEName, r.PEData = []byte("sip"), make([]byte, 255) }), nil, nil},
		{"engine data without name", with(func(r *Record) { r.PEData = []byte("x") }), ErrPENameMissing, nil},
		{"sequence flags without numbers", with(func(r *Record) { r.Flags = FlagInSeq }), nil, ErrSeqFlags},
		{"sequence numbers without flags", with(func(r *Record) { r.HasSeq = true }), nil, ErrSeqFlags},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for version, want := range map[int]error{0: tt.v0, 1: tt.v1} {
				start := []byte("pre")
				b, add := AppendHeaderV0(start, 1), AppendRecordV0
				if version == 1 {
					b, add = AppendHeaderV1(start, 1), AppendRecordV1
				}
				got, err := add(b, len(start), &tt.rec)
				if !errors.Is(err, want) {
					t.Errorf("version %d: error %v, want %v", version, err, want)
				}
				if err != nil && !bytes.Equal(got, b) {
					t.Errorf("version %d: buffer changed on an error", version)
				}
			}
		})
	}
}

func TestLimits(t *testing.T) {
	rec := tcp4()
	t.Run("message start", func(t *testing.T) {
		for _, start := range []int{-1, 1, 8, 100} {
			if _, err := AppendRecordV1(AppendHeaderV1(nil, 1), start, &rec); err != ErrNoHeader {
				t.Errorf("AppendRecordV1 at %d: %v", start, err)
			}
			if err := FinishV1(AppendHeaderV1(nil, 1), start, 0); err != ErrNoHeader {
				t.Errorf("FinishV1 at %d: %v", start, err)
			}
			if _, err := AppendRecordV0(AppendHeaderV0(nil, 1), start, &rec); err != ErrNoHeader {
				t.Errorf("AppendRecordV0 at %d: %v", start, err)
			}
			if err := FinishV0(AppendHeaderV0(nil, 1), start, 0); err != ErrNoHeader {
				t.Errorf("FinishV0 at %d: %v", start, err)
			}
		}
	})
	t.Run("records", func(t *testing.T) {
		recs := make([]Record, MaxRecords)
		for i := range recs {
			recs[i] = rec
		}
		for version := range uint8(2) {
			if _, got := decode(t, encode(t, nil, version, 1, recs)); len(got) != MaxRecords {
				t.Errorf("version %d: %d of 255 records", version, len(got))
			}
		}
		b := AppendHeaderV1(nil, 1)
		if err := FinishV1(b, 0, MaxRecords+1); err != ErrTooManyRecords {
			t.Errorf("FinishV1 of 256: %v", err)
		}
		if err := FinishV0(b, 0, MaxRecords+1); err != ErrTooManyRecords {
			t.Errorf("FinishV0 of 256: %v", err)
		}
		if err := FinishV1(b, 0, -1); err != ErrNoHeader {
			t.Errorf("FinishV1 of -1: %v", err)
		}
	})
	t.Run("size", func(t *testing.T) {
		long := rec
		long.PEName, long.PEData, long.HasSeq = make([]byte, MaxPEName), make([]byte, MaxPEData), true
		if n := RecordLen(&long); n > MaxRecordLen || n != 337 {
			t.Errorf("longest IPv4 record is %d bytes", n)
		}
		b := AppendHeaderV1(nil, 1)
		var err error
		n := 0
		for ; err == nil; n++ {
			b, err = AppendRecordV1(b, 0, &long)
		}
		if err != ErrTooLong || n-1 != (MaxSize-HeaderLenV1+3)/340 {
			t.Errorf("%v after %d records", err, n-1)
		}
		if err := FinishV1(b[:len(b):len(b)], 0, n-1); err != nil {
			t.Error(err)
		}
		b = append(b, make([]byte, MaxSize+1-len(b))...)
		if err := FinishV1(b, 0, 0); err != ErrTooLong {
			t.Errorf("FinishV1 of 65536 bytes: %v", err)
		}
		if err := FinishV0(b, 0, 0); err != ErrTooLong {
			t.Errorf("FinishV0 of 65536 bytes: %v", err)
		}
		if _, err := AppendRecordV0(b[:MaxSize-RecordLenV0+1], 0, &rec); err != ErrTooLong {
			t.Errorf("AppendRecordV0 beyond 65535 bytes: %v", err)
		}
	})
}

func TestBuilder(t *testing.T) {
	rec, odd := tcp4(), tcp4()
	odd.PEName = []byte("sip") // 41 bytes: padding before the next
	var w Builder
	buf := make([]byte, 0, 2048)

	w.Reset(append(buf, "pre"...), 9, 1472)
	for w.Add(&rec) == nil {
	}
	// facts of a kernel: 40 IPv4 records in 1472 bytes
	if w.Count() != 40 || w.Len() != 1448 {
		t.Errorf("%d records, %d bytes; want 40 and 1448", w.Count(), w.Len())
	}
	b, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if m, recs := decode(t, b[3:]); len(recs) != 40 || m.SyncID != 9 || string(b[:3]) != "pre" {
		t.Errorf("decoded %d records, syncid %d, prefix %q", len(recs), m.SyncID, b[:3])
	}

	w.Reset(buf, 9, HeaderLenV1+44+RecordLen4)
	if err := errors.Join(w.Add(&odd), w.Add(&rec)); err != nil {
		t.Errorf("41 + 3 + 36 bytes do not fit: %v", err)
	}
	w.Reset(buf, 9, HeaderLenV1+44+RecordLen4-1)
	if err := w.Add(&odd); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&rec); err != ErrFull || w.Len() != 49 {
		t.Errorf("one byte too few: %v, %d bytes", err, w.Len())
	}
	b = append(w.Padded(), "trailer"...)
	if err := FinishV1(b, 0, w.Count()); err != nil {
		t.Fatal(err)
	}
	m, _ := decode(t, b)
	if end, err := m.End(); err != nil || string(b[end:]) != "trailer" {
		t.Errorf("End() = %d, %v", end, err)
	}

	w.Reset(buf, 9, 0)
	for range MaxRecords {
		if err := w.Add(&rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(&rec); err != ErrFull {
		t.Errorf("256th record: %v", err)
	}
	if err := w.Add(&Record{}); err != ErrFull {
		t.Errorf("256th record, bad: %v", err)
	}
	w.Reset(buf, 9, 0)
	if err := w.Add(&Record{}); err != ErrFamily || w.Count() != 0 {
		t.Errorf("bad record: %v, %d", err, w.Count())
	}
}

func TestNormalize(t *testing.T) {
	r := Record{Flags: FlagHashed | FlagSeqMask | FlagTemplate | FlagSync}
	r.Normalize()
	if r.Flags != FlagTemplate|FlagSync {
		t.Errorf("without numbers: %#x", r.Flags)
	}
	r = Record{Flags: FlagHashed | FlagInSeq, HasSeq: true}
	r.Normalize()
	if r.Flags != FlagInSeq {
		t.Errorf("with numbers: %#x", r.Flags)
	}
}

func TestDropSeq(t *testing.T) {
	want := tcp4()
	r := want
	r.Flags |= FlagSeqMask
	r.HasSeq, r.In, r.Out = true, Seq{1, 2, 3}, Seq{4, 5, 6}
	r.DropSeq()
	if diff := cmp.Diff(want, r, compareRecords); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		proto    uint8
		state    uint16
		template bool
		want     string
	}{
		{ProtocolTCP, TCPEstablished, false, "ESTABLISHED"},
		{ProtocolTCP, TCPSynAck, false, "SYNACK"},
		{ProtocolTCP, 11, false, "state-11"},
		{ProtocolTCP, TemplateAssured, true, "ASSURED"},
		{ProtocolIP, TemplateNone, true, "NONE"},
		{ProtocolUDP, UDPNormal, false, "UDP"},
		{ProtocolSCTP, SCTPEstablished, false, "ESTABLISHED"},
		{ProtocolSCTP, SCTPClosed, false, "CLOSED"},
		{ProtocolESP, 0, false, "NONE"},
	} {
		if got := StateName(tt.proto, tt.state, tt.template); got != tt.want {
			t.Errorf("StateName(%d, %d, %v) = %q, want %q", tt.proto, tt.state, tt.template, got, tt.want)
		}
	}
	for proto, want := range map[uint8]string{0: "ip", 6: "tcp", 17: "udp", 47: "47", 50: "esp", 51: "ah", 132: "sctp"} {
		if got := ProtocolName(proto); got != want {
			t.Errorf("ProtocolName(%d) = %q, want %q", proto, got, want)
		}
	}
	for flags, want := range map[uint32]string{
		0:                                    "masq",
		FlagDRoute | FlagSync | FlagNoOutput: "route sync no_output",
		FlagTunnel | FlagTemplate | FlagNFCT: "tunnel template nfct",
		0x8005:                               "0x8005",
	} {
		if got := strings.Join(FlagNames(flags), " "); got != want {
			t.Errorf("FlagNames(%#x) = %q, want %q", flags, got, want)
		}
	}
}
