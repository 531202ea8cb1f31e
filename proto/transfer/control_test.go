package transfer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// payload is how one kind of payload is written and read. What decode returns is what encode takes.
type payload struct {
	encode func(b []byte, v any) []byte
	decode func(b []byte) (any, error)
}

// page is what TypeDigests carries.
type page struct {
	Cut     uint64
	Digests []Digest
}

var (
	hellos = payload{
		func(b []byte, v any) []byte { h := v.(Hello); return AppendHello(b, &h) },
		func(b []byte) (any, error) { h, err := ParseHello(b); return h, err },
	}
	requests = payload{
		func(b []byte, v any) []byte { r := v.(Request); return AppendRequest(b, &r) },
		func(b []byte) (any, error) { r, err := ParseRequest(b); return r, err },
	}
	summaries = payload{
		func(b []byte, v any) []byte { return AppendSummary(b, v.(Summary)) },
		func(b []byte) (any, error) { s, err := ParseSummary(b); return s, err },
	}
	pages = payload{
		func(b []byte, v any) []byte { return AppendPage(b, v.(page).Cut, v.(page).Digests) },
		func(b []byte) (any, error) { cut, d, err := ParsePage(b, nil); return page{cut, d}, err },
	}
	differs = payload{
		func(b []byte, v any) []byte { return AppendDigests(b, v.([]Digest)) },
		func(b []byte) (any, error) { d, err := ParseDigests(b, nil); return d, err },
	}
	wants = payload{
		func(b []byte, v any) []byte { return AppendWant(b, v.([]uint16)) },
		func(b []byte) (any, error) { w, err := ParseWant(b, nil); return w, err },
	}
	codes = payload{
		func(b []byte, v any) []byte { return AppendError(b, v.(Code)) },
		func(b []byte) (any, error) { c, err := ParseError(b); return c, err },
	}
)

var all = make([]uint16, Buckets)

func init() {
	for i := range all {
		all[i] = uint16(i)
	}
}

// samples are one of each, as they lie on the wire.
var samples = []struct {
	name string
	payload
	value any
	hex   string
}{
	{
		"hello", hellos,
		Hello{KeyID: 7, Role: RoleTeacher, Node: 0x0102030405060708, Incarnation: 0x1112131415161718, Group: 0x2122232425262728, Nonce: [NonceLen]byte{0: 9, 31: 8}},
		`5341524a 01 07 02 00 0102030405060708 1112131415161718 2122232425262728
			0900000000000000 0000000000000000 0000000000000000 0000000000000008`,
	},
	{"request", requests, Request{Compare, 0x0102030405060708, 0x1112131415161718}, `03 000000 0102030405060708 1112131415161718`},
	{"request of a purpose to come", requests, Request{Purpose: 0xfe, Node: 1}, `fe 000000 0000000000000001 0000000000000000`},
	{"start", summaries, Summary{Entries: 0x0102030405060708}, `0102030405060708 00 000000`},
	{"finish, complete", summaries, Summary{1 << 63, true}, `8000000000000000 01 000000`},
	{
		"digests", pages, page{0x0102030405060708, []Digest{{0, 1, 2}, {0x0fff, 0xffffffff, 0x1112131415161718}}},
		`0102030405060708 0000 00000001 0000000000000002 0fff ffffffff 1112131415161718`,
	},
	{"differ", differs, []Digest{{0x0123, 4, 5}}, `0123 00000004 0000000000000005`},
	{"nothing differs", differs, []Digest(nil), ``},
	{"want", wants, []uint16{1, 0x0203, 0x0fff}, `0001 0203 0fff`},
	{"nothing wanted", wants, []uint16(nil), ``},
	{"error", codes, CodeStopping, `0003 0000`},
	{"error of a code to come", codes, Code(0xfffe), `fffe 0000`},
}

func TestPayloads(t *testing.T) {
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.encode([]byte{9}, tt.value)
			if diff := cmp.Diff(append([]byte{9}, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("appended (-want +got):\n%s", diff)
			}
			got, err := tt.decode(b[1:])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.value, got); diff != "" {
				t.Errorf("parsed (-want +got):\n%s", diff)
			}
		})
	}
}

// Every payload has one length, or a few that are told apart: what is cut off, or has something behind it, is not taken for another one.
func TestPayloadLengths(t *testing.T) {
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			whole := unhex(t, tt.hex)
			for n := range len(whole) + digestLen {
				b := append(bytes.Clone(whole), make([]byte, digestLen)...)[:n]
				v, err := tt.decode(b)
				if err != nil {
					continue
				}
				if len(whole) == 0 {
					continue // a list that is empty, and others
				}
				// Lists may be shorter; then they are that list.
				if again := tt.encode(nil, v); n != len(whole) && (n > len(whole) || !bytes.Equal(again, whole[:n])) {
					t.Errorf("%d of %d bytes taken for %v", n, len(whole), v)
				}
			}
		})
	}
}

