package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// entry is one entry as Builder takes and Reader gives it.
type entry struct {
	Bucket uint16
	Item   Item
	Record ipvssync.Record
}

var compareEntries = cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()}

// build encodes entries that fit into one payload.
func build(t testing.TB, prefix []byte, entries []entry) []byte {
	t.Helper()
	var w Builder
	w.Reset(prefix)
	for i := range entries {
		if err := w.Add(entries[i].Bucket, &entries[i].Item, &entries[i].Record); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	if w.Count() != len(entries) {
		t.Fatalf("%d entries, added %d", w.Count(), len(entries))
	}
	return w.Bytes()
}

// read decodes a payload to its end and returns what ended it, and how many records were skipped.
func read(t testing.TB, b []byte) (entries []entry, skipped int, err error) {
	t.Helper()
	r := NewReader(b)
	for {
		var e entry
		err := r.Next(&e.Item, &e.Record)
		switch {
		case err == nil:
			e.Bucket = r.Bucket()
			entries = append(entries, e)
		case ipvssync.Skipped(err):
			skipped++
		default:
			if again := r.Next(&e.Item, &e.Record); !errors.Is(again, err) {
				t.Errorf("error %v became %v", err, again)
			}
			return entries, skipped, err
		}
	}
}

func tcp4(n int) ipvssync.Record {
	return ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, Flags: ipvssync.FlagDRoute | ipvssync.FlagNoOutput, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 40000),
		Virtual: netip.MustParseAddrPort("10.0.0.254:80"), Real: netip.MustParseAddrPort("10.2.0.3:8080"),
	}
}

// full is the longest record there is.
func full() ipvssync.Record {
	r := tcp4(1)
	six := netip.MustParseAddrPort("[2001:db8::2]:40000")
	r.Client, r.Virtual, r.Real = six, six, six
	r.HasSeq, r.In, r.Out = true, ipvssync.Seq{Init: 1, Delta: 2, PrevDelta: 3}, ipvssync.Seq{Init: 4, Delta: 5, PrevDelta: 6}
	r.PEName, r.PEData = []byte(strings.Repeat("n", ipvssync.MaxPEName)), []byte(strings.Repeat("d", ipvssync.MaxPEData))
	return r
}

// The layout, byte by byte.
func TestEntries(t *testing.T) {
	entries := []entry{
		{3, Item{0, mirror.NewGrant(1, 2), 0x0006_0000_0000_0001, 4}, tcp4(7)},
		{3, Item{300, 0, 0x0006_0000_0000_0000, 0}, tcp4(8)},
		{0x0fff, Item{1, 0, 0x0006_0000_0000_0003, 200}, tcp4(9)},
	}
	record := func(n string) string {
		return `00 06 0024 00000083 0001 9c40 0050 1f90 00000000 00000384 0a01` + n + ` 0a0000fe 0a020003 `
	}
	want := unhex(t, `ff 0006000000000001
		0003 0002 00 01 02 00 04 `+record("0007")+` ac02 00 00 01 00 `+record("0008")+`
		0fff 0001 01 00 00 04 c801 `+record("0009"))
	b := build(t, []byte{0xff}, entries)
	if diff := cmp.Diff(want, b); diff != "" {
		t.Fatalf("payload (-want +got):\n%s", diff)
	}
	got, skipped, err := read(t, b[1:])
	if diff := cmp.Diff(entries, got, compareEntries); diff != "" || skipped != 0 || !errors.Is(err, ErrEnd) {
		t.Errorf("%d skipped, error %v (-want +got):\n%s", skipped, err, diff)
	}
}

