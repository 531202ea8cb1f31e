package core

import (
	"math/rand/v2"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// TestLiar has a member say whatever it likes: nothing may panic, nothing may grow without bounds, and the lease, which two others support, goes on.
func TestLiar(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c", "d", "e")
	rng := rand.New(rand.NewPCG(1, 2))
	digest := func() (d coord.Digest) {
		for i := range d {
			d[i] = byte(rng.Uint32())
		}
		return d
	}
	ref := func() coord.Ref {
		switch rng.IntN(4) {
		case 0:
			return coord.Ref{}
		case 1:
			return r.counts.ref
		case 2: // absurd, and nobody has it
			return coord.Ref{Line: r.counts.ref.Line, Version: ^uint32(0) - rng.Uint32N(3), Digest: digest()}
		}
		return coord.Ref{Line: coord.Line{Term: 0, Node: rng.Uint64()}, Version: rng.Uint32(), Digest: digest()} // term 0: before every line
	}
	ballot := func() coord.Ballot { return coord.Ballot{Round: rng.Uint32N(1 << 30), Node: rng.Uint64()} }
	for range 3000 {
		if rng.IntN(10) == 0 {
			r.pass(10*time.Millisecond, "b", "c", "d")
		}
		switch h := r.header("e"); rng.IntN(8) {
		case 0, 1, 2:
			r.beat("e", func(b *coord.Heartbeat) {
				b.Sequence = h.Sequence + 1
				r.seqs["e"]++
				b.Counts, b.Pending, b.PendingBallot, b.Promise = ref(), ref(), ballot(), ballot()
				b.State, b.Released, b.Weight, b.Pings = coord.State(rng.Uint32N(1<<10)), digest(), uint16(rng.Uint32()), uint16(rng.Uint32())
				for range 40 {
					b.Echoes = append(b.Echoes, coord.Echo{
						Node: rng.Uint64(), Incarnation: rng.Uint64(), Sequence: rng.Uint64(), AgeMS: rng.Uint32(), Dead: rng.IntN(2) > 0, Counts: rng.IntN(2) > 0,
					})
				}
			})
		case 3:
			r.hear(&coord.Prepare{Header: h, Parent: ref(), Ballot: ballot()})
		case 4:
			table := ref()
			r.hear(&coord.Accept{Header: h, Parent: ref(), Ballot: ballot(), Table: table})
			r.hear(&coord.Accept{Header: r.header("e"), Parent: table, Ballot: ballot(), Table: table})
		case 5:
			r.hear(&coord.Part{Header: h, Digest: digest(), Index: uint16(rng.Uint32N(131)), Count: 131, Data: make([]byte, coord.MaxPart)})
		case 6:
			r.hear(&coord.Fetch{Header: h, Digest: r.counts.ref.Digest, Node: r.self.node})
		case 7:
			r.hear(&coord.Command{Header: h, Target: rng.Uint64(), Nonce: rng.Uint64() | 1, Verb: coord.VerbDrain})
		}
		r.sent = nil
	}
	for name, n := range map[string]int{
		"views": len(r.views), "heard": len(r.heard), "dead": len(r.views[who("e").node].deadHere), "tables": len(r.store.tables), "parts": len(r.store.partial),
		"answers": len(r.fetching.answered), "strangers": len(r.strangers), "ineligible": len(r.ineligible), "alarms": len(r.alarms),
	} {
		if n > 40 {
			t.Errorf("%d %s", n, name)
		}
	}
}

// TestUnknownTableDoesNotBlock adopts the table that others have, though one speaks of a later one that it never sends.
func TestUnknownTableDoesNotBlock(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c", "d")
	next := newTable(follow(r.counts.Table, "b", "a", "c", "d"))
	r.store.put(next)
	r.beat("d", func(h *coord.Heartbeat) {
		h.Counts = coord.Ref{Line: next.Line, Version: next.Version + 1000, Digest: coord.Digest{9}}
	})
	r.beat("b", func(h *coord.Heartbeat) { h.Counts = next.ref })
	if r.counts != next {
		t.Error("it waits for a table that nobody sends")
	}
	if f := last[coord.Fetch](r); f == nil || f.Node != who("d").node {
		t.Errorf("the later one is not asked for: %+v", f)
	}
}

// TestKeepsWhatMatters answers for the table that counts, and finds the pending one, after many others were heard of.
func TestKeepsWhatMatters(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	pending := newTable(follow(r.counts.Table, "b", "a", "c"))
	r.store.put(pending)
	r.accept(pending, coord.Ballot{Round: 1, Node: 1})
	for i := range 3 * storeSize {
		other := follow(r.counts.Table, "c", "a", "b")
		other.Members[0].Weight = uint16(i)
		r.store.put(newTable(other))
	}
	for _, want := range []*table{r.counts, pending} {
		r.sent = nil
		r.pass(50 * time.Millisecond)
		r.hear(&coord.Fetch{Header: r.header("b"), Digest: want.ref.Digest, Node: r.self.node})
		if p := last[coord.Part](r); p == nil || p.Digest != want.ref.Digest {
			t.Errorf("version %d is not known any more", want.Version)
		}
	}
}

// TestOtherIncarnation hears nothing from an earlier incarnation of a peer, and takes a restarted one for another director.
func TestOtherIncarnation(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	restarted := func(h *coord.Heartbeat) { h.Incarnation, h.Counts = 8, coord.Ref{} }
	r.beat("b", restarted)
	r.pass(keepalive, "c")
	r.beat("b", restarted)
	if r.alive(who("b")) != nil || r.alive(member{who("b").node, 8}) == nil {
		t.Fatal("not taken for restarted")
	}
	if v := r.beat("b"); v != peer.WrongIncarnation {
		t.Errorf("what the earlier one sent: %v", v)
	}
	if !r.support(who("b")).IsZero() {
		t.Error("the earlier one supports")
	}
}
