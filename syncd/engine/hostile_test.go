package engine

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

func TestHostileDatagrams(t *testing.T) {
	two := []ipvssync.Record{conn(1), conn(2)}
	body := func(n int) []byte { return make([]byte, n) }
	heartbeat := func(change func(b []byte) []byte) []byte {
		b, err := mirror.AppendHeartbeat(nil, &mirror.Heartbeat{Uptime: 5, Stream: 9, Name: "a"}, []mirror.Echo{{Node: 1, Incarnation: 2}})
		if err != nil {
			t.Fatal(err)
		}
		return change(b)
	}
	set := func(off int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[off] = v; return b }
	}
	fromEnd := func(off int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[len(b)-off] = v; return b }
	}
	text := "1 " + strings.Repeat("ab", 32)
	const signed, all = "enforce permissive", "enforce permissive receive-only insecure"
	for _, tt := range []struct {
		name  string
		modes string
		y     forgery
		want  Counter
	}{
		{"unknown key id", signed, forgery{ring: otherRing(t, "9 "+strings.Repeat("ab", 32), "syncd", "224.0.0.81:8848"), records: two}, DropUnknownKey},
		{"signed, to a director without keys", "insecure", forgery{keyID: 1, records: two}, DropUnknownKey},
		{"key id 0", "enforce", forgery{keyID: -1, records: two}, DropUnsigned},
		{"key id 0 with another one's tag", "enforce", forgery{records: two, after: fromEnd(75, 0)}, DropUnsigned},
		{"key id 0, heartbeat", "enforce", forgery{keyID: -1, tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(slices.Clone)}}, DropUnsigned},
		{"other key under a known id", signed, forgery{ring: otherRing(t, "1 "+strings.Repeat("cd", 32), "syncd", "224.0.0.81:8848"), records: two}, DropForged},
		{"key of the other protocol", signed, forgery{ring: otherRing(t, text, "saru", "224.0.0.81:8848"), records: two}, DropForged},
		{"key of another group", signed, forgery{ring: otherRing(t, text, "syncd", "224.0.0.82:8848"), records: two}, DropForged},
		{"other syncid", all, forgery{syncID: 2, records: two}, DropSyncID},
		{"other syncid, heartbeat", all, forgery{syncID: 2, tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(slices.Clone)}}, DropSyncID},
		{"next format version", all, forgery{records: two, before: fromEnd(76, 2)}, DropVersion},
		{"unknown control kind", all, forgery{tr: mirror.Trailer{Kind: 200}}, DropKind},
		{"unknown kind next to the request", all, forgery{tr: mirror.Trailer{Kind: 66, Body: body(64)}}, DropKind},
		{"sender unknown", all, forgery{records: two, tr: mirror.Trailer{Sender: 0x1234, Incarnation: 7}}, DropIncarnation},
		{"sender's other incarnation", all, forgery{records: two, tr: mirror.Trailer{Sender: uint64(peer.IDOf("a")), Incarnation: 777}}, DropIncarnation},
		{"receiver's name, other incarnation", all, forgery{records: two, tr: mirror.Trailer{Sender: uint64(peer.IDOf("b")), Incarnation: 777}}, DropIncarnation},
		{"receiver's name and incarnation", all, forgery{records: two, tr: mirror.Trailer{Sender: uint64(peer.IDOf("b")), Incarnation: 2}}, DropOwn},
		{"heartbeat of the receiver", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Sender: uint64(peer.IDOf("b")), Incarnation: 2, Body: heartbeat(slices.Clone)}}, DropOwn},
		{"number 1 of the stream, long past", all, forgery{records: two, tr: mirror.Trailer{Sequence: 1}}, DropReplayed},
		{"more records than there are", all, forgery{records: two, before: set(4, 3)}, DropTruncated},
		{"fewer records than there are", all, forgery{records: two, before: set(4, 1)}, DropTruncated},
		{"255 records announced", all, forgery{records: two, before: set(4, 255)}, DropTruncated},
		{"body laid over the last record", all, forgery{records: two, before: func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[len(b)-72:], 36)
			return b
		}}, DropTruncated},
		{"body that ends in the header", all, forgery{records: two, before: func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[len(b)-72:], uint16(len(b)-mirror.MinLen-4))
			return b
		}}, DropTruncated},
		{"record that reaches into the trailer", all, forgery{records: two, before: set(8+36+3, 40)}, DropTruncated},
		{"record of an unknown type", all, forgery{records: two, before: set(8+36, 2)}, DropTruncated},
		{"record of an unknown version", all, forgery{records: two, before: set(8+2, 0x10)}, DropTruncated},
		{"bytes between records and trailer", all, forgery{tr: mirror.Trailer{}, before: func(b []byte) []byte {
			b = slices.Insert(b, 8, 0, 0, 0, 0)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			return b
		}}, DropTruncated},
		{"size of the message one less", all, forgery{records: two, before: func(b []byte) []byte { b[3]--; return b }}, DropTruncated},
		{"version 0 header in front of a trailer", all, forgery{records: two, before: set(5, 0)}, DropTruncated},
		{"spare of the header not zero", all, forgery{records: two, before: set(6, 1)}, DropTruncated},
		{"reserved field of the trailer not zero", all, forgery{records: two, before: fromEnd(70, 1)}, DropTruncated},
		{"heartbeat without a body", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat}}, DropTruncated},
		{"heartbeat with a name cut off", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(func(b []byte) []byte { return b[:len(b)-4] })}}, DropTruncated},
		{"heartbeat with more echoes than there are", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(42, 2))}}, DropTruncated},
		{"heartbeat with 255 echoes", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(42, 255))}}, DropTruncated},
		{"heartbeat with an endless name", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(43, 255))}}, DropTruncated},
		{"heartbeat with a reserved bit", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(48+45, 1))}}, DropTruncated},
		{"heartbeat with dirt behind the name", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(48+48+2, 1))}}, DropTruncated},
		{"a byte behind the datagram", all, forgery{records: two, after: func(b []byte) []byte { return append(b, 0) }}, DropTruncated},
		{"oversized by a second datagram behind it", all, forgery{records: two, after: func(b []byte) []byte { return append(slices.Clone(b), b[:len(b)-80]...) }}, DropTruncated},
	} {
		for _, mode := range strings.Fields(tt.modes) {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				f.all["b"].refuses(t, tt.name, f.forge(tt.y), tt.want)
			})
		}
	}
}

