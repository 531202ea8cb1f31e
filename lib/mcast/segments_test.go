package mcast

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// numbered makes datagrams of these lengths, at least 4, each with its number at the front and the rest different for each.
func numbered(lengths ...int) [][]byte {
	var out [][]byte
	for i, n := range lengths {
		b := bytes.Repeat([]byte{byte(i*7 + 1)}, n)
		binary.BigEndian.PutUint32(b, uint32(i))
		out = append(out, b)
	}
	return out
}

func repeat(n, times int, more ...int) []int {
	var out []int
	for range times {
		out = append(out, n)
	}
	return append(out, more...)
}

func TestAlike(t *testing.T) {
	for name, tt := range map[string]struct {
		lengths []int
		want    int
	}{
		"one":                     {[]int{1456}, 1},
		"too few":                 {repeat(1456, segmentsLeast-1), 1},
		"just enough":             {repeat(1456, segmentsLeast), segmentsLeast},
		"with a shorter last one": {repeat(1456, segmentsLeast-1, 100), segmentsLeast},
		"shorter one, then more":  {repeat(1456, 10, 100, 1456, 1456), 11},
		"longer one":              {repeat(100, 10, 1456), 10},
		"first is shorter":        {append([]int{100}, repeat(1456, 20)...), 1},
		"bytes":                   {repeat(1456, 60), 44}, // 45 would have 65,520 bytes
		"bytes, shorter last one": {repeat(1456, 44, 100), 44},
		"segments":                {repeat(100, 80), segmentsMost},
		"huge":                    {repeat(40_000, 20), 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := alike(numbered(tt.lengths...)); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
	if got := alike(make([][]byte, 20)); got != 1 {
		t.Errorf("of empty ones: %d", got)
	}
}

// exchange sends datagrams in one batch and fails unless all arrive as they are.
func exchange(t *testing.T, from, to *Link, bufs [][]byte) {
	t.Helper()
	if n, err := from.WriteBatch(bufs); n != len(bufs) || err != nil {
		t.Fatalf("sent %d of %d: %v", n, len(bufs), err)
	}
	for i, d := range read(t, to, len(bufs)) { // not by cmp, which takes seconds for so many bytes with the race detector
		if want := string(bufs[i]); d.Data != want {
			t.Fatalf("datagram %d of %d: received %q, sent %q", i, len(bufs), d.Data, want)
		}
	}
}

// What is handed to the kernel as one arrives as the datagrams that it is made of, at a socket that knows nothing of it.
func TestSegments(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": group4, "IPv6": wide6} {
		t.Run(name, func(t *testing.T) {
			peer := segment(t)
			a := open(t, Config{Interfaces: []string{"a0"}, Group: group}).Links()[0]
			b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group}).Links()[0]
			if group.Addr().Is6() {
				linkLocal(t, "a0")
			}
			exchange(t, a, b, numbered(repeat(1400, 100, 400, 30, 1400, 1400)...))
			exchange(t, a, b, numbered(repeat(40, 70)...))
			exchange(t, a, b, numbered(repeat(500, 21, 4)...))
			if len(a.send.messages) != 1 || a.tx.whole {
				t.Errorf("the last batch were %d messages, datagram by datagram: %v", len(a.send.messages), a.tx.whole)
			}
			quiet(t, b)
		})
	}
}

// Where the kernel refuses to split, as datagrams are longer than the interface takes, they are sent one by one, as fragments.
func TestCannotSplit(t *testing.T) {
	peer := segment(t)
	link, err := netlink.LinkByName("a0")
	if err == nil {
		err = netlink.LinkSetMTU(link, 1000)
	}
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4}).Links()[0]
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4}).Links()[0]
	exchange(t, a, b, numbered(repeat(20, 20, repeat(1400, 40)...)...))
	if !a.tx.whole {
		t.Error("it tries again and again")
	}
	exchange(t, a, b, numbered(repeat(1400, 40)...))
}
