package engine

import (
	"fmt"
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
	fmt.Fprintf(&s, "join %+v, %d injected, failure %v, backlog %v, audit %v\n", st.Join, len(d.injected), d.failure, st.Backlog, st.Audit)
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
