package engine

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

var (
	t0     = time.Unix(1_700_000_000, 0)
	tickVS = netip.MustParseAddrPort("169.254.81.1:8848")
	stockA = netip.MustParseAddrPort("192.0.2.9:40000")
	equate = []cmp.Option{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}
)

// director is an engine with what it put out.
type director struct {
	*Engine
	name     string
	farm     *farm
	injected []ipvssync.Record
	down     bool
}

func (d *director) Send(b []byte) {
	d.farm.wire = append(d.farm.wire, packet{d.name, slices.Clone(b)})
}

func (d *director) Inject(r *ipvssync.Record) {
	c := *r
	c.PEName, c.PEData = slices.Clone(r.PEName), slices.Clone(r.PEData)
	d.injected = append(d.injected, c)
}

type packet struct {
	from string
	b    []byte
}

// farm is directors on a segment that loses nothing unless told to.
type farm struct {
	t    testing.TB
	now  time.Time
	wire []packet
	all  map[string]*director
	tape []packet // everything that was ever sent
	inc  peer.Incarnation
	text string // of the key file
	drop func(from, to string, b []byte) bool
	log  bytes.Buffer
}

func newFarm(t testing.TB, names ...string) *farm {
	f := &farm{t: t, now: t0, all: map[string]*director{}, text: "1 " + strings.Repeat("ab", 32)}
	for _, n := range names {
		f.start(n, nil)
	}
	return f
}

