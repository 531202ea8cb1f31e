package peer

import (
	"testing"
	"time"
)

var t0 = time.Unix(1000, 0)

// node is one end of a conversation over perfect links, to be disturbed by tests.
type node struct {
	name string
	id   ID
	inc  Incarnation
	set  *Set
}

func newNode(name string, inc Incarnation, links int) *node {
	return &node{name, IDOf(name), inc, NewSet(IDOf(name), inc, links)}
}

// heartbeat makes the next heartbeat of n, as to is going to hear it.
func (n *node) heartbeat(now time.Time, to *node) Heartbeat {
	h := Heartbeat{Node: n.id, Incarnation: n.inc, Name: n.name, Control: n.set.NextControl()}
	for _, e := range n.set.Echoes(nil, now, 100) {
		if e.Node == to.id && e.Incarnation == to.inc {
			h.Echo = e
		}
	}
	return h
}

func meet(t *testing.T, a, b *node) {
	t.Helper()
	for range 3 {
		b.set.Heartbeat(t0, a.heartbeat(t0, b))
		a.set.Heartbeat(t0, b.heartbeat(t0, a))
	}
	if a.set.Get(b.id) == nil || b.set.Get(a.id) == nil {
		t.Fatal("two directors that hear each other do not admit each other")
	}
	if !a.set.Get(b.id).Echoed.Counts || !b.set.Get(a.id).Echoed.Counts {
		t.Fatal("they do not know that they count")
	}
}

func TestAdmission(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	first := a.heartbeat(t0, b)
	if _, v, e := b.set.Heartbeat(t0, first); v != WrongIncarnation || e != Nothing {
		t.Errorf("first heartbeat: verdict %v, event %v", v, e)
	}
	if _, v := b.set.Stream(t0, a.id, a.inc, 1, 0, false); v != WrongIncarnation {
		t.Errorf("stream of a candidate: %v", v)
	}
	a.set.Heartbeat(t0, b.heartbeat(t0, a))
	p, v, e := b.set.Heartbeat(t0, a.heartbeat(t0, b))
	if v != Accept || e != Admitted || p.Name != "a" || p.Incarnation != 1 {
		t.Fatalf("heartbeat with a fresh echo: verdict %v, event %v", v, e)
	}
	if _, v := b.set.Stream(t0, a.id, a.inc, 1, 0, false); v != Accept {
		t.Errorf("stream of an admitted peer: %v", v)
	}
	if _, v := b.set.Stream(t0, a.id, a.inc, 1, 0, false); v != Replayed {
		t.Errorf("the same again: %v", v)
	}
	if _, v := b.set.Stream(t0, b.id, b.inc, 1, 0, false); v != Own {
		t.Errorf("own datagram: %v", v)
	}
}

// Everything that a said to b in its earlier life is said again, in order and out of order, after a came back: nothing counts.
func TestReplayOfAnEarlierIncarnation(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	var taped []Heartbeat
	for range 10 {
		h := a.heartbeat(t0, b)
		taped = append(taped, h)
		b.set.Heartbeat(t0, h)
		a.set.Heartbeat(t0, b.heartbeat(t0, a))
	}
	again := newNode("a", 3, 1)
	meet(t, again, b)
	for range 3 {
		for _, h := range taped {
			if _, v, e := b.set.Heartbeat(t0, h); v != WrongIncarnation || e != Nothing {
				t.Fatalf("replayed heartbeat %d: verdict %v, event %v", h.Control, v, e)
			}
			b.heartbeat(t0, again) // b's own numbers go on
		}
	}
	if p := b.set.Get(a.id); p.Incarnation != 3 {
		t.Errorf("peer is incarnation %v", p.Incarnation)
	}
	// b restarts: the tape of the living incarnation, made for the old b, admits nobody either.
	newB := newNode("b", 4, 1)
	for range 3 {
		h := again.heartbeat(t0, b)
		newB.heartbeat(t0, again)
		if _, v, _ := newB.set.Heartbeat(t0, h); v != WrongIncarnation {
			t.Errorf("heartbeat that echoes the receiver's earlier incarnation: %v", v)
		}
	}
}

func TestNewIncarnationTakesOver(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	b.set.Stream(t0, a.id, a.inc, 900, 0, false)
	again := newNode("a", 3, 1)
	meet(t, again, b)
	if _, v := b.set.Stream(t0, a.id, 1, 901, 0, false); v != WrongIncarnation {
		t.Errorf("stream of the earlier incarnation: %v", v)
	}
	if _, v := b.set.Stream(t0, a.id, 3, 1, 0, false); v != Accept {
		t.Errorf("stream of the new incarnation: %v", v)
	}
}

func TestTwoLinks(t *testing.T) {
	a, b := newNode("a", 1, 2), newNode("b", 2, 2)
	meet(t, a, b)
	for _, step := range []struct {
		seq  uint64
		link int
		want Verdict
	}{{1, 0, Accept}, {1, 1, Repeated}, {1, 1, Replayed}, {3, 1, Accept}, {2, 0, Accept}, {3, 0, Repeated}, {3, 0, Replayed}} {
		if _, v := b.set.Stream(t0, a.id, a.inc, step.seq, step.link, false); v != step.want {
			t.Errorf("sequence %d on link %d: %v, want %v", step.seq, step.link, v, step.want)
		}
	}
}

