package engine

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// Modes of the director that is attacked.
var modes = map[string]func(*Config){
	"enforce":      func(c *Config) { c.Auth = Enforce },
	"permissive":   func(c *Config) { c.Auth = Permissive },
	"receive-only": func(c *Config) { c.Auth = ReceiveOnly },
	"insecure":     func(c *Config) { c.Ring = nil },
}

// pair is two directors in one mode that know each other. a is imitated, b is attacked.
func pair(t testing.TB, mode string) *farm {
	f := newFarm(t)
	f.start("a", modes[mode])
	f.start("b", modes[mode])
	f.run(2 * time.Second)
	f.kernel("a", conn(900), conn(901))
	f.run(100 * time.Millisecond)
	for _, d := range f.all {
		if !d.Synced() || d.peers.Get(peer.IDOf("a")) == nil && d.name == "b" {
			t.Fatalf("%s is not ready\n%s", d.name, f.log.String())
		}
	}
	return f
}

// state is everything that a datagram may change, but for counters.
func (d *director) state() string {
	var s strings.Builder
	st := d.Status(d.farm.now)
	fmt.Fprintf(&s, "synced %v, %d injected, failure %v, wants %v, taught %v\n", st.Synced, len(d.injected), d.failure, d.wants, len(d.lessons))
	for _, p := range st.Peers {
		fmt.Fprintf(&s, "peer %+v\n", p)
	}
	fmt.Fprintf(&s, "echoes %+v\n", d.peers.Echoes(nil, d.farm.now, 1<<20))
	for _, e := range d.dump() {
		s.WriteString(e + "\n")
	}
	return s.String()
}

// dump lists the replica: key, origin, stamp, real server.
func (d *director) dump() []string {
	var all []string
	for c := (table.Cursor{}); !c.Done; {
		c = d.table.Walk(d.farm.now, c, 1<<20, func(e *table.Entry) bool {
			r := &e.Record
			all = append(all, fmt.Sprintf("%d %v %v template %v: %v from %v, %v", r.Protocol, r.Client, r.Virtual, r.Template(), r.Real, e.Origin, e.Stamp))
			return true
		})
	}
	slices.Sort(all)
	return all
}

// changed returns the counters that differ from before.
func (d *director) changed(before Counters) map[string]uint64 {
	diff := map[string]uint64{}
	for i := range before {
		if n := d.counters[i] - before[i]; n != 0 {
			diff[Counter(i).String()] = n
		}
	}
	return diff
}

// refuses hands a datagram to d and checks that it changes nothing, and raises one counter by one.
func (d *director) refuses(t testing.TB, what string, b []byte, want Counter) {
	t.Helper()
	counters, state, original := d.counters, d.state(), slices.Clone(b)
	d.FromNetwork(d.farm.now, 0, stockA, b)
	if diff := cmp.Diff(map[string]uint64{want.String(): 1}, d.changed(counters)); diff != "" {
		t.Errorf("%s: counters (-want +got):\n%s", what, diff)
	}
	if diff := cmp.Diff(state, d.state()); diff != "" {
		t.Errorf("%s changes something (-before +after):\n%s", what, diff)
	}
	if !slices.Equal(original, b) {
		t.Errorf("%s: the datagram was written to", what)
	}
}

// forgery is a datagram made by hand. Zero fields are those of a good live update of a, the next in a's stream.
type forgery struct {
	ring    *seal.Ring
	keyID   int // -1: 0
	syncID  uint8
	records []ipvssync.Record
	tr      mirror.Trailer
	before  func(b []byte) []byte // changes the datagram before it is signed
	after   func(b []byte) []byte
}