// Kinds and bodies that only somebody with a key, or in an unsigned farm anybody, can get wrong: the number counts, so that nothing
// seems missing, but the records do not.
func TestMalformedStream(t *testing.T) {
	two := []ipvssync.Record{conn(1), conn(2)}
	for name, tt := range map[string]struct {
		y    forgery
		want Counter
	}{
		"records of a foreign origin":       {forgery{records: two, tr: mirror.Trailer{Origin: uint64(peer.IDOf("c"))}}, DropTruncated},
		"records of the receiver's origin":  {forgery{records: two, tr: mirror.Trailer{Origin: uint64(peer.IDOf("b"))}}, DropTruncated},
		"stream kind of a later version":    {forgery{records: two, tr: mirror.Trailer{Kind: 3, Body: make([]byte, 400)}}, DropKind},
		"stream kind 0, which nobody sends": {forgery{records: two, before: func(b []byte) []byte { b[len(b)-74] = 0; return b }}, DropKind},
	} {
		for mode := range modes {
			t.Run(name+"/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				b := f.all["b"]
				counters, replica, injected := b.counters, b.dump(), len(b.injected)
				d := f.forge(tt.y)
				b.FromNetwork(f.now, 0, stockA, d)
				if diff := cmp.Diff(map[string]uint64{tt.want.String(): 1}, b.changed(counters)); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(replica, b.dump()); diff != "" || len(b.injected) != injected {
					t.Errorf("%d injected, replica (-before +after):\n%s", len(b.injected)-injected, diff)
				}
				if p := b.peers.Get(peer.IDOf("a")); p.Stream.Newest() != f.all["a"].stream+1 || p.Missing() != 0 {
					t.Errorf("newest %d, missing %d", p.Stream.Newest(), p.Missing())
				}
				b.refuses(t, "again", d, DropReplayed)
			})
		}
	}
}

