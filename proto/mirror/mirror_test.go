package mirror

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// empty is the header of a sync message with no records, as a control message has it: syncid 7; the size is left to the caller.
const empty = "00 07 0000 00 01 0000"

var trailers = []struct {
	name string
	t    Trailer
	hex  string
}{
	{
		name: "records, all fields",
		t: Trailer{
			KeyID: 2, Kind: KindRecords, Flags: FlagSynced, Sender: 0x0102030405060708, Incarnation: 0x1112131415161718,
			Sequence: 0x21, Origin: 0x3132333435363738, Grant: NewGrant(4, 5), Clock: 0x0006_0000_0000_0001,
		},
		hex: `53415255 01 02 01 01 0000 0000 0102030405060708 1112131415161718 0000000000000021
			3132333435363738 00000004 00000005 0006000000000001 00000000 00000000000000000000000000000000`,
	},
	{
		name: "body of 8 bytes",
		t: Trailer{
			Kind: KindHeartbeat, Flags: FlagConfirm, Sender: 1, Incarnation: 2, Sequence: 3, Origin: 4,
			Body: []byte{0, 0, 0, 0, 9, 0, 0, 7},
		},
		hex: `0000000009 000007 53415255 01 00 40 04 0008 0000 0000000000000001 0000000000000002 0000000000000003
			0000000000000004 00000000 00000000 0000000000000000 00000000 00000000000000000000000000000000`,
	},
}

func TestTrailer(t *testing.T) {
	for _, tt := range trailers {
		t.Run(tt.name, func(t *testing.T) {
			head := unhex(t, empty)
			b, err := AppendTrailer(slices.Clone(head), &tt.t)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append(head, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("AppendTrailer (-want +got):\n%s", diff)
			}
			got, start, err := ParseTrailer(b)
			if err != nil || start != len(head) {
				t.Fatalf("ParseTrailer: start %d, error %v", start, err)
			}
			if diff := cmp.Diff(tt.t, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("ParseTrailer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAppendTrailerAligns(t *testing.T) {
	b, err := AppendTrailer(make([]byte, 9), &Trailer{Kind: KindRecords})
	if err != nil || len(b) != 12+MinLen {
		t.Fatalf("length %d, error %v; want %d", len(b), err, 12+MinLen)
	}
	if b, err := AppendTrailer([]byte{1}, &Trailer{Body: []byte{1}}); !errors.Is(err, ErrBody) || len(b) != 1 {
		t.Errorf("odd body: %d bytes, error %v", len(b), err)
	}
}

func TestParseTrailerHostile(t *testing.T) {
	good, err := AppendTrailer(unhex(t, empty), &Trailer{Kind: KindHeartbeat, Body: make([]byte, 8)})
	if err != nil {
		t.Fatal(err)
	}
	fixed := len(good) - MinLen
	set := func(off int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[fixed+off:], v)
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, ErrNoTrailer},
		{"shorter than header and trailer", good[9:], ErrNoTrailer},
		{"no magic", set(0, 'X'), ErrNoTrailer},
		{"next format version", set(4, 2), ErrVersion},
		{"body reaches into the header", set(8, 0, 12), ErrTruncated},
		{"body of 65535 bytes", set(8, 0xff, 0xff), ErrTruncated},
		{"body not a multiple of 4", set(8, 0, 7), ErrBody},
		{"reserved behind length", set(10, 1), ErrReserved},
		{"reserved before tag", set(63, 1), ErrReserved},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := ParseTrailer(tt.b); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestMarkRepeat(t *testing.T) {
	tr := trailers[0].t
	first, err := AppendTrailer(unhex(t, empty), &tr)
	if err != nil {
		t.Fatal(err)
	}
	for i := range TagLen {
		first[len(first)-1-i] = 0xee // signed
	}
	b := slices.Clone(first)
	MarkRepeat(b, 9)
	tr.KeyID, tr.Flags = 9, FlagSynced|FlagRepeat
	want, err := AppendTrailer(unhex(t, empty), &tr)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("MarkRepeat (-want +got):\n%s", diff)
	}
}

func TestKinds(t *testing.T) {
	for _, tt := range []struct {
		kind   Kind
		name   string
		stream bool
	}{{KindRecords, "records", true}, {63, "kind-63", true}, {KindHeartbeat, "heartbeat", false}, {KindRequest, "request", false}, {255, "kind-255", false}} {
		if tt.kind.String() != tt.name || tt.kind.Stream() != tt.stream {
			t.Errorf("kind %d: %s, stream %v", uint8(tt.kind), tt.kind, tt.kind.Stream())
		}
	}
}

func TestNoAllocations(t *testing.T) {
	buf := make([]byte, 0, MaxDatagram)
	tr := Trailer{Kind: KindRecords, Sender: 1}
	head := unhex(t, empty)
	if n := testing.AllocsPerRun(100, func() {
		b, err := AppendTrailer(append(buf[:0], head...), &tr)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ParseTrailer(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per datagram", n)
	}
}

func FuzzParseTrailer(f *testing.F) {
	for _, tt := range trailers {
		f.Add(append(unhex(f, empty), unhex(f, tt.hex)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, start, err := ParseTrailer(b)
		if err != nil {
			return
		}
		got, err := AppendTrailer(slices.Clone(b[:start]), &tr)
		if err != nil {
			t.Fatal(err)
		}
		if start%4 == 0 && !bytes.Equal(got[:len(got)-TagLen], b[:len(b)-TagLen]) {
			t.Errorf("parsed %x, appended %x", b, got)
		}
	})
}