func recordGen() *rapid.Generator[ipvssync.Record] {
	return rapid.Custom(func(t *rapid.T) ipvssync.Record {
		n := rapid.SampledFrom([]int{4, 16}).Draw(t, "length of addresses")
		addr := func(label string) netip.AddrPort {
			a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label))
			return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, label+" port"))
		}
		r := ipvssync.Record{
			Protocol: rapid.Byte().Draw(t, "protocol"), State: rapid.Uint16().Draw(t, "state"), Flags: rapid.Uint32().Draw(t, "flags"),
			Timeout: rapid.Uint32().Draw(t, "timeout"), Fwmark: rapid.Uint32().Draw(t, "fwmark"),
			Client: addr("client"), Virtual: addr("virtual"), Real: addr("real"), HasSeq: rapid.Bool().Draw(t, "has seq"),
		}
		if r.HasSeq {
			r.In.Init, r.Out.PrevDelta = rapid.Uint32().Draw(t, "in"), rapid.Uint32().Draw(t, "out")
		}
		if r.PEName = rapid.SliceOfN(rapid.Byte(), 0, ipvssync.MaxPEName).Draw(t, "engine"); len(r.PEName) > 0 {
			r.PEData = rapid.SliceOfN(rapid.Byte(), 0, ipvssync.MaxPEData).Draw(t, "engine data")
		}
		return r
	})
}

func TestEntriesRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		entries := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) entry {
			return entry{
				rapid.Uint16Range(0, Buckets-1).Draw(t, "bucket"),
				Item{rapid.Uint16().Draw(t, "origin"), mirror.Grant(rapid.Uint64().Draw(t, "grant")), rapid.Uint64().Draw(t, "clock"), rapid.Uint32().Draw(t, "age")},
				recordGen().Draw(t, "record"),
			}
		}), 1, 40).Draw(rt, "entries")
		slices.SortStableFunc(entries, func(a, b entry) int { return int(a.Bucket) - int(b.Bucket) })
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(rt, "prefix")
		b := build(t, bytes.Clone(prefix), entries)
		if !bytes.HasPrefix(b, prefix) {
			rt.Fatal("prefix changed")
		}
		got, _, err := read(t, b[len(prefix):])
		if diff := cmp.Diff(entries, got, compareEntries); diff != "" || !errors.Is(err, ErrEnd) {
			rt.Fatalf("error %v (-want +got):\n%s", err, diff)
		}
	})
}

// A payload is never longer than a frame takes, whatever the last entry's length, and what did not fit begins the next one.
func TestBuilderFull(t *testing.T) {
	var w Builder
	w.Reset(make([]byte, 5))
	rest, long := tcp4(0), full()
	it := Item{Origin: math.MaxUint16, Grant: math.MaxUint64, Clock: 1, Age: math.MaxUint32}
	n := 0
	for ; w.Add(7, &it, &long) == nil; n++ {
		it.Clock += 1 << 62
	}
	for ; w.Add(8, &it, &rest) == nil; n++ {
	}
	before := bytes.Clone(w.Bytes())
	if err := w.Add(9, &it, &rest); !errors.Is(err, ErrFull) {
		t.Fatalf("full: error %v", err)
	}
	if !bytes.Equal(before, w.Bytes()) || w.Count() != n || len(before)-5 > MaxPayload || len(before)-5 < MaxPayload-80 {
		t.Fatalf("%d entries in %d bytes, counted %d", n, len(before)-5, w.Count())
	}
	got, _, err := read(t, before[5:])
	if len(got) != n || !errors.Is(err, ErrEnd) {
		t.Errorf("%d entries read of %d, error %v", len(got), n, err)
	}
	w.Reset(w.Bytes())
	if err := w.Add(9, &it, &rest); err != nil || w.Count() != 1 {
		t.Fatalf("next payload: %d entries, error %v", w.Count(), err)
	}
	if got, _, err := read(t, w.Bytes()[len(before):]); len(got) != 1 || got[0].Bucket != 9 || !errors.Is(err, ErrEnd) {
		t.Errorf("next payload: %v, error %v", got, err)
	}
}

