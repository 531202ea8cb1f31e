package core

import (
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// TestHold computes S, as the age of the heartbeat from which the lease is counted (docs/SAFETY.md, section 3).
func TestHold(t *testing.T) {
	const never = -1
	type other struct {
		supports int // ms since the own heartbeat was sent that it supports; never
		silent   int // ms since it was heard; never: it is not known
		echoed   int // age of its newest echo when that was made, ms
		stranger int // ms since it was heard without proof; 0: not
	}
	for _, tt := range []struct {
		name   string
		policy coord.Policy
		others []other
		pings  bool // there are ping nodes, and none answers
		want   int  // ms; never: no lease
	}{
		{"quorum of one", coord.Quorum, nil, false, 0},
		{"quorum of two: the other one", coord.Quorum, []other{{supports: 40}}, false, 40},
		{"quorum of three: the better of two", coord.Quorum, []other{{supports: 250}, {supports: 40}}, false, 40},
		{"quorum of four: the second of three", coord.Quorum, []other{{supports: 10}, {supports: 90}, {supports: 200}}, false, 90},
		{"quorum of five: the second of four", coord.Quorum, []other{{supports: 10}, {supports: 90}, {supports: 200}, {supports: 300}}, false, 90},
		{"quorum of three, nobody supports", coord.Quorum, []other{{supports: never}, {supports: never}}, false, never},
		{"hole 10: the master is silent, the others support", coord.Quorum, []other{{supports: never, silent: 800}, {supports: 30}}, false, 30},
		{"available, alone", coord.Available, nil, false, 0},
		{"available: the worst of those that are heard", coord.Available, []other{{supports: 30, silent: 20}, {supports: 120, silent: 20}}, false, 120},
		{"available: who is heard and does not support", coord.Available, []other{{supports: never, silent: 20}}, false, never},
		{"hole 6: the last heartbeat of a dead one does not bind", coord.Available, []other{{supports: 230, silent: 210, echoed: 20}}, false, 0},
		{"within two keepalives it does", coord.Available, []other{{supports: 230, silent: 190, echoed: 20}}, false, 230},
		{"hole 5: whose last word showed it deaf binds until deadtime", coord.Available, []other{{supports: 700, silent: 450, echoed: 260}}, false, 700},
		{"and no longer", coord.Available, []other{{supports: 800, silent: 501, echoed: 260}}, false, 0},
		{"a member that never heard this one binds when it is heard", coord.Available, []other{{silent: never, stranger: 100}}, false, 2000 - 130},
		{"and not when it is not", coord.Available, []other{{silent: never}}, false, 0},
		{"cut off from everything", coord.Available, []other{{supports: 900, silent: 600}}, true, never},
		{"no ping node, but a member", coord.Available, []other{{supports: 30, silent: 20}}, true, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(config(), epoch)
			c.now = epoch.Add(time.Minute)
			if tt.pings {
				c.cfg.PingNodes = 1
			}
			ago := func(ms int) time.Time { return c.now.Add(-time.Duration(ms) * time.Millisecond) }
			names := []string{"a", "b", "c", "d", "e"}[:len(tt.others)+1]
			c.counts = newTable(tableOf(tt.policy, names...))
			c.acceptedAt = ago(2000)
			for i, o := range tt.others {
				m := who(names[i+1])
				if o.stranger > 0 {
					c.strangers[m] = stranger{1, ago(o.stranger)}
				}
				if o.silent == never {
					continue
				}
				v := &view{who: m, peer: &peer.Peer{Incarnation: peer.Incarnation(m.incarnation)}, at: ago(o.silent), echo: 1}
				v.echoedFresh = v.at.Add(-time.Duration(o.echoed) * time.Millisecond)
				if o.supports != never {
					v.supported = uint64(i + 1)
					c.sent.add(v.supported, ago(o.supports))
				}
				c.views[m.node] = v
			}
			s, want := c.hold(c.counts), ago(tt.want)
			if tt.want == never {
				want = time.Time{}
			}
			if !s.Equal(want) {
				t.Errorf("S is %v ago, want %v ago", c.now.Sub(s), c.now.Sub(want))
			}
		})
	}
}