func (f *farm) ring() *seal.Ring {
	keys, err := seal.Parse([]byte(f.text))
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := seal.NewRing(keys, "syncd", "224.0.0.81:8848")
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// start starts a director with an empty replica, or starts it again.
func (f *farm) start(name string, change func(*Config)) *director {
	f.inc++
	d := &director{name: name, farm: f}
	cfg := Config{
		Node: name, Incarnation: f.inc, Links: []string{"eth0", "eth1"}, SyncID: 1, Ring: f.ring(), Tick: tickVS,
		Teaches: teaches(name), Output: d, Log: slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Now: f.now,
	}
	if change != nil {
		change(&cfg)
	}
	d.Engine = New(cfg)
	f.all[name] = d
	return d
}

// deliver hands over what is on the wire, and what that causes.
func (f *farm) deliver() {
	for len(f.wire) > 0 {
		p := f.wire[0]
		f.wire = f.wire[1:]
		f.tape = append(f.tape, p)
		for _, name := range f.names() {
			d := f.all[name]
			if name == p.from || d.down || f.drop != nil && f.drop(p.from, name, p.b) {
				continue
			}
			d.FromNetwork(f.now, 0, stockA, p.b)
		}
	}
}

func (f *farm) names() []string {
	var names []string
	for n := range f.all {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// run lets time pass in ticks.
func (f *farm) run(d time.Duration) {
	for end := f.now.Add(d); f.now.Before(end); {
		f.now = f.now.Add(20 * time.Millisecond)
		for _, n := range f.names() {
			if !f.all[n].down {
				f.turn(f.all[n])
			}
		}
		f.deliver()
	}
}

func conn(n int) ipvssync.Record {
	return ipvssync.Record{
		Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 4000),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"), Real: netip.MustParseAddrPort("10.9.0.7:8080"),
	}
}

// kernelMessage makes a message as the kernel's master thread does.
func kernelMessage(t testing.TB, recs ...ipvssync.Record) []byte {
	t.Helper()
	b := ipvssync.AppendHeaderV1(nil, 77)
	for i := range recs {
		var err error
		if b, err = ipvssync.AppendRecordV1(b, 0, &recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := ipvssync.FinishV1(b, 0, len(recs)); err != nil {
		t.Fatal(err)
	}
	return b
}

// kernel lets a director's kernel report records.
func (f *farm) kernel(name string, recs ...ipvssync.Record) {
	f.all[name].FromTap(f.now, kernelMessage(f.t, recs...))
	f.all[name].Flush()
	f.deliver()
}

func (d *director) entry(t testing.TB, r ipvssync.Record) table.Entry {
	t.Helper()
	e, ok := d.table.Get(d.farm.now, &r)
	if !ok {
		t.Fatalf("%s does not have %v", d.name, r.Client)
	}
	return e
}

func (d *director) want(t testing.TB, c Counter, n uint64) {
	t.Helper()
	if got := d.counters[c]; got != n {
		t.Errorf("%s: counter %s is %d, want %d", d.name, c, got, n)
	}
}

func TestLiveUpdate(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	for _, n := range f.names() {
		if !f.all[n].Synced() {
			t.Errorf("%s is not synced\n%s", n, f.log.String())
		}
	}
	tick := conn(0)
	tick.Virtual = tickVS
	dirty := conn(2)
	dirty.Flags = ipvssync.FlagSeqMask | ipvssync.FlagHashed
	ticks := 0
	f.all["a"].cfg.OnTick = func(time.Time, *ipvssync.Record) { ticks++ }
	f.all["a"].FromTap(f.now, kernelMessage(t, conn(1), tick, dirty))
	if ticks != 1 {
		t.Errorf("told of %d ticks", ticks)
	}
	f.all["a"].Flush()
	f.deliver()
	clean := dirty
	clean.Flags = 0
	for _, n := range []string{"b", "c"} {
		if diff := cmp.Diff([]ipvssync.Record{conn(1), clean}, f.all[n].injected, equate...); diff != "" {
			t.Errorf("%s injects (-want +got):\n%s", n, diff)
		}
		if e := f.all[n].entry(t, conn(1)); e.Origin != peer.IDOf("a") {
			t.Errorf("%s: origin %v", n, e.Origin)
		}
	}
	if len(f.all["a"].injected) != 0 {
		t.Error("a injects its own records")
	}
	// The second update of one connection in the same message must be newer than the first.
	fin := conn(1)
	fin.State, fin.Timeout = ipvssync.TCPTimeWait, 120
	f.kernel("a", conn(1), fin)
	if e := f.all["b"].entry(t, fin); e.Record.State != ipvssync.TCPTimeWait {
		t.Errorf("state is %d", e.Record.State)
	}
}

func TestFullDatagrams(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	var recs []ipvssync.Record
	for i := range 200 {
		recs = append(recs, conn(i))
	}
	f.tape = nil
	f.kernel("a", recs...)
	if len(f.tape) != 6 { // 38 records a datagram
		t.Errorf("200 records in %d datagrams", len(f.tape))
	}
	for _, p := range f.tape {
		if len(p.b) > mirror.MaxDatagram {
			t.Errorf("datagram of %d bytes", len(p.b))
		}
	}
	if n := len(f.all["b"].injected); n != 200 {
		t.Errorf("b injects %d", n)
	}
}

func TestTakeover(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	first := f.all["a"].entry(t, conn(1)).Stamp
	taken := conn(1)
	taken.Flags |= ipvssync.FlagSync
	f.kernel("b", taken)
	e := f.all["a"].entry(t, conn(1))
	if e.Origin != peer.IDOf("b") || e.Stamp.Grant != first.Grant+1 {
		t.Errorf("after the take-over: origin %v, grant %v", e.Origin, e.Stamp.Grant)
	}
	f.all["b"].want(t, Takeovers, 1)
	// What a had on its way before it heard of that changes nothing, however late its clock.
	stale := f.all["b"].counters[RemoteStale]
	old := conn(1)
	old.Real = netip.MustParseAddrPort("10.9.0.99:8080")
	f.all["b"].remote(f.now, &old, peer.IDOf("a"), table.Stamp{Grant: first.Grant, Clock: 1 << 60}, 0)
	f.all["b"].want(t, RemoteStale, stale+1)
	// And back again: a's entry is local to its kernel, so there is no flag.
	f.kernel("a", conn(1))
	if e := f.all["b"].entry(t, conn(1)); e.Origin != peer.IDOf("a") || e.Stamp.Grant != first.Grant+2 {
		t.Errorf("after the hand-back: origin %v, grant %v", e.Origin, e.Stamp.Grant)
	}
}

func TestNewcomerIsTaught(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	const n = 5000
	for i := range n {
		c := conn(i)
		if i%2 == 0 {
			f.all["a"].FromTap(f.now, kernelMessage(t, c))
		} else {
			f.all["b"].FromTap(f.now, kernelMessage(t, c))
		}
	}
	template := conn(1)
	template.Flags, template.Client, template.Timeout = ipvssync.FlagTemplate, netip.AddrPortFrom(template.Client.Addr(), 0), 360
	f.kernel("a", template)
	f.run(100 * time.Second)
	f.all["a"].down = true
	f.run(3 * time.Second)
	c := f.start("c", nil)
	again := f.start("a", nil) // with an empty kernel
	if c.Synced() {
		t.Error("synced before it has heard anybody")
	}
	f.run(2 * time.Second)
	for _, d := range []*director{c, again} {
		if !d.Synced() || d.table.Len() != n+1 || len(d.injected) != n+1 {
			t.Errorf("%s: synced %v, %d entries, %d injected", d.name, d.Synced(), d.table.Len(), len(d.injected))
		}
		for _, r := range d.injected {
			if want := uint32(360); r.Template() && r.Timeout != want {
				t.Errorf("template injected with %d s, want %d", r.Timeout, want)
			}
			if !r.Template() && (r.Timeout < 790 || r.Timeout > 800) {
				t.Fatalf("connection injected with %d s, want what remains of 900", r.Timeout)
			}
		}
		for i := range n {
			r := conn(i)
			want, got := f.all["b"].entry(t, r), d.entry(t, r)
			if want.Stamp != got.Stamp || want.Origin != got.Origin {
				t.Fatalf("entry %d: %+v %v, b has %+v %v", i, got.Stamp, got.Origin, want.Stamp, want.Origin)
			}
		}
	}
}

// A daemon that was killed knows nothing when it comes back, but its kernel goes on: what the peers teach is older than that.
func TestReclaim(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.kernel("b", conn(1)) // grant 1
	f.all["a"].down = true
	f.run(time.Second)
	a := f.start("a", nil)
	moved := conn(1)
	moved.Real = netip.MustParseAddrPort("10.9.0.8:8080") // the client's port was used again meanwhile
	f.kernel("a", moved)
	f.run(2 * time.Second)
	for _, d := range f.all {
		e := d.entry(t, moved)
		if e.Record.Real != moved.Real || e.Origin != a.self || e.Stamp.Grant != mirror.NewGrant(0, 2) {
			t.Errorf("%s: real server %v, origin %v, grant %v", d.name, e.Record.Real, e.Origin, e.Stamp.Grant)
		}
	}
	for _, r := range a.injected {
		if r.Real != moved.Real {
			t.Errorf("a overwrote a live connection of its kernel: %+v", r)
		}
	}
}

func TestRebind(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	other := conn(2)
	other.Virtual = netip.MustParseAddrPort("192.0.2.1:443")
	marked := conn(3)
	marked.Virtual, marked.Fwmark = netip.MustParseAddrPort("192.0.2.7:9"), 5
	f.kernel("a", conn(1), other, marked)
	local := conn(9)
	f.kernel("b", local)
	b := f.all["b"]
	for name, tt := range map[string]struct {
		s    Service
		want []ipvssync.Record
	}{
		"by address":   {Service{Protocol: 6, Virtual: conn(1).Virtual}, []ipvssync.Record{conn(1)}},
		"any port":     {Service{Protocol: 6, Virtual: netip.MustParseAddrPort("192.0.2.1:0")}, []ipvssync.Record{conn(1), other}},
		"by mark":      {Service{Fwmark: 5}, []ipvssync.Record{marked}},
		"another mark": {Service{Fwmark: 6}, nil},
		"UDP":          {Service{Protocol: 17, Virtual: conn(1).Virtual}, nil},
	} {
		b.injected = nil
		b.Rebind([]Service{tt.s})
		f.run(100 * time.Millisecond)
		if diff := cmp.Diff(tt.want, b.injected, append(equate, cmpopts.IgnoreFields(ipvssync.Record{}, "Timeout"))...); diff != "" {
			t.Errorf("%s: injected (-want +got):\n%s", name, diff)
		}
	}
}

func TestReinject(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1), conn(2))
	f.kernel("b", conn(9))
	b := f.all["b"]
	b.injected = nil
	b.Reinject()
	f.run(time.Second)
	want := []ipvssync.Record{conn(1), conn(2)}
	if diff := cmp.Diff(want, b.injected, append(equate, cmpopts.IgnoreFields(ipvssync.Record{}, "Timeout"))...); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
}

func TestFilters(t *testing.T) {
	template, other := conn(1), conn(2)
	template.Flags = ipvssync.FlagTemplate
	other.Virtual = netip.MustParseAddrPort("192.0.2.1:443")
	for name, filter := range map[string]Filter{
		"templates": {TemplatesOnly: true}, "a service": {Services: []Service{{Protocol: 6, Virtual: other.Virtual}}},
	} {
		f := newFarm(t, "b")
		d := f.start("a", func(c *Config) { c.Filter = filter })
		pick := other
		if filter.TemplatesOnly {
			pick = template
		}
		f.kernel("a", conn(7), pick) // before it has joined: published then
		f.run(2 * time.Second)
		f.kernel("a", conn(1), pick)
		d.want(t, TapFiltered, 2)
		for _, n := range f.names() {
			if f.all[n].table.Len() != 1 || f.all[n].entry(t, pick).Origin != d.self {
				t.Errorf("only %s: %s has %v", name, n, f.all[n].dump())
			}
		}
		d.SetFilter(Filter{})
		f.kernel("a", conn(7))
		if n := f.all["b"].table.Len(); n != 2 {
			t.Errorf("without a filter: %d entries", n)
		}
	}
}

func TestNamesake(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	old := f.all["a"]
	delete(f.all, "a")
	old.name = "old a"
	f.all["old a"] = old
	twin := f.start("a", nil)
	f.run(2 * time.Second)
	if twin.Failure() == nil || !strings.Contains(twin.Failure().Error(), "--node") {
		t.Errorf("the later one goes on: %v", twin.Failure())
	}
	if old.Failure() != nil || old.counters[Namesakes] == 0 {
		t.Errorf("the earlier one: %v, %d alarms", old.Failure(), old.counters[Namesakes])
	}
}

func TestTwoLinks(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	b, before := f.all["b"], f.all["b"].counters
	f.kernel("a", conn(1))
	last := f.tape[len(f.tape)-1].b
	b.FromNetwork(f.now, 1, stockA, last)
	b.FromNetwork(f.now, 1, stockA, last)
	b.FromNetwork(f.now, 0, stockA, last)
	b.want(t, DuplicateLink, before[DuplicateLink]+1)
	b.want(t, DropReplayed, before[DropReplayed]+2)
	if len(b.injected) != 1 {
		t.Errorf("injected %d times", len(b.injected))
	}
}

func TestMissingAtTheTail(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.drop = func(from, to string, b []byte) bool {
		tr, _, err := mirror.ParseTrailer(b)
		return err == nil && tr.Kind.Stream()
	}
	f.kernel("a", conn(1))
	f.kernel("a", conn(2))
	f.run(200 * time.Millisecond)
	if st := f.all["b"].Status(f.now); len(st.Peers) != 1 || st.Peers[0].Missing != 2 {
		t.Errorf("status %+v", st.Peers)
	}
}

func ExampleCounters() {
	var c Counters
	for name := range c.All {
		if strings.HasPrefix(name, "drop_f") {
			fmt.Println(name)
		}
	}
	// Output: drop_forged
}
