package core

import (
	"slices"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// neighbour returns a name whose node comes before that of a in the order of nodes, or after it.
func neighbour(before bool) string {
	for _, name := range []string{"b", "c", "d", "e", "f", "g", "h"} {
		if (who(name).node < who("a").node) == before {
			return name
		}
	}
	panic("none of seven names does")
}

// TestFounding founds a farm where that may be, and waits otherwise (hole 4).
func TestFounding(t *testing.T) {
	const listen = 1200 * time.Millisecond // 2 deadtime and 2 keepalives
	first, second := neighbour(true), neighbour(false)
	joins := func(*coord.Heartbeat) {}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		local  func(*Local)
		heard  map[string]func(*coord.Heartbeat)
		before time.Duration // not before
		within time.Duration // 0: never
		alarm  string
	}{
		{name: "alone", before: listen - 20*time.Millisecond, within: listen + 20*time.Millisecond},
		{name: "before the next in order", heard: map[string]func(*coord.Heartbeat){second: joins}, before: listen - 20*time.Millisecond, within: listen + 20*time.Millisecond},
		{name: "not before the first in order", heard: map[string]func(*coord.Heartbeat){first: joins}},
		{name: "not synced: after the start delay", local: func(l *Local) { l.Synced = false }, before: 29 * time.Second, within: 31 * time.Second},
		{name: "another one is not synced yet", heard: map[string]func(*coord.Heartbeat){first: func(h *coord.Heartbeat) { h.State = 0 }}, before: 29 * time.Second, within: 31 * time.Second},
		{name: "no ping node answers", change: func(c *Config) { c.PingNodes = 2 }, local: func(l *Local) { l.Pings = 0 }, alarm: "alone"},
		{name: "one of two expected: after the start delay it is too few", change: func(c *Config) { c.Expect = 2 }, alarm: "alone"},
		{name: "somebody speaks of a farm", heard: map[string]func(*coord.Heartbeat){second: func(h *coord.Heartbeat) {
			h.Counts = coord.Ref{Line: coord.Line{Term: 1, Node: 1}, Version: 1, Digest: coord.Digest{1}}
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.change)
			if tt.local != nil {
				l := r.local
				tt.local(&l)
				r.SetLocal(r.at, l)
				r.obey()
			}
			start, limit := r.at, tt.within
			if limit == 0 {
				limit = 33 * time.Second
			}
			for r.counts == nil && r.at.Sub(start) < limit {
				r.pass(10 * time.Millisecond)
				if r.at.UnixMilli()%100 == 0 {
					for name, change := range tt.heard {
						r.beat(name, change)
					}
				}
			}
			if founded := r.counts != nil; founded != (tt.within > 0) || founded && r.at.Sub(start) < tt.before {
				t.Errorf("founded: %v, after %v", founded, r.at.Sub(start))
			}
			if tt.alarm != "" && r.alarms[tt.alarm] == "" {
				t.Errorf("alarms %v", r.alarms)
			}
			if r.counts != nil && (r.counts.Line.Term != 1 || r.ownedBy(r.counts, r.self) == 0) {
				t.Errorf("term %d, %d buckets", r.counts.Line.Term, r.ownedBy(r.counts, r.self))
			}
		})
	}
}

// TestFoundsTogether has more than half of those that are expected accept the first table, each only one.
func TestFoundsTogether(t *testing.T) {
	quorum := func(c *Config) { c.Partition, c.Expect = WithQuorum, 3 }
	second := neighbour(false)
	r := newRig(t, quorum)
	r.pass(1500*time.Millisecond, second)
	if r.counts != nil {
		t.Fatal("founded, and nobody has accepted it")
	}
	if r.pass(31*time.Second, second); r.counts != nil {
		t.Fatal("founded, and nobody has accepted it")
	}
	a := last[coord.Accept](r)
	if a == nil || a.Parent != a.Table {
		t.Fatalf("proposed %+v", a)
	}
	r.beat(second, func(h *coord.Heartbeat) { h.Pending, h.PendingBallot = a.Table, a.Ballot })
	if r.counts == nil || r.counts.ref != a.Table || len(r.counts.members) != 2 {
		t.Fatal("not founded with two of three")
	}
	if r.majority(r.counts) != 2 {
		t.Errorf("%d of two decide", r.majority(r.counts))
	}
}