// What is reserved is zero, and what is out of range is refused.
func TestPayloadsHostile(t *testing.T) {
	hello, request := unhex(t, samples[0].hex), unhex(t, samples[1].hex)
	change := func(b []byte, at int, to byte) []byte { b = bytes.Clone(b); b[at] = to; return b }
	many := func(n int) (b []byte) {
		for i := range n {
			b = AppendDigests(b, []Digest{{Bucket: uint16(i)}})
		}
		return b
	}
	cut := make([]byte, cutLen)
	for _, tt := range []struct {
		name string
		payload
		b    []byte
		want error
	}{
		{"hello, other magic", hellos, change(hello, 3, 'U'), ErrMagic},
		{"hello, version 0", hellos, change(hello, 4, 0), ErrVersion},
		{"hello, version 2", hellos, change(hello, 4, 2), ErrVersion},
		{"hello, role 0", hellos, change(hello, 6, 0), ErrHello},
		{"hello, role 3", hellos, change(hello, 6, 3), ErrHello},
		{"hello, reserved byte", hellos, change(hello, 7, 1), ErrHello},
		{"hello, incarnation 0", hellos, AppendHello(nil, &Hello{Role: RoleClient}), ErrHello},
		{"hello, empty", hellos, nil, ErrMagic},
		{"hello, one byte short", hellos, hello[:HelloLen-1], ErrMagic},
		{"hello, one byte more", hellos, append(bytes.Clone(hello), 0), ErrMagic},
		{"request, reserved byte 1", requests, change(request, 1, 1), ErrPayload},
		{"request, reserved byte 2", requests, change(request, 2, 0x80), ErrPayload},
		{"request, reserved byte 3", requests, change(request, 3, 0xff), ErrPayload},
		{"summary, unknown flag", summaries, unhex(t, `0000000000000001 02 000000`), ErrPayload},
		{"summary, unknown flag beside a known", summaries, unhex(t, `0000000000000001 81 000000`), ErrPayload},
		{"summary, reserved byte 9", summaries, unhex(t, `0000000000000001 00 010000`), ErrPayload},
		{"summary, reserved byte 10", summaries, unhex(t, `0000000000000001 00 000100`), ErrPayload},
		{"summary, reserved byte 11", summaries, unhex(t, `0000000000000001 00 000001`), ErrPayload},
		{"page, no digests", pages, cut, ErrPayload},
		{"page, too many", pages, append(bytes.Clone(cut), many(MaxPage+1)...), ErrPayload},
		{"differ, too many", differs, many(MaxPage + 1), ErrPayload},
		{"differ, one twice", differs, AppendDigests(nil, []Digest{{Bucket: 4}, {Bucket: 4}}), ErrPayload},
		{"differ, descending", differs, AppendDigests(nil, []Digest{{Bucket: 4}, {Bucket: 3}}), ErrPayload},
		{"differ, bucket that is none", differs, AppendDigests(nil, []Digest{{Bucket: Buckets}}), ErrPayload},
		{"want, one twice", wants, AppendWant(nil, []uint16{0, 0}), ErrPayload},
		{"want, descending", wants, AppendWant(nil, []uint16{4, 3}), ErrPayload},
		{"want, bucket that is none", wants, AppendWant(nil, []uint16{1, Buckets}), ErrPayload},
		{"want, highest number", wants, AppendWant(nil, []uint16{0xffff}), ErrPayload},
		{"want, more than there are", wants, append(AppendWant(nil, all), 0xff, 0xff), ErrPayload},
		{"error, reserved byte 2", codes, unhex(t, `0001 0100`), ErrPayload},
		{"error, reserved byte 3", codes, unhex(t, `0001 0001`), ErrPayload},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v, err := tt.decode(tt.b); !errors.Is(err, tt.want) {
				t.Errorf("parsed as %v, error %v; want %v", v, err, tt.want)
			}
		})
	}
	// The largest that are right.
	if _, err := ParseDigests(many(MaxPage), nil); err != nil {
		t.Errorf("a full page: %v", err)
	}
	if b := AppendWant(nil, all); len(b) != MaxClientPayload {
		t.Errorf("a Want of everything has %d bytes, MaxClientPayload is %d", len(b), MaxClientPayload)
	} else if got, err := ParseWant(b, nil); err != nil || !slices.Equal(got, all) {
		t.Errorf("a Want of everything: %d buckets, error %v", len(got), err)
	}
	if n := cutLen + MaxPage*digestLen; n > MaxClientPayload {
		t.Errorf("a page of digests has up to %d bytes, MaxClientPayload is %d", n, MaxClientPayload)
	}
}

