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
		t:    Trailer{Kind: KindTable, Sender: 1, Incarnation: 2, Sequence: 3, Origin: 4, Body: []byte{0, 0, 0, 0, 9, 0, 0, 7}},
		hex: `0000000009 000007 53415255 01 00 02 00 0008 0000 0000000000000001 0000000000000002 0000000000000003
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
	good, err := AppendTrailer(unhex(t, empty), &Trailer{Kind: KindTable, Body: make([]byte, 8)})
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

func TestHeartbeat(t *testing.T) {
	h := Heartbeat{Uptime: 0x0102, Stream: 0x0304, Name: "lvs1"}
	echoes := []Echo{{Node: 1, Incarnation: 2, Control: 3, Stream: 4, Age: 5, Flags: EchoCounts}, {Node: 6, Age: 7}}
	b, err := AppendHeartbeat(nil, &h, echoes)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, `0000000000000102 0000000000000304 02 04 0000
		0000000000000001 0000000000000002 0000000000000003 0000000000000004 00000005 01 000000
		0000000000000006 0000000000000000 0000000000000000 0000000000000000 00000007 00 000000
		6c767331`)
	if diff := cmp.Diff(want, b); diff != "" {
		t.Fatalf("AppendHeartbeat (-want +got):\n%s", diff)
	}
	got, err := ParseHeartbeat(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, got, cmpopts.IgnoreUnexported(Heartbeat{})); diff != "" {
		t.Errorf("ParseHeartbeat (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(echoes, slices.Collect(got.Echoes())); diff != "" {
		t.Errorf("Echoes (-want +got):\n%s", diff)
	}
	for n := range len(b) {
		if _, err := ParseHeartbeat(b[:n]); !errors.Is(err, ErrBody) {
			t.Errorf("truncated to %d bytes: error %v", n, err)
		}
	}
	if _, err := AppendHeartbeat(nil, &h, make([]Echo, MaxEchoes+1)); !errors.Is(err, ErrBody) {
		t.Errorf("too many echoes: error %v", err)
	}
	full, err := AppendHeartbeat(nil, &Heartbeat{Name: strings.Repeat("n", MaxName)}, make([]Echo, MaxEchoes))
	if err != nil || headerLen+Length(len(full)) > MaxDatagram {
		t.Errorf("largest heartbeat: %d bytes, error %v", headerLen+Length(len(full)), err)
	}
}

func TestTableItem(t *testing.T) {
	b := AppendTableItem(nil, TableItem{ClockOffset: 1<<40 + 5, Age: 1 << 30})
	b = AppendTableItem(b, TableItem{ClockOffset: 12, Age: 34})
	if got := TableItemAt(b, 0); got != (TableItem{ClockOffset: MaxClockOffset, Age: MaxAge}) {
		t.Errorf("item beyond the limits: %+v", got)
	}
	if got := TableItemAt(b, 1); got != (TableItem{ClockOffset: 12, Age: 34}) {
		t.Errorf("item 1: %+v", got)
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

func FuzzParseHeartbeat(f *testing.F) {
	b, err := AppendHeartbeat(nil, &Heartbeat{Uptime: 1, Stream: 2, Name: "a"}, []Echo{{Node: 1}, {Node: 2, Age: 3}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeartbeat(b)
		if err != nil {
			return
		}
		echoes := slices.Collect(h.Echoes())
		if len(echoes) > MaxEchoes {
			return // longer than any datagram
		}
		got, err := AppendHeartbeat(nil, &h, echoes)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("parsed %x, appended %x, error %v", b, got, err)
		}
	})
}