// TestAcceptsOneFarm accepts the first farm that is founded, another only when that one's founder is gone, and is silent then for as long as a lease may last.
func TestAcceptsOneFarm(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Partition, c.Expect = WithQuorum, 3 })
	r.pass(500*time.Millisecond, "b", "c")
	found := func(by string, others ...string) *table {
		t := tableOf(coord.Quorum, append([]string{by}, others...)...)
		t.Line, t.Version, t.Parent = coord.Line{Term: 1, Node: who(by).incarnation}, 1, coord.Digest{}
		got := newTable(t)
		r.store.put(got)
		r.hear(&coord.Accept{Header: r.header(by), Parent: got.ref, Ballot: coord.Ballot{Round: 1, Node: who(by).node}, Table: got.ref})
		return got
	}
	if found("b", "c"); r.pending != nil {
		t.Fatal("a farm without this director")
	}
	one := found("b", "a")
	if r.pending != one || last[coord.Heartbeat](r).Pending != one.ref {
		t.Fatal("not accepted")
	}
	if found("c", "a"); r.pending != one {
		t.Fatal("another one accepted at once")
	}
	r.pass(700*time.Millisecond, "c")
	two := found("c", "a")
	if r.pending == nil || r.pending.ref != two.ref {
		t.Fatal("locked for ever, though the founder is gone")
	}
	supports := func() bool {
		r.beat("c")
		for _, e := range last[coord.Heartbeat](r).Echoes {
			if e.Supports {
				return true
			}
		}
		return false
	}
	r.pass(100 * time.Millisecond)
	if supports() {
		t.Error("it supports the second one's founder, while the first one's may have a lease")
	}
	r.pass(400*time.Millisecond, "c")
	if !supports() {
		t.Error("it supports nobody any more")
	}
}

// TestYield meets a side in another line: the lower one closes, is another incarnation, and says nothing before its kernel has closed (hole 9).
func TestYield(t *testing.T) {
	for _, tt := range []struct {
		name   string
		term   uint32 // of the other line
		deaf   bool   // it does not hear this director any more
		yields bool
	}{
		{"theirs is later", 2, false, true},
		{"theirs is earlier", 0, false, false},
		{"theirs is earlier, but it is deaf (hole 5)", 0, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := farm(t, coord.Available, "a", "b")
			r.adopt(newTable(func() *coord.Table {
				t := follow(r.counts.Table, "a")
				t.Dead = []coord.Member{{Node: who("b").node, Incarnation: who("b").incarnation}}
				t.Line = coord.Line{Term: 1, Node: 9}
				return t
			}()))
			r.slow = true
			r.sent = nil
			newest := r.newest
			foreign := func(h *coord.Heartbeat) {
				h.Counts = coord.Ref{Line: coord.Line{Term: tt.term, Node: 8}, Version: 7, Digest: coord.Digest{3}}
				if tt.deaf {
					h.Echoes[0].Sequence = newest
				}
			}
			for range 6 {
				r.pass(keepalive)
				r.Applied(r.at, r.filter.Gen-1)
				if !slices.Contains(r.events, "yield") {
					r.sent = nil
					r.beat("b", foreign)
				}
			}
			if got := slices.Contains(r.events, "yield"); got != tt.yields {
				t.Fatalf("yields: %v", got)
			}
			if !tt.yields {
				if r.alarms["split"] == "" {
					t.Error("no alarm")
				}
				return
			}
			if count(r.filter.Open) != 0 || r.counts != nil || r.self.incarnation != 2 {
				t.Errorf("%d buckets are open, incarnation %d", count(r.filter.Open), r.self.incarnation)
			}
			if len(r.sent) != 0 {
				t.Errorf("%T was sent before the kernel had closed", r.sent[0])
			}
			r.Applied(r.at, r.filter.Gen)
			r.obey()
			r.pass(keepalive)
			if h := last[coord.Heartbeat](r); h == nil || h.Incarnation != 2 || h.Counts != (coord.Ref{}) || h.Open != 0 {
				t.Errorf("then it says %+v", h)
			}
		})
	}
}

