package flow

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestParseBuckets(t *testing.T) {
	for _, tc := range []struct {
		in   string
		n    int
		want []uint16
		out  string
	}{
		{"none", 8, nil, "none"},
		{"0", 8, []uint16{0}, "0"},
		{"0", 1, []uint16{0}, "all"},
		{"7,1-2,0", 8, []uint16{0, 1, 2, 7}, "0-2,7"},
		{"1-3,2-2,3-5,2", 8, []uint16{1, 2, 3, 4, 5}, "1-5"},
		{"5,0-99", 100, nil, "all"},
		{"3,all", 100, nil, "all"},
		{"65535,65534", 65536, []uint16{65534, 65535}, "65534-65535"},
		{"all", 65536, nil, "all"},
		{"007", 8, []uint16{7}, "7"},
	} {
		got, err := ParseBuckets(tc.in, tc.n)
		if err != nil {
			t.Errorf("%q of %d: %v", tc.in, tc.n, err)
			continue
		}
		if tc.out == "all" {
			tc.want = nil
			for b := range tc.n {
				tc.want = append(tc.want, uint16(b))
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q of %d: %v, want %v", tc.in, tc.n, got, tc.want)
		}
		if out := FormatBuckets(got, tc.n); out != tc.out {
			t.Errorf("%q of %d is written as %q, want %q", tc.in, tc.n, out, tc.out)
		}
	}
	for _, in := range []string{"", ",", "1,", "8", "-1", "1-", "-", "3-2", "1-8", "+1", " 1", "1 ", "0x1", "1-2-3", "65536", "1e3", "everything", "none,1", "ALL"} {
		if got, err := ParseBuckets(in, 8); err == nil {
			t.Errorf("%q gives %v", in, got)
		}
	}
	for _, n := range []int{-1, 0, MaxBuckets + 1} {
		if got, err := ParseBuckets("all", n); err == nil {
			t.Errorf("%d buckets: %d", n, len(got))
		}
	}
}

func TestFormatBucketsSorts(t *testing.T) {
	in := []uint16{9, 3, 4, 3, 9}
	if got := FormatBuckets(in, 4096); got != "3-4,9" {
		t.Errorf("%v is written as %q", in, got)
	}
	if !slices.Equal(in, []uint16{9, 3, 4, 3, 9}) {
		t.Errorf("the list was changed to %v", in)
	}
}

func TestBucketsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		var want []uint16
		for b := range n {
			if rapid.Bool().Draw(t, "owned") {
				want = append(want, uint16(b))
			}
		}
		text := FormatBuckets(want, n)
		if got, err := ParseBuckets(text, n); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q is read as %v, %v; want %v", text, got, err, want)
		}
	})
}

func FuzzBuckets(f *testing.F) {
	f.Add("0-99,200,all", 4096)
	f.Add("none", 1)
	f.Add("65535,0-65534", 65536)
	f.Add("1-2-3,,", 10)
	f.Fuzz(func(t *testing.T, text string, n int) {
		got, err := ParseBuckets(text, n)
		if err != nil {
			return
		}
		for i, b := range got {
			if int(b) >= n || i > 0 && b <= got[i-1] {
				t.Fatalf("%q of %d: %v", text, n, got)
			}
		}
		short := FormatBuckets(got, n)
		again, err := ParseBuckets(short, n)
		if err != nil || !slices.Equal(again, got) || FormatBuckets(again, n) != short || len(short) > max(len(text), len(noBuckets)) {
			t.Fatalf("%q of %d is written as %q and read as %v, %v", text, n, short, again, err)
		}
	})
}