func TestLostAndReturned(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	var lost []string
	note := func(p *Peer) { lost = append(lost, p.Name) }
	b.set.Expire(t0.Add(time.Second), 2*time.Second, note)
	b.set.Expire(t0.Add(3*time.Second), 2*time.Second, note)
	b.set.Expire(t0.Add(4*time.Second), 2*time.Second, note)
	if len(lost) != 1 || lost[0] != "a" || len(b.set.Echoes(nil, t0, 10)) != 0 {
		t.Errorf("lost: %v, echoes %v", lost, b.set.Echoes(nil, t0, 10))
	}
	// What a sent while b could not hear it is new to b's windows: it proves nothing.
	late := t0.Add(5 * time.Second)
	if _, v, e := b.set.Heartbeat(late, a.heartbeat(late, b)); v != WrongIncarnation || e != Nothing {
		t.Errorf("heard again, without a fresh echo: verdict %v, event %v", v, e)
	}
	if _, v := b.set.Stream(late, a.id, a.inc, 7, 0, false); v != WrongIncarnation {
		t.Errorf("stream of a lost peer: %v", v)
	}
	a.set.Heartbeat(late, b.heartbeat(late, a))
	if _, v, e := b.set.Heartbeat(late, a.heartbeat(late, b)); v != Accept || e != Returned {
		t.Errorf("heard again: verdict %v, event %v", v, e)
	}
}

func TestNamesake(t *testing.T) {
	a, twin := newNode("a", 1, 1), newNode("a", 2, 1)
	old := Heartbeat{Node: a.id, Incarnation: 9, Control: 5, Echo: Echo{Incarnation: a.inc, Control: 0}}
	for range 3 {
		a.set.NextControl()
		if _, v, e := a.set.Heartbeat(t0, old); v != WrongIncarnation || e != Nothing {
			t.Errorf("replayed heartbeat of an earlier life: verdict %v, event %v", v, e)
		}
	}
	events := map[Event]int{}
	for range 4 {
		_, _, e := a.set.Heartbeat(t0, twin.heartbeat(t0, a))
		events[e]++
		_, _, e = twin.set.Heartbeat(t0, a.heartbeat(t0, twin))
		events[e]++
	}
	if events[Namesake] == 0 || events[Admitted] != 0 {
		t.Errorf("events %v", events)
	}
	if _, v, _ := a.set.Heartbeat(t0, a.heartbeat(t0, a)); v != Own {
		t.Errorf("own heartbeat: %v", v)
	}
}

func TestBounds(t *testing.T) {
	b := newNode("b", 2, 1)
	for i := range 2 * MaxPeers {
		b.set.Heartbeat(t0, Heartbeat{Node: ID(i + 1), Incarnation: 1, Control: 1})
	}
	for i := range 100 {
		b.set.Heartbeat(t0, Heartbeat{Node: 1, Incarnation: Incarnation(i + 1), Control: 1})
	}
	if n := len(b.set.peers); n != MaxPeers {
		t.Errorf("%d peers", n)
	}
	if n := len(b.set.peers[1].candidates); n != maxCandidates {
		t.Errorf("%d candidates", n)
	}
	b.set.Expire(t0.Add(time.Minute), time.Second, func(*Peer) {})
	if n := len(b.set.peers) + len(b.set.order); n != 0 {
		t.Errorf("%d strangers after a minute of silence", n)
	}
}

func TestEchoesPage(t *testing.T) {
	b := newNode("b", 2, 1)
	for i := range 10 {
		b.set.Heartbeat(t0, Heartbeat{Node: ID(i + 1), Incarnation: 1, Control: 1})
	}
	seen := map[ID]int{}
	for range 10 {
		for _, e := range b.set.Echoes(nil, t0, 4) {
			seen[e.Node]++
		}
	}
	for i := range 10 {
		if seen[ID(i+1)] != 4 {
			t.Errorf("node %d echoed %d times in 10 pages of 4", i+1, seen[ID(i+1)])
		}
	}
}

// A node that has never been heard gets the place of the peer that was lost the longest.
func TestEvictsTheLost(t *testing.T) {
	b := newNode("b", 2, 1)
	b.set.NextControl()
	for i := range MaxPeers {
		for range 2 {
			b.set.Heartbeat(t0, Heartbeat{Node: ID(i + 1), Incarnation: 1, Control: b.set.NextControl(), Echo: Echo{Incarnation: b.inc, Control: b.set.control}})
		}
	}
	h := Heartbeat{Node: 1000, Incarnation: 1, Control: 1}
	if _, v, _ := b.set.Heartbeat(t0, h); v != Overflow {
		t.Errorf("while all are heard: %v", v)
	}
	b.set.Expire(t0.Add(time.Minute), time.Second, func(*Peer) {})
	if _, v, _ := b.set.Heartbeat(t0, h); v != WrongIncarnation || len(b.set.peers) != MaxPeers {
		t.Errorf("when all are lost: %v, %d peers", v, len(b.set.peers))
	}
}

func TestIDs(t *testing.T) {
	if got := IDOf("abc").String(); got != "ba7816bf8f01cfea" { // SHA-256("abc"), FIPS 180-4
		t.Errorf("IDOf: %s", got)
	}
	if first, second := NewIncarnation(), NewIncarnation(); first == second {
		t.Error("two incarnations are the same")
	}
}