// TestOpensNothingWhileAnotherLineIsMet keeps closed what is not open yet as long as a foreign side is heard.
func TestOpensNothingWhileAnotherLineIsMet(t *testing.T) {
	r := farm(t, coord.Available, "a", "b", "c")
	b := bucketOf(r.counts, "b")
	next := follow(r.counts.Table, "a", "c")
	next.Dead = []coord.Member{{Node: who("b").node, Incarnation: who("b").incarnation}}
	next.Line = coord.Line{Term: 5, Node: 1}
	next.Term = 5
	next.Owner[b] = uint8(next.MemberIndex(r.self.node))
	foreign := func(h *coord.Heartbeat) {
		h.Counts = coord.Ref{Line: coord.Line{Term: 4, Node: 8}, Version: 7, Digest: coord.Digest{3}}
	}
	r.adopt(newTable(next))
	r.beat("b", foreign)
	for range 20 {
		r.pass(50*time.Millisecond, "c")
		r.beat("b", foreign)
		if r.open(b) {
			t.Fatal("opened while the other side may be open")
		}
		if r.counts == nil {
			t.Fatal("yields to the lower line")
		}
	}
	if took := r.opensIn(b, "c"); took < 200*time.Millisecond || took > 400*time.Millisecond {
		t.Errorf("opened %v after the other side was heard last", took)
	}
}

// TestRumours looks for a farm longer when somebody speaks of one who has not proved that it lives, but not for ever: it may be a recording.
func TestRumours(t *testing.T) {
	r := newRig(t, func(c *Config) { c.StartDelay = 3 * time.Second })
	say := func(h *coord.Heartbeat) {
		h.Echoes = nil
		h.Counts = coord.Ref{Line: coord.Line{Term: 1, Node: 1}, Version: 1, Digest: coord.Digest{1}}
	}
	for r.counts == nil && r.at.Sub(epoch) < 5*time.Second {
		r.pass(50 * time.Millisecond)
		if v := r.beat("b", say); v != peer.WrongIncarnation {
			t.Fatal(v)
		}
	}
	if took := r.at.Sub(epoch); took < 2900*time.Millisecond || took > 3200*time.Millisecond {
		t.Errorf("founded after %v", took)
	}
}

// TestMinority of a table whose other members are gone waits, yields when all have started again, and does nothing without ping nodes.
func TestMinority(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	r.pass(10 * time.Second)
	if r.counts == nil || r.alarms["minority"] == "" || count(r.filter.Open) != 0 {
		t.Fatalf("alarms %v, %d buckets are open", r.alarms, count(r.filter.Open))
	}
	for range 20 {
		r.pass(keepalive)
		for _, name := range []string{"b", "c"} {
			r.beat(name, func(h *coord.Heartbeat) {
				h.Incarnation, h.State, h.Counts = 8, h.State|coord.StateJoins, coord.Ref{}
			})
		}
	}
	if !slices.Contains(r.events, "yield") {
		t.Error("nobody will ever have a quorum of this table again")
	}
}

// TestCheck refuses timers with which the argument does not hold.
func TestCheck(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		change func(*Config)
		good   bool
	}{
		{func(*Config) {}, true},
		{func(c *Config) { c.Lease = 299 * ms }, false},
		{func(c *Config) { c.Deadtime = 370 * ms }, true},
		{func(c *Config) { c.Deadtime = 369 * ms }, false},
		{func(c *Config) { c.Warntime = 100 * ms }, false},
		{func(c *Config) { c.Warntime = 501 * ms }, false},
	} {
		c := config()
		tt.change(&c)
		if err := c.Check(); (err == nil) != tt.good {
			t.Errorf("lease %v, deadtime %v, warntime %v: %v", c.Lease, c.Deadtime, c.Warntime, err)
		}
	}
}