// A caller's list is as it was after an error, and what was in front stays in front otherwise.
func TestListsAppend(t *testing.T) {
	digests := append(make([]Digest, 0, 8), Digest{1, 2, 3})
	buckets := append(make([]uint16, 0, 8), 77)
	bad := AppendDigests(nil, []Digest{{5, 5, 5}, {5, 5, 5}})
	if got, err := ParseDigests(bad, digests); err == nil || len(got) != 1 || got[0] != digests[0] {
		t.Errorf("digests after an error: %v", got)
	}
	if _, got, err := ParsePage(append(make([]byte, cutLen), bad...), digests); err == nil || len(got) != 1 || got[0] != digests[0] {
		t.Errorf("page after an error: %v", got)
	}
	if got, err := ParseWant(AppendWant(nil, []uint16{5, 5}), buckets); err == nil || len(got) != 1 || got[0] != 77 {
		t.Errorf("buckets after an error: %v", got)
	}
	if got, err := ParseDigests(bad[:digestLen], digests); err != nil || !slices.Equal(got, []Digest{{1, 2, 3}, {5, 5, 5}}) {
		t.Errorf("digests behind another: %v, error %v", got, err)
	}
	if got, err := ParseWant([]byte{0, 5}, buckets); err != nil || !slices.Equal(got, []uint16{77, 5}) {
		t.Errorf("buckets behind another: %v, error %v", got, err)
	}
}

func digestsGen(least int) *rapid.Generator[[]Digest] {
	return rapid.Custom(func(t *rapid.T) []Digest {
		buckets := bucketsGen(least, MaxPage).Draw(t, "buckets")
		var list []Digest
		for _, n := range buckets {
			list = append(list, Digest{n, rapid.Uint32().Draw(t, "count"), rapid.Uint64().Draw(t, "sum")})
		}
		return list
	})
}

func bucketsGen(least, most int) *rapid.Generator[[]uint16] {
	return rapid.Custom(func(t *rapid.T) []uint16 {
		list := rapid.SliceOfNDistinct(rapid.Uint16Range(0, Buckets-1), least, most, rapid.ID).Draw(t, "buckets")
		slices.Sort(list)
		return slices.Clip(append([]uint16(nil), list...))
	})
}

func TestRoundTrip(t *testing.T) {
	summary := rapid.Custom(func(t *rapid.T) any {
		return Summary{rapid.Uint64().Draw(t, "entries"), rapid.Bool().Draw(t, "complete")}
	})
	for _, tt := range []struct {
		name string
		payload
		gen *rapid.Generator[any]
	}{
		{"hello", hellos, rapid.Custom(func(t *rapid.T) any {
			return Hello{
				KeyID: rapid.Byte().Draw(t, "key"), Role: Role(rapid.Uint8Range(1, 2).Draw(t, "role")), Node: rapid.Uint64().Draw(t, "node"),
				Incarnation: rapid.Uint64Min(1).Draw(t, "incarnation"), Group: rapid.Uint64().Draw(t, "group"),
				Nonce: [NonceLen]byte(rapid.SliceOfN(rapid.Byte(), NonceLen, NonceLen).Draw(t, "nonce")),
			}
		})},
		{"request", requests, rapid.Custom(func(t *rapid.T) any {
			return Request{Purpose(rapid.Byte().Draw(t, "purpose")), rapid.Uint64().Draw(t, "node"), rapid.Uint64().Draw(t, "incarnation")}
		})},
		{"summary", summaries, summary},
		{"page", pages, rapid.Custom(func(t *rapid.T) any { return page{rapid.Uint64().Draw(t, "cut"), digestsGen(1).Draw(t, "digests")} })},
		{"differ", differs, digestsGen(0).AsAny()},
		{"want", wants, bucketsGen(0, 300).AsAny()},
		{"error", codes, rapid.Custom(func(t *rapid.T) any { return Code(rapid.Uint16().Draw(t, "code")) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				want := tt.gen.Draw(rt, "value")
				prefix := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(rt, "prefix")
				b := tt.encode(bytes.Clone(prefix), want)
				if !bytes.HasPrefix(b, prefix) {
					rt.Fatal("prefix changed")
				}
				got, err := tt.decode(b[len(prefix):])
				if err != nil {
					rt.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					rt.Fatalf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}
