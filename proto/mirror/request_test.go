package mirror

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var requests = []struct {
	name   string
	r      Request
	ranges []Range
	hex    string
}{
	{
		name:   "three ranges",
		r:      Request{Node: 0x0102030405060708, Incarnation: 0x1112131415161718},
		ranges: []Range{{1, 1}, {2, 3}, {0x0a0b, 0x0c0d}},
		hex: `0102030405060708 1112131415161718
			0000000000000001 00000001
			0000000000000002 00000003
			0000000000000a0b 00000c0d`,
	},
	{
		name:   "up to the highest number",
		ranges: []Range{{math.MaxUint64 - math.MaxUint32 + 1, math.MaxUint32}},
		hex:    `0000000000000000 0000000000000000 ffffffff00000001 ffffffff`,
	},
}

func TestRequest(t *testing.T) {
	for _, tt := range requests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := AppendRequest([]byte{9}, &tt.r, tt.ranges)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]byte{9}, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("AppendRequest (-want +got):\n%s", diff)
			}
			b = b[1:]
			got, err := ParseRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.r, got, cmpopts.IgnoreUnexported(Request{})); diff != "" {
				t.Errorf("ParseRequest (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.ranges, slices.Collect(got.Ranges())); diff != "" {
				t.Errorf("Ranges (-want +got):\n%s", diff)
			}
		})
	}
}

// What no request may ask for is refused at both ends.
func TestRequestHostile(t *testing.T) {
	many := make([]Range, MaxRanges+1)
	for i := range many {
		many[i] = Range{uint64(i + 1), 1}
	}
	for _, tt := range []struct {
		name   string
		ranges []Range
	}{
		{"nothing", nil},
		{"no numbers", []Range{{1, 0}}},
		{"number 0", []Range{{0, 1}}},
		{"beyond the highest number", []Range{{math.MaxUint64, 2}}},
		{"the same twice", []Range{{7, 1}, {7, 1}}},
		{"overlap", []Range{{7, 3}, {9, 1}}},
		{"descending", []Range{{7, 1}, {5, 1}}},
		{"behind the highest number", []Range{{math.MaxUint64, 1}, {1, 1}}},
		{"too many", many},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if b, err := AppendRequest([]byte{1}, &Request{}, tt.ranges); !errors.Is(err, ErrBody) || len(b) != 1 {
				t.Errorf("AppendRequest: %d bytes, error %v", len(b), err)
			}
			body := make([]byte, requestLen+rangeLen*len(tt.ranges))
			for i, r := range tt.ranges {
				b := body[requestLen+rangeLen*i:]
				for j := range 8 {
					b[j] = byte(r.First >> (56 - 8*j))
				}
				for j := range 4 {
					b[8+j] = byte(r.Count >> (24 - 8*j))
				}
			}
			if _, err := ParseRequest(body); !errors.Is(err, ErrBody) {
				t.Errorf("ParseRequest: error %v", err)
			}
		})
	}
	full, err := AppendRequest(nil, &Request{}, many[:MaxRanges])
	if err != nil || headerLen+Length(len(full)) > MaxDatagram || len(full)%4 != 0 {
		t.Errorf("largest request: %d bytes, error %v", headerLen+Length(len(full)), err)
	}
	for n := range requestLen + 3*rangeLen {
		if _, err := ParseRequest(full[:n]); (err == nil) != (n == requestLen+rangeLen || n == requestLen+2*rangeLen) {
			t.Errorf("truncated to %d bytes: error %v", n, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, tt := range requests {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		ranges := slices.Collect(r.Ranges())
		got, err := AppendRequest(nil, &r, ranges)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("parsed %x, appended %x, error %v", b, got, err)
		}
		var last uint64
		for _, g := range ranges {
			if g.Count == 0 || g.First <= last || g.First+uint64(g.Count)-1 < g.First {
				t.Errorf("parsed %x: range %v behind %d", b, g, last)
			}
			last = g.First + uint64(g.Count) - 1
		}
	})
}