func (f *farm) forge(y forgery) []byte {
	f.t.Helper()
	a := f.all["a"]
	signed := a.cfg.Ring != nil && a.cfg.Auth != ReceiveOnly
	if y.ring == nil {
		y.ring = f.ring()
	}
	if y.keyID == 0 && signed {
		y.keyID = int(y.ring.Signer())
	}
	if y.syncID == 0 {
		y.syncID = 1
	}
	t := y.tr
	if t.Kind == 0 {
		t.Kind = mirror.KindRecords
	}
	if t.Sender == 0 {
		t.Sender, t.Incarnation = uint64(a.self), uint64(a.cfg.Incarnation)
	}
	if t.Sequence == 0 {
		t.Sequence = a.stream + 1
		if !t.Kind.Stream() {
			t.Sequence = a.peers.NextControl()
		}
	}
	if t.Origin == 0 {
		t.Origin = t.Sender
	}
	if t.Clock == 0 {
		t.Clock = wall(f.now)
	}
	t.KeyID = uint8(max(y.keyID, 0))
	b := ipvssync.AppendHeaderV1(nil, y.syncID)
	for i := range y.records {
		var err error
		if b, err = ipvssync.AppendRecordV1(b, 0, &y.records[i]); err != nil {
			f.t.Fatal(err)
		}
	}
	b, err := mirror.AppendTrailer(ipvssync.PadV1(b, 0), &t)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := ipvssync.FinishV1(b, 0, len(y.records)); err != nil {
		f.t.Fatal(err)
	}
	if y.before != nil {
		b = y.before(b)
	}
	if t.KeyID != 0 {
		y.ring.Sign(b)
	}
	if y.after != nil {
		b = y.after(b)
	}
	return b
}

func otherRing(t testing.TB, text, protocol, group string) *seal.Ring {
	t.Helper()
	keys, err := seal.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.NewRing(keys, protocol, group)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The forgeries of this file are refused for the defect that each names, not for some mistake in making them.
func TestForgeMakesGoodDatagrams(t *testing.T) {
	for mode := range modes {
		f := pair(t, mode)
		b, before := f.all["b"], f.all["b"].counters
		b.FromNetwork(f.now, 0, stockA, f.forge(forgery{records: []ipvssync.Record{conn(1), conn(2)}}))
		want := map[string]uint64{"received_datagrams": 1, "received_bytes": 160, "remote_records": 2, "injected": 2}
		if mode == "receive-only" {
			want["accepted_unsigned"] = 1
		}
		if diff := cmp.Diff(want, b.changed(before)); diff != "" {
			t.Errorf("%s: counters (-want +got):\n%s", mode, diff)
		}
	}
}

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
		{"unknown kind next to the heartbeat", all, forgery{tr: mirror.Trailer{Kind: 65, Body: body(64)}}, DropKind},
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
		{"heartbeat with more echoes than there are", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(16, 2))}}, DropTruncated},
		{"heartbeat with 255 echoes", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(16, 255))}}, DropTruncated},
		{"heartbeat with an endless name", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(17, 255))}}, DropTruncated},
		{"heartbeat with a reserved bit", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(18, 1))}}, DropTruncated},
		{"heartbeat with dirt behind the name", all, forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Body: heartbeat(set(20+40+2, 1))}}, DropTruncated},
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
		"table without items":               {forgery{records: two, tr: mirror.Trailer{Kind: mirror.KindTable}}, DropTruncated},
		"table with an item too few":        {forgery{records: two, tr: mirror.Trailer{Kind: mirror.KindTable, Body: make([]byte, 8)}}, DropTruncated},
		"table with an item too many":       {forgery{records: two, tr: mirror.Trailer{Kind: mirror.KindTable, Body: make([]byte, 24)}}, DropTruncated},
		"table with half an item":           {forgery{records: two, tr: mirror.Trailer{Kind: mirror.KindTable, Body: make([]byte, 12)}}, DropTruncated},
		"end of a table with items":         {forgery{tr: mirror.Trailer{Kind: mirror.KindTable, Body: make([]byte, 8)}}, DropTruncated},
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

