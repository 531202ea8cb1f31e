package core

import (
	"slices"
	"strings"
	"testing"
	"time"

	"saru/proto/coord"
)

// TestSucceeds refuses what cannot be a successor (holes 2 and 3: a table is built upon the one that counts, and its members alone choose).
func TestSucceeds(t *testing.T) {
	for _, tt := range []struct {
		why    string
		policy coord.Policy
		change func(*coord.Table)
	}{
		{"", coord.Quorum, func(*coord.Table) {}},
		{"", coord.Available, func(t *coord.Table) { t.Line.Term, t.Term = 3, 3 }},
		{"not built upon", coord.Quorum, func(t *coord.Table) { t.Parent[0]++ }},
		{"version", coord.Quorum, func(t *coord.Table) { t.Version++ }},
		{"term", coord.Quorum, func(t *coord.Table) { t.Term-- }},
		{"line does not follow", coord.Available, func(t *coord.Table) { t.Line.Node-- }},
		{"leaves the line", coord.Quorum, func(t *coord.Table) { t.Line.Term, t.Term = 3, 3 }},
		{"buckets", coord.Quorum, func(t *coord.Table) { t.Function.Seed++ }},
		{"buckets", coord.Quorum, func(t *coord.Table) {
			t.Function.Buckets--
			t.Owner, t.Next = t.Owner[1:], t.Next[1:]
		}},
	} {
		r := farm(t, tt.policy, "a", "b", "c")
		next := follow(r.counts.Table, "b", "a", "c")
		tt.change(next)
		got := newTable(next)
		r.store.put(got)
		if why := r.succeeds(got); tt.why == "" && why != "" || !strings.Contains(why, tt.why) {
			t.Errorf("%q instead of %q", why, tt.why)
		}
		r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: coord.Ballot{Round: 1, Node: who("b").node}, Table: got.ref})
		if accepted := r.pending == got; accepted != (tt.why == "") || accepted == slices.Contains(r.events, "refused") {
			t.Errorf("%q: accepted %v, events %q", tt.why, accepted, r.events)
		}
	}
}

// TestAcceptor promises and accepts by the rules of Paxos.
func TestAcceptor(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	x, y := newTable(follow(r.counts.Table, "b", "a", "c")), newTable(follow(r.counts.Table, "c", "a", "b"))
	r.store.put(x)
	r.store.put(y)
	ballot := func(round uint32) coord.Ballot { return coord.Ballot{Round: round, Node: who("b").node} }
	prepare := func(parent *table, round uint32) {
		r.hear(&coord.Prepare{Header: r.header("b"), Parent: parent.ref, Ballot: ballot(round)})
	}
	accept := func(parent *table, round uint32, table *table) {
		r.hear(&coord.Accept{Header: r.header("b"), Parent: parent.ref, Ballot: ballot(round), Table: table.ref})
	}
	check := func(what string, promise, accepted uint32, pending *table) {
		t.Helper()
		if r.promise.Round != promise || r.pendingBallot.Round != accepted || r.pending != pending {
			t.Fatalf("%s: promise %v, ballot %v, table %v", what, r.promise, r.pendingBallot, r.pending)
		}
		h := last[coord.Heartbeat](r)
		want := coord.Ref{}
		if pending != nil {
			want = pending.ref
		}
		if h != nil && (h.Promise.Round != promise || h.PendingBallot.Round != accepted || h.Pending != want) {
			t.Fatalf("%s: it says promise %v, ballot %v", what, h.Promise, h.PendingBallot)
		}
	}
	b, _ := r.view("b"), 0
	if b == nil {
		t.Fatal("b is not heard")
	}
	prepare(x, 9)
	check("a ballot for the successor of another table", 0, 0, nil)
	prepare(r.counts, 2)
	check("a ballot", 2, 0, nil)
	prepare(r.counts, 1)
	check("a lower ballot", 2, 0, nil)
	accept(r.counts, 1, x)
	check("a table under a lower ballot", 2, 0, nil)
	accept(r.counts, 2, x)
	check("a table under the ballot promised", 2, 2, x)
	prepare(r.counts, 4)
	check("a higher ballot: what was accepted is kept, and said", 4, 2, x)
	accept(r.counts, 3, y)
	check("one in between", 4, 2, x)
	accept(r.counts, 5, y)
	check("another table under a higher one", 5, 5, y)
	unknown := newTable(follow(r.counts.Table, "b", "c"))
	accept(r.counts, 6, unknown)
	check("one that is not known: it is fetched first", 6, 5, y)
	f := last[coord.Fetch](r)
	if f == nil || f.Digest != unknown.ref.Digest || f.Node != who("b").node {
		t.Fatalf("fetch %+v", f)
	}
	encoding, err := unknown.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := coord.Parts(encoding)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		p.Header = r.header("b")
		r.hear(&p)
	}
	accept(r.counts, 6, unknown)
	if r.pending == nil || r.pending.ref != unknown.ref {
		t.Fatal("not accepted when it is known")
	}
}

func (r *rig) view(name string) *view { return r.alive(who(name)) }