// A record that cannot be encoded leaves nothing behind, as the first of a payload or of a section or in one.
func TestBuilderRefuses(t *testing.T) {
	bad, good := full(), tcp4(1)
	bad.PEName = nil
	it := Item{Clock: 5}
	var w Builder
	w.Reset(nil)
	for step, want := range []int{0, 1, 1, 2} {
		before := len(w.Bytes())
		if step%2 == 1 {
			if err := w.Add(uint16(step), &it, &good); err != nil || w.Count() != want {
				t.Fatalf("step %d: %d entries, error %v", step, w.Count(), err)
			}
			continue
		}
		for _, bucket := range []uint16{uint16(max(step-1, 0)), uint16(step)} {
			if err := w.Add(bucket, &it, &bad); !errors.Is(err, ipvssync.ErrPENameMissing) || w.Count() != want || len(w.Bytes()) != before {
				t.Fatalf("step %d: %d entries in %d bytes, error %v", step, w.Count(), len(w.Bytes()), err)
			}
		}
	}
	if got, _, err := read(t, w.Bytes()); len(got) != 2 || got[0].Bucket != 1 || got[1].Bucket != 3 || !errors.Is(err, ErrEnd) {
		t.Errorf("%v, error %v", got, err)
	}
}

func TestEntriesHostile(t *testing.T) {
	base := make([]byte, baseLen)
	join := func(parts ...[]byte) []byte { return slices.Concat(append([][]byte{base}, parts...)...) }
	record, _ := ipvssync.AppendRecordV1(make([]byte, ipvssync.HeaderLenV1), 0, &ipvssync.Record{
		Timeout: 1, Client: tcp4(1).Client, Virtual: tcp4(1).Virtual, Real: tcp4(1).Real,
	})
	record = record[ipvssync.HeaderLenV1:]
	longer := func(options ...byte) []byte {
		b := append(bytes.Clone(record), options...)
		b[3] = byte(len(b))
		return b
	}
	section := func(bucket, count uint16) []byte {
		return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, bucket), count)
	}
	head, endless := []byte{0, 0, 0, 0, 0}, bytes.Repeat([]byte{0x80}, 10)
	one := slices.Concat(section(1, 1), head, record)
	damaged := bytes.Clone(record)
	damaged[0] = 2
	for _, tt := range []struct {
		name          string
		b             []byte
		good, skipped int
		want          error
	}{
		{"empty", nil, 0, 0, ErrPayload},
		{"no sections", base, 0, 0, ErrPayload},
		{"half a section", join([]byte{0, 1, 0}), 0, 0, ErrPayload},
		{"section of nothing", join(section(1, 0)), 0, 0, ErrPayload},
		{"count of 0, one entry", join(section(1, 0), head, record), 0, 0, ErrPayload},
		{"bucket that is none", join(section(Buckets, 1), head, record), 0, 0, ErrPayload},
		{"count of 65,535, one entry", join(section(1, math.MaxUint16), head, record), 1, 0, ErrPayload},
		{"one bucket twice", join(one, one), 1, 0, ErrPayload},
		{"descending", join(one, section(0, 1), head, record), 1, 0, ErrPayload},
		{"something behind", join(one, []byte{1}), 1, 0, ErrPayload},
		{"origin above 65,535", join(section(1, 1), []byte{0x80, 0x80, 4, 0, 0, 0, 0}, record), 0, 0, ErrPayload},
		{"term above 32 bits", join(section(1, 1), []byte{0, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 0}, record), 0, 0, ErrPayload},
		{"age above 32 bits", join(section(1, 1), []byte{0, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x10}, record), 0, 0, ErrPayload},
		{"varint without end", join(section(1, 1), endless, record), 0, 0, ErrPayload},
		{"clock without end", join(section(1, 1), head[:3], endless, record), 0, 0, ErrPayload},
		{"record of an unknown type", join(section(1, 2), head, record, head, damaged), 1, 0, ipvssync.ErrRecordType},
		{"record longer than the payload", join(section(1, 1), head, longer(0x7f, 1, 0)[:RequestLen]), 0, 0, ipvssync.ErrRecordTruncated},
		{"unknown mandatory option", join(section(1, 2), head, longer(9, 1, 0), head, record), 1, 1, ErrEnd},
		{"engine's data without its name", join(section(1, 1), head, longer(2, 1, 0)), 0, 1, ErrEnd},
		{"more zeros than needed", join(section(1, 1), []byte{0x80, 0, 0x80, 0, 0, 0x80, 0, 0}, record), 1, 0, ErrEnd},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, skipped, err := read(t, tt.b)
			if len(got) != tt.good || skipped != tt.skipped || !errors.Is(err, tt.want) {
				t.Errorf("%d entries, %d skipped, error %v; want %d, %d, %v", len(got), skipped, err, tt.good, tt.skipped, tt.want)
			}
		})
	}
	b := build(t, nil, []entry{{1, Item{Clock: 1 << 50, Age: 300}, full()}, {2, Item{Clock: 1}, tcp4(1)}})
	first := len(build(t, nil, []entry{{1, Item{Clock: 1 << 50, Age: 300}, full()}}))
	for n := range len(b) {
		got, skipped, err := read(t, b[:n])
		if want := n / first; len(got) != want || skipped != 0 || errors.Is(err, ErrEnd) != (n == first) {
			t.Errorf("%d of %d bytes: %d entries, %d skipped, error %v", n, len(b), len(got), skipped, err)
		}
	}
}