// TestNotNewer says whose statement lets its echo support the lease. Hole 1: a member that has accepted something newer does not.
func TestNotNewer(t *testing.T) {
	counts := newTable(tableOf(coord.Quorum, "a", "b", "c"))
	pending, other := newTable(follow(counts.Table, "b", "a", "c")), newTable(follow(counts.Table, "c", "a", "b"))
	later, foreign := newTable(follow(pending.Table, "a", "b", "c")), tableOf(coord.Quorum, "b", "c")
	foreign.Line.Node++
	ref := func(t *table) coord.Ref {
		if t == nil {
			return coord.Ref{}
		}
		return t.ref
	}
	older := coord.Ref{Line: counts.Line, Version: counts.Version - 3, Digest: coord.Digest{7}}
	parent := coord.Ref{Line: counts.Line, Version: counts.Version - 1, Digest: counts.Parent}
	low, mid, high := coord.Ballot{Round: 1, Node: 1}, coord.Ballot{Round: 2, Node: 1}, coord.Ballot{Round: 3, Node: 1}
	for _, tt := range []struct {
		name            string
		pending         *table // here, accepted under mid
		counts          coord.Ref
		itsPending      *table
		itsBallot       coord.Ballot
		supports, joint bool
	}{
		{"the same", nil, counts.ref, nil, coord.Ballot{}, true, false},
		{"it has accepted a successor, this one has not", nil, counts.ref, pending, low, false, false},
		{"both have accepted the same", pending, counts.ref, pending, low, true, false},
		{"the same, under a later ballot", pending, counts.ref, pending, high, true, false},
		{"it has not accepted yet", pending, counts.ref, nil, coord.Ballot{}, true, false},
		{"it has accepted another one, later", pending, counts.ref, other, high, false, false},
		{"it has accepted another one, before", pending, counts.ref, other, low, true, false},
		{"the pending one counts for it", pending, pending.ref, nil, coord.Ballot{}, true, false},
		{"and it has accepted the next", pending, pending.ref, later, low, false, false},
		{"the next counts for it, which is not known here", nil, pending.ref, nil, coord.Ballot{}, false, false},
		{"it still has the parent", nil, parent, nil, coord.Ballot{}, true, false},
		{"the parent, and accepted this", nil, parent, counts, low, true, false},
		{"the parent, and accepted another", nil, parent, other, low, false, false},
		{"it is far behind", nil, older, other, low, true, false},
		{"another line", nil, newTable(foreign).ref, nil, coord.Ballot{}, false, false},
		{"it has just joined", nil, coord.Ref{}, nil, coord.Ballot{}, true, false},
		{"it founds another farm", nil, coord.Ref{}, other, low, false, false},
		{"it founds this one", nil, coord.Ref{}, counts, low, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(config(), epoch)
			if c.notNewer(tt.counts, ref(tt.itsPending), tt.itsBallot) {
				t.Error("without a table nothing is supported")
			}
			c.counts, c.pending = counts, tt.pending
			if tt.pending != nil {
				c.pendingBallot = mid
			}
			if got := c.notNewer(tt.counts, ref(tt.itsPending), tt.itsBallot); got != tt.supports {
				t.Errorf("supports: %v", got)
			}
		})
	}
}

// TestJointHold lets the lease of a director with a pending table end with the support of either table's members.
func TestJointHold(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	next := newTable(follow(r.counts.Table, "a", "b", "d")) // d joins, c is not in it
	next.Owner = r.counts.Owner
	r.store.put(next)
	ballot := coord.Ballot{Round: 1, Node: who("b").node}
	r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: ballot, Table: next.ref})
	if r.pending != next {
		t.Fatal("not accepted")
	}
	accepted := func(h *coord.Heartbeat) { h.Pending, h.PendingBallot = next.ref, ballot }
	r.beat("b", accepted)
	if s := r.hold(r.counts); r.at.Sub(s) > 60*time.Millisecond {
		t.Fatalf("b does not support under the table that counts: %v", r.at.Sub(s))
	}
	// c supports on, b does not: a majority of the first, and none of the second.
	for range 4 {
		r.pass(keepalive)
		r.beat("c", accepted)
	}
	if !r.lapsed {
		t.Errorf("held without a majority of the pending table; lease %v", r.lease.Sub(r.at))
	}
}

// TestLapsed loses the lease and gets it back by no support, but by a new table.
func TestLapsed(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	r.pass(350 * time.Millisecond)
	if !r.lapsed || count(r.filter.Open) != 0 {
		t.Fatalf("lapsed: %v, %d buckets are open", r.lapsed, count(r.filter.Open))
	}
	r.pass(2*keepalive, "b", "c")
	if count(r.filter.Open) != 0 {
		t.Error("a lost lease came back under the same table")
	}
	r.adopt(newTable(follow(r.counts.Table, "a", "b", "c")))
	r.pass(500*time.Millisecond, "b", "c")
	if count(r.filter.Open) == 0 {
		t.Error("closed under the next table")
	}
	r.Lapsed(r.at)
	r.obey()
	if !r.lapsed || count(r.filter.Open) != 0 {
		t.Error("the kernel's word that the lease has ended changed nothing")
	}
}

// TestAsks asks for heartbeats when half of the lease has run out, and answers who asks.
func TestAsks(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	r.sent = nil
	r.pass(180 * time.Millisecond)
	asked := false
	for _, m := range r.sent {
		if h, ok := m.(*coord.Heartbeat); ok && h.State&coord.StateAsks != 0 {
			asked = true
		}
	}
	if !asked {
		t.Error("the lease runs out and nobody is asked")
	}
	r = farm(t, coord.Quorum, "a", "b", "c")
	r.pass(30 * time.Millisecond)
	r.sent = nil
	r.beat("b", func(h *coord.Heartbeat) { h.State |= coord.StateAsks })
	if last[coord.Heartbeat](r) == nil {
		t.Error("no answer to who asks")
	}
}