// TestStrangersDoNotVote: who is no member of the table that counts is no acceptor (hole 2).
func TestStrangersDoNotVote(t *testing.T) {
	r := newRig(t, nil)
	r.pass(300*time.Millisecond, "b", "c")
	counts := newTable(tableOf(coord.Quorum, "b", "c"))
	r.adopt(counts)
	r.hear(&coord.Prepare{Header: r.header("b"), Parent: counts.ref, Ballot: coord.Ballot{Round: 1, Node: who("b").node}})
	if r.promise != (coord.Ballot{}) || r.votes() {
		t.Errorf("promise %v", r.promise)
	}
	if h := last[coord.Heartbeat](r); h.Counts != (coord.Ref{}) || h.Master != 0 {
		t.Errorf("who only looks on says that version %d counts", h.Counts.Version)
	}
}

// TestProposer goes through a proposal: promises, the table, a majority.
func TestProposer(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	r.counts.Master = r.self.node
	r.Drain(r.at, true)
	r.obey()
	p := last[coord.Prepare](r)
	if p == nil || p.Parent != r.counts.ref || r.promise != p.Ballot || last[coord.Accept](r) != nil {
		t.Fatalf("prepare %+v, own promise %v", p, r.promise)
	}
	if last[coord.Part](r) == nil {
		t.Error("the table is not sent while promises come in")
	}
	old := r.counts
	r.beat("b", func(h *coord.Heartbeat) { h.Promise = p.Ballot })
	a := last[coord.Accept](r)
	if a == nil || a.Ballot != p.Ballot || r.pending == nil || r.pending.ref != a.Table || r.counts != old {
		t.Fatalf("accept %+v", a)
	}
	want := r.pending
	r.beat("c", func(h *coord.Heartbeat) { // under another ballot: it does not count
		h.Promise, h.Pending, h.PendingBallot = p.Ballot, a.Table, coord.Ballot{Round: a.Ballot.Round - 1, Node: a.Ballot.Node}
	})
	if r.counts != old {
		t.Fatal("chosen by one of three")
	}
	r.beat("b", func(h *coord.Heartbeat) { h.Promise, h.Pending, h.PendingBallot = p.Ballot, a.Table, p.Ballot })
	if r.counts != want || r.ownedBy(r.counts, r.self) != 0 {
		t.Fatal("not chosen by a majority")
	}
	if h := last[coord.Heartbeat](r); h.Counts != want.ref || h.Pending != (coord.Ref{}) || h.Promise != (coord.Ballot{}) {
		t.Errorf("it says %+v", h)
	}
}

// TestProposerFindsWhatMayBeChosen proposes the accepted table of the highest ballot that the promises report instead of its own (hole 8).
func TestProposerFindsWhatMayBeChosen(t *testing.T) {
	for _, own := range []bool{false, true} { // it has accepted something itself
		r := farm(t, coord.Quorum, "a", "b", "c", "d", "e")
		x, y := newTable(follow(r.counts.Table, "d", "a", "b", "c", "e")), newTable(follow(r.counts.Table, "e", "a", "b", "c", "d"))
		r.store.put(x)
		r.store.put(y)
		if own {
			r.accept(x, coord.Ballot{Round: 3, Node: 1})
		}
		r.begin(newTable(follow(r.counts.Table, "a", "b", "c", "d", "e")))
		r.pursue()
		r.obey()
		p := last[coord.Prepare](r)
		if p == nil || own && p.Ballot.Round != 4 {
			t.Fatalf("prepare %+v", p)
		}
		r.beat("b", func(h *coord.Heartbeat) {
			h.Promise, h.Pending, h.PendingBallot = p.Ballot, x.ref, coord.Ballot{Round: 1, Node: 1}
		})
		r.beat("c", func(h *coord.Heartbeat) {
			h.Promise, h.Pending, h.PendingBallot = p.Ballot, y.ref, coord.Ballot{Round: 2, Node: 1}
		})
		want := y
		if own {
			want = x
		}
		if a := last[coord.Accept](r); a == nil || a.Table != want.ref {
			t.Errorf("own %v: proposed %+v", own, a)
		}
	}
}

// TestRivals lets the other proposer have its way, and leaves it time.
func TestRivals(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	r.counts.Master = r.self.node
	r.Drain(r.at, true)
	r.obey()
	if r.proposal == nil {
		t.Fatal("nothing is proposed")
	}
	r.hear(&coord.Prepare{Header: r.header("b"), Parent: r.counts.ref, Ballot: coord.Ballot{Round: r.promise.Round + 1, Node: 1}})
	if r.proposal != nil {
		t.Fatal("it goes on under the lower ballot")
	}
	r.pass(2*keepalive, "b", "c")
	if r.proposal != nil {
		t.Error("the rival is outbid at once")
	}
	r.pass(8*keepalive, "b", "c")
	if !slices.Contains(r.events, "proposal") {
		t.Error("it never tries again, or nobody's silence ends the attempt")
	}
}

// TestUndecided finishes what a proposer left behind that has died since.
func TestUndecided(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	next := newTable(follow(r.counts.Table, "b", "a", "c"))
	r.store.put(next)
	r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: coord.Ballot{Round: 1, Node: who("b").node}, Table: next.ref})
	r.pass(3*time.Second, "b", "c")
	if p := last[coord.Prepare](r); p == nil {
		t.Error("nobody finds out whether it counts")
	}
}