func TestOrigins(t *testing.T) {
	origins := []Origin{{0, 0x0102030405060708, "director-1"}, {1, 2, ""}, {math.MaxUint16, 3, "kernel 10.0.0.1"}, {4, 4, strings.Repeat("~", MaxName)}}
	b := []byte{9}
	for i := range origins {
		b = AppendOrigin(b, &origins[i])
	}
	if want := unhex(t, `09 0000 0102030405060708 0a 6469726563746f722d31 0001 0000000000000002 00`); !bytes.HasPrefix(b, want) {
		t.Errorf("origins %x, want %x first", b, want)
	}
	rest := b[1:]
	for i, want := range origins {
		var got Origin
		var err error
		if got, rest, err = ParseOrigin(rest); err != nil || got != want {
			t.Fatalf("origin %d: %+v, error %v", i, got, err)
		}
	}
	if len(rest) != 0 {
		t.Errorf("%d bytes left", len(rest))
	}
	// A name that cannot be carried is no name.
	for _, name := range []string{strings.Repeat("x", MaxName+1), "a\n", "ä", "\x7f", "a\x00"} {
		got, rest, err := ParseOrigin(AppendOrigin(nil, &Origin{5, 6, name}))
		if err != nil || len(rest) != 0 || got != (Origin{Index: 5, Node: 6}) {
			t.Errorf("name %q: %+v, error %v", name, got, err)
		}
		item := append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(name))}, name...)
		if got, _, err := ParseOrigin(item); !errors.Is(err, ErrPayload) {
			t.Errorf("name %q came through as %+v", name, got)
		}
	}
	item := AppendOrigin(nil, &origins[0])
	for n := range len(item) {
		if got, _, err := ParseOrigin(item[:n]); !errors.Is(err, ErrPayload) {
			t.Errorf("%d of %d bytes: %+v", n, len(item), got)
		}
	}
}

// Nothing allocates when the caller's buffers are long enough, except a name.
func TestAllocations(t *testing.T) {
	buf, digests, buckets := make([]byte, 0, MaxFrame), make([]Digest, 0, MaxPage), make([]uint16, 0, Buckets)
	rec, it := tcp4(1), Item{Clock: 1 << 50}
	entries := build(t, nil, []entry{{1, it, rec}, {2, it, full()}})
	want, list := AppendWant(nil, all), AppendPage(nil, 1, make([]Digest, 1))
	hello := AppendHello(nil, &Hello{Role: RoleClient, Incarnation: 1})
	var w Builder
	for name, fn := range map[string]func(){
		"Builder":    func() { w.Reset(buf); _ = w.Add(1, &it, &rec) },
		"Reader":     func() { var rec ipvssync.Record; r := NewReader(entries); _, _ = r.Next(&it, &rec), r.Next(&it, &rec) },
		"ParseWant":  func() { _, _ = ParseWant(want, buckets) },
		"ParsePage":  func() { _, _, _ = ParsePage(list, digests) },
		"ParseHello": func() { _, _ = ParseHello(hello) },
		"EndFrame":   func() { _, _ = EndFrame(BeginFrame(buf, TypeWant), 0) },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