// capture takes the datagrams that fn makes off the wire, so that nobody has them yet.
func (f *farm) capture(fn func()) []packet {
	held := f.wire
	f.wire = nil
	drop, tape := f.drop, len(f.tape)
	f.drop = func(string, string, []byte) bool { return true }
	fn()
	f.deliver()
	f.drop = drop
	f.wire = held
	return slices.Clone(f.tape[tape:])
}

// goodDatagrams are a live update, one that is sent again, a request and a heartbeat of a, all fresh and never delivered.
func goodDatagrams(f *farm) map[string][]byte {
	a, b := f.all["a"], f.all["b"]
	got := f.capture(func() {
		f.kernel("a", conn(1), conn(2), conn(3))
		f.kernel("a", conn(7))
		a.repeat(f.now, mirror.Range{First: a.stream, Count: 1})
		a.heartbeat()
	})
	if len(got) != 4 {
		f.t.Fatalf("%d datagrams", len(got))
	}
	body, err := mirror.AppendRequest(nil, &mirror.Request{Node: uint64(b.self), Incarnation: uint64(b.cfg.Incarnation)}, []mirror.Range{{First: 1 << 40, Count: 1}})
	if err != nil {
		f.t.Fatal(err)
	}
	return map[string][]byte{
		"records": got[0].b, "repeat": got[2].b, "heartbeat": got[3].b,
		"request": f.forge(forgery{tr: mirror.Trailer{Kind: mirror.KindRequest, Body: body}}),
	}
}

func TestEachByteFlipped(t *testing.T) {
	f := pair(t, "enforce")
	b := f.all["b"]
	good := goodDatagrams(f)
	for name, d := range good {
		fixed := len(d) - mirror.MinLen
		for i := range d {
			want := DropForged
			switch off := i - fixed; {
			case off >= 0 && off < 4:
				want = DropUnsigned // without the magic it is a stock kernel's
			case off == 4:
				want = DropVersion
			case off == 5:
				want = DropUnknownKey
			case off >= 8 && off < 12, off >= 60 && off < 64:
				want = DropTruncated
			}
			bad := slices.Clone(d)
			bad[i] ^= 0x81
			b.refuses(t, fmt.Sprintf("%s, byte %d of %d", name, i, len(d)), bad, want)
		}
		// A key id of 0 is the one that claims not to be signed.
		bad := slices.Clone(d)
		bad[fixed+5] = 0
		b.refuses(t, name+" with key id 0", bad, DropUnsigned)
	}
	// Every single bit of one of them, more cheaply.
	before, dump := b.counters, b.dump()
	d := good["records"]
	for i := range 8 * len(d) {
		bad := slices.Clone(d)
		bad[i/8] ^= 1 << (i % 8)
		b.FromNetwork(f.now, 0, stockA, bad)
	}
	var dropped uint64
	for c := DropForged; c <= DropStock; c++ {
		dropped += b.counters[c] - before[c]
	}
	if dropped != uint64(8*len(d)) || !slices.Equal(dump, b.dump()) {
		t.Errorf("%d of %d dropped", dropped, 8*len(d))
	}
	// And untouched they are good.
	for _, name := range []string{"records", "repeat", "heartbeat", "request"} {
		n := b.counters[ReceivedDatagrams]
		b.FromNetwork(f.now, 0, stockA, good[name])
		b.want(t, ReceivedDatagrams, n+1)
	}
}

func TestEachLength(t *testing.T) {
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			f := pair(t, mode)
			b := f.all["b"]
			for name, d := range goodDatagrams(f) {
				for n := range len(d) {
					b.refuses(t, fmt.Sprintf("%s cut to %d", name, n), slices.Clone(d[:n]), DropTruncated)
				}
				for _, n := range []int{1, 3, 4, 80, 1472 - len(d), 65507 - len(d)} {
					b.refuses(t, fmt.Sprintf("%s with %d more", name, n), append(slices.Clone(d), make([]byte, n)...), DropTruncated)
				}
			}
		})
	}
}