// goodDatagrams are a live update, a piece of a table, the end of one, and a heartbeat of a, all fresh and never delivered.
func goodDatagrams(f *farm) map[string][]byte {
	a := f.all["a"]
	item := mirror.AppendTableItem(nil, mirror.TableItem{ClockOffset: 3, Age: 1})
	got := f.capture(func() { f.kernel("a", conn(1), conn(2), conn(3)) })
	beat := f.capture(func() { a.heartbeat(f.now) })
	return map[string][]byte{
		"records":      got[0].b,
		"heartbeat":    beat[0].b,
		"table":        f.forge(forgery{records: []ipvssync.Record{conn(7)}, tr: mirror.Trailer{Kind: mirror.KindTable, Body: item, Sequence: a.stream + 1}}),
		"end of table": f.forge(forgery{tr: mirror.Trailer{Kind: mirror.KindTable, Sequence: a.stream + 2}}),
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
	for _, name := range []string{"records", "table", "end of table", "heartbeat"} {
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

func TestReplay(t *testing.T) {
	f := pair(t, "enforce")
	b := f.all["b"]
	good := goodDatagrams(f)
	names := slices.Sorted(maps.Keys(good))
	for _, name := range []string{"records", "table", "end of table", "heartbeat"} {
		b.FromNetwork(f.now, 0, stockA, good[name])
	}
	for _, name := range names {
		b.refuses(t, name+" again", good[name], DropReplayed)
	}
	f.run(time.Second)
	for _, name := range names {
		b.refuses(t, name+" a second later", good[name], DropReplayed)
	}
	f.run(time.Hour) // everything has expired: it must not come back
	if b.table.Len() != 0 {
		t.Fatalf("%d entries after an hour", b.table.Len())
	}
	for _, name := range names {
		b.refuses(t, name+" an hour later", good[name], DropReplayed)
	}
}

// A director's own datagrams come back to it.
func TestReflected(t *testing.T) {
	for mode := range modes {
		f := pair(t, mode)
		for n, p := range f.tape {
			f.all[p.from].refuses(t, fmt.Sprintf("%s: own datagram %d", mode, n), p.b, DropOwn)
		}
		// Those of an earlier life are no better, and are told from a namesake's.
		f.start(f.tape[0].from, modes[mode])
		d, before := f.all[f.tape[0].from], len(f.tape)
		f.run(2 * time.Second)
		for n, p := range f.tape[:before] {
			if p.from != d.name {
				continue
			}
			dump, counters := d.dump(), d.counters
			d.FromNetwork(f.now, 0, stockA, p.b)
			if diff := cmp.Diff(map[string]uint64{"drop_incarnation": 1}, d.changed(counters)); diff != "" {
				t.Errorf("%s: datagram %d of an earlier life: counters (-want +got):\n%s", mode, n, diff)
			}
			if diff := cmp.Diff(dump, d.dump()); diff != "" || d.failure != nil {
				t.Errorf("%s: datagram %d: failure %v\n%s", mode, n, d.failure, diff)
			}
		}
	}
}

// A whole life of a is taped. It is played to everybody after the restart of its receiver, of its sender and of both, forwards and
// backwards, quickly and slowly, while the farm goes on.
func TestTapeOfAnEarlierLife(t *testing.T) {
	orders := map[string]func([]packet) []packet{
		"in order": func(p []packet) []packet { return p },
		"reversed": func(p []packet) []packet { p = slices.Clone(p); slices.Reverse(p); return p },
	}
	restarts := map[string][]string{"receiver": {"b"}, "sender": {"a"}, "both": {"a", "b"}, "sender stays down": nil}
	for what, who := range restarts {
		for order, arrange := range orders {
			for _, pause := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond} {
				t.Run(fmt.Sprintf("%s/%s/%v", what, order, pause), func(t *testing.T) {
					f := newFarm(t, "a", "b")
					f.run(2 * time.Second)
					for i := range 20 {
						f.kernel("a", conn(i))
						f.run(40 * time.Millisecond)
					}
					var tape []packet
					for _, p := range f.tape {
						if p.from == "a" {
							tape = append(tape, p)
						}
					}
					f.all["a"].down = true
					f.run(20 * time.Minute) // the replica has expired
					for _, n := range who {
						f.start(n, nil)
					}
					b := f.all["b"]
					play := func(when string) {
						dump, before := b.dump(), b.counters
						for _, p := range arrange(tape) {
							b.FromNetwork(f.now, 1, stockA, p.b)
							if pause > 0 {
								f.run(pause)
							}
						}
						drops := b.counters[DropIncarnation] - before[DropIncarnation] + b.counters[DropReplayed] - before[DropReplayed] +
							b.counters[DuplicateLink] - before[DuplicateLink]
						if want := uint64(len(tape)); drops < want { // more when a lives: its own first heartbeats
							t.Errorf("%s: %d of %d dropped: %v", when, drops, want, b.changed(before))
						}
						if diff := cmp.Diff(dump, b.dump()); diff != "" {
							t.Errorf("%s: replica (-before +after):\n%s", when, diff)
						}
						p := b.peers.Get(peer.IDOf("a"))
						if f.all["a"].down && p != nil && !p.Lost {
							t.Errorf("%s: the dead lives: %+v", when, p.Echoed)
						}
						if !f.all["a"].down && (p == nil || p.Incarnation != f.all["a"].cfg.Incarnation) && pause > 0 {
							t.Errorf("%s: the living is not admitted: %+v", when, p)
						}
					}
					play("while starting")
					f.run(2 * time.Second)
					f.kernel("b", conn(100))
					play("while running")
				})
			}
		}
	}
}

// What stock kernels send, by version and by mode.
func TestStockKernel(t *testing.T) {
	recs := []ipvssync.Record{conn(1), conn(2)}
	v1, v0 := kernelMessage(t, recs...), ipvssync.AppendHeaderV0(nil, 1)
	v1[1] = 1
	for i := range recs {
		var err error
		if v0, err = ipvssync.AppendRecordV0(v0, 0, &recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := ipvssync.FinishV0(v0, 0, len(recs)); err != nil {
		t.Fatal(err)
	}
	change := func(b []byte, off int, v byte) []byte { b = slices.Clone(b); b[off] = v; return b }
	const unsigned = "permissive receive-only insecure"
	for _, tt := range []struct {
		name  string
		b     []byte
		modes string
		want  Counter
	}{
		{"version 1", v1, "enforce", DropUnsigned},
		{"version 0", v0, "enforce", DropUnsigned},
		{"version 1, no records", kernelMessage(t), "enforce", DropUnsigned},
		{"version 1, other syncid", change(v1, 1, 9), unsigned, DropSyncID},
		{"version 0, other syncid", change(v0, 1, 9), unsigned, DropSyncID},
		{"version 1, other syncid", change(v1, 1, 9), "enforce", DropUnsigned},
		{"version 1, size too small", change(v1, 3, v1[3]-1), "enforce " + unsigned, DropTruncated},
		{"version 0, size too large", change(v0, 3, v0[3]+1), "enforce " + unsigned, DropTruncated},
		{"nothing", nil, "enforce " + unsigned, DropTruncated},
		{"a byte", []byte{1}, "enforce " + unsigned, DropTruncated},
		{"version 1, a record more", change(v1, 4, 3), unsigned, DropStock},
		{"version 0, a record more", change(v0, 0, 3), unsigned, DropStock},
		{"version 1, last record of an unknown type", change(v1, 8+36, 2), unsigned, DropStock},
		{"version 1, record of version 1", change(v1, 8+2, 0x10), unsigned, DropStock},
		{"version 1, record of length 0", change(v1, 8+3, 0), unsigned, DropStock},
	} {
		for _, mode := range strings.Fields(tt.modes) {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				f.all["b"].refuses(t, tt.name, slices.Clone(tt.b), tt.want)
			})
		}
	}
	for name, msg := range map[string][]byte{"version 0": v0, "version 1": v1} {
		for _, mode := range strings.Fields(unsigned) {
			t.Run(name+" is believed/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				b, before := f.all["b"], f.all["b"].counters
				b.FromNetwork(f.now, 0, stockA, msg)
				want := map[string]uint64{
					"accepted_unsigned": 1, "received_datagrams": 1, "received_bytes": uint64(len(msg)), "remote_records": 2, "injected": 2,
				}
				if diff := cmp.Diff(want, b.changed(before)); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				e := b.entry(t, conn(1))
				if e.Origin != peer.IDOf("kernel 192.0.2.9") || e.Record.Timeout != 900 {
					t.Errorf("entry %+v", e)
				}
			})
		}
	}
}

// live checks that what every director's kernel reports reaches all the others.
func (f *farm) live(t *testing.T, n *int, step string) {
	t.Helper()
	for _, from := range f.names() {
		for range 3 {
			*n++
			r := conn(*n)
			f.kernel(from, r)
			for _, to := range f.names() {
				if _, ok := f.all[to].table.Get(f.now, &r); !ok {
					t.Errorf("%s: %s lacks what %s sent: %v", step, to, from, f.all[to].counters)
				}
			}
			f.run(60 * time.Millisecond)
		}
	}
}

func TestKeyRotation(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	n, k1, k2 := 0, "1 "+strings.Repeat("ab", 32), "2 "+strings.Repeat("cd", 32)
	for _, step := range []struct {
		name, text string
		signer     uint8
	}{
		{"both keys, the old one signs", k1 + "\n" + k2, 1}, {"both keys, the new one signs", k2 + "\n" + k1, 2}, {"the new key alone", k2, 2},
	} {
		f.text = step.text
		for _, d := range f.names() {
			f.all[d].cfg.Ring = f.ring() // SIGHUP
			f.live(t, &n, step.name+", at "+d)
			f.run(300 * time.Millisecond)
		}
		f.tape = nil
		f.run(200 * time.Millisecond)
		for _, p := range f.tape {
			if tr, _, err := mirror.ParseTrailer(p.b); err != nil || tr.KeyID != step.signer {
				t.Fatalf("%s: key id %d", step.name, tr.KeyID)
			}
		}
	}
	f.settled(t)
}

// settled checks that nothing was dropped, nobody was lost and all replicas are equal.
func (f *farm) settled(t *testing.T) {
	t.Helper()
	f.run(time.Second)
	names := f.names()
	for _, name := range names {
		d := f.all[name]
		for c := DropForged; c <= DropStock; c++ {
			if c != DropIncarnation { // those are the first heartbeats of each
				d.want(t, c, 0)
			}
		}
		if diff := cmp.Diff(f.all[names[0]].dump(), d.dump()); diff != "" {
			t.Errorf("%s and %s differ:\n%s", names[0], name, diff)
		}
		for _, p := range d.Status(f.now).Peers {
			if p.Lost || p.Missing != 0 {
				t.Errorf("%s: %s lost %v, missing %d", name, p.Name, p.Lost, p.Missing)
			}
		}
	}
}

// The way from a farm without keys to one that believes only what is signed. Each director is started again for each step, as
// for any option.
func TestHitlessRollout(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b", "c"} {
		f.start(n, modes["insecure"])
	}
	f.run(2 * time.Second)
	n := 0
	f.live(t, &n, "without keys")
	for _, mode := range []string{"receive-only", "permissive", "enforce"} {
		for _, name := range f.names() {
			lost := f.all[name].changed(Counters{})
			for _, c := range []Counter{DropUnknownKey, DropUnsigned, DropForged} {
				if lost[c.String()] != 0 {
					t.Errorf("before %s becomes %s: %v", name, mode, lost)
				}
			}
			old := f.all[name]
			f.start(name, modes[mode])
			f.all[name].injected = old.injected
			// What the others report while it is away or has just come must be there when it is synced.
			for _, other := range f.names() {
				if other != name {
					n++
					f.kernel(other, conn(n))
				}
			}
			f.run(1500 * time.Millisecond)
			if !f.all[name].Synced() {
				t.Fatalf("%s, %s: not synced\n%s", name, mode, f.log.String())
			}
			f.live(t, &n, name+" becomes "+mode)
		}
	}
	for _, name := range f.names() {
		if got := f.all[name].table.Len(); got != n {
			t.Errorf("%s has %d of %d connections", name, got, n)
		}
	}
	f.settled(t)
}
