package core

import (
	"slices"
	"testing"
	"time"

	"saru/proto/coord"
)

// opensIn returns how long it takes until a director holds a bucket; heard: who is heard meanwhile.
func (r *rig) opensIn(bucket int, heard ...string) time.Duration {
	start := r.at
	for r.at.Sub(start) < 2*time.Second {
		if r.open(bucket) {
			return r.at.Sub(start)
		}
		r.pass(10*time.Millisecond, heard...)
	}
	return -1
}

func (r *rig) open(bucket int) bool {
	return bucket/64 < len(r.filter.Open) && r.filter.Open[bucket/64]&(1<<(bucket%64)) != 0
}

// bucketOf returns the first bucket that a member owns.
func bucketOf(t *table, name string) int {
	return slices.Index(t.Owner, uint8(t.index(who(name))))
}

// TestOpening opens what a table takes from another director by the rules of docs/SAFETY.md, section 4.
func TestOpening(t *testing.T) {
	const wait = 370 * time.Millisecond // lease, renewal slack and guard
	released := func(clean bool, r *rig) func(*coord.Heartbeat) {
		return func(h *coord.Heartbeat) {
			if h.State &^= coord.StateReleased; clean {
				h.State |= coord.StateReleased
			}
			h.Released = r.counts.ref.Digest
		}
	}
	unsaid := func(h *coord.Heartbeat) { h.Released, h.State = coord.Digest{}, h.State&^coord.StateReleased }
	for _, tt := range []struct {
		name string
		from time.Duration
		to   time.Duration
		open func(*testing.T, *rig) int // has a table count, and says what bucket is looked at
	}{
		{"rule 1: released and clean", 0, 20 * time.Millisecond, func(_ *testing.T, r *rig) int {
			b := bucketOf(r.counts, "b")
			next := tableOf(coord.Quorum, "a", "c")
			next.Parent, next.Version, next.Term = r.counts.ref.Digest, r.counts.Version+1, 2
			next.Owner[b] = uint8(next.MemberIndex(r.self.node))
			r.beat("b", func(h *coord.Heartbeat) {
				h.Released, h.State = next.Digest(), h.State|coord.StateReleased
			})
			r.adopt(newTable(next))
			return b
		}},
		{"rule 3: released, but not clean", wait - 20*time.Millisecond, wait + 20*time.Millisecond, func(_ *testing.T, r *rig) int {
			b := bucketOf(r.counts, "b")
			next := follow(r.counts.Table, "a", "b", "c")
			next.Owner[b] = uint8(next.MemberIndex(r.self.node))
			r.adopt(newTable(next))
			r.beat("b", released(false, r))
			return b
		}},
		{"rule 3: nothing said", wait - 20*time.Millisecond, wait + 20*time.Millisecond, func(_ *testing.T, r *rig) int {
			b := bucketOf(r.counts, "b")
			next := follow(r.counts.Table, "a", "b", "c")
			next.Owner[b] = uint8(next.MemberIndex(r.self.node))
			r.beat("b", unsaid)
			r.adopt(newTable(next))
			r.beat("b", unsaid)
			return b
		}},
		{"rule 2: dead", 0, 20 * time.Millisecond, func(_ *testing.T, r *rig) int {
			b := bucketOf(r.counts, "b")
			next := follow(r.counts.Table, "a", "c")
			next.Dead = []coord.Member{{Node: who("b").node, Incarnation: who("b").incarnation}}
			next.Owner[b] = uint8(next.MemberIndex(r.self.node))
			r.adopt(newTable(next))
			return b
		}},
		{"rule 4: dead, but the time of rule 3 has not passed", wait - 20*time.Millisecond, wait + 20*time.Millisecond, func(_ *testing.T, r *rig) int {
			// Hole 8: b was given the bucket of c a moment ago, and dies in the middle of the move.
			b := bucketOf(r.counts, "c")
			next := follow(r.counts.Table, "a", "b", "c")
			next.Owner[b] = uint8(next.MemberIndex(who("b").node))
			r.adopt(newTable(next))
			then := follow(next, "a", "c")
			then.Dead = []coord.Member{{Node: who("b").node, Incarnation: who("b").incarnation}}
			then.Owner[b] = uint8(then.MemberIndex(r.self.node))
			r.adopt(newTable(then))
			return b
		}},
		{"a table was missed", wait - 20*time.Millisecond, wait + 20*time.Millisecond, func(_ *testing.T, r *rig) int {
			next := follow(follow(r.counts.Table, "b", "a", "c"), "a", "b", "c")
			r.adopt(newTable(next))
			return bucketOf(r.counts, "a")
		}},
		{"what stays stays open", 0, 0, func(t *testing.T, r *rig) int {
			b := bucketOf(r.counts, "a")
			r.adopt(newTable(follow(r.counts.Table, "a", "b", "c")))
			if r.counts.Owner[b] != uint8(r.counts.index(r.self)) {
				t.Fatal("it does not")
			}
			return b
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := farm(t, coord.Quorum, "a", "b", "c")
			b := tt.open(t, r)
			r.Tick(r.at)
			r.obey()
			heard := []string{"c"}
			if took := r.opensIn(b, heard...); took < tt.from || took > tt.to {
				t.Errorf("bucket %d opens after %v, want %v to %v", b, took, tt.from, tt.to)
			}
		})
	}
}

// TestRelease closes what an accepted table takes, flushes it, waits for guard, and only then says so.
func TestRelease(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	next := newTable(follow(r.counts.Table, "b", "c"))
	r.store.put(next)
	r.slow = true
	ballot := coord.Ballot{Round: 1, Node: who("b").node}
	says := func() bool {
		h := last[coord.Heartbeat](r)
		return h != nil && h.Released == next.ref.Digest
	}
	pending := func() bool { h := last[coord.Heartbeat](r); return h != nil && h.Pending == next.ref }
	r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: ballot, Table: next.ref})
	if count(r.filter.Open) != 0 || !pending() {
		t.Fatalf("%d buckets are open, accepted %v", count(r.filter.Open), pending())
	}
	step := func(what string, want bool) {
		t.Helper()
		r.pass(50*time.Millisecond, "b", "c")
		if says() != want {
			t.Fatalf("%s: says that it has released: %v", what, says())
		}
	}
	step("the kernel has not closed", false)
	if r.flush != nil {
		t.Fatal("flushed before the kernel had closed")
	}
	r.Applied(r.at, r.filter.Gen)
	r.obey()
	if r.flush == nil || len(r.flush.Buckets) != 6 {
		t.Fatalf("flush %+v, want six buckets", r.flush)
	}
	step("not flushed", false)
	r.Flushed(r.at, r.flush.Gen+1)
	r.obey()
	step("another flush has ended", false)
	r.Flushed(r.at, r.flush.Gen)
	r.obey()
	step("flushed", true)
	if h := last[coord.Heartbeat](r); h.State&coord.StateReleased == 0 {
		t.Error("it is clean: each bucket was its own")
	}
}

// TestReleaseWaitsForGuard lets guard pass after the kernel has closed, though the flush took no time.
func TestReleaseWaitsForGuard(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	next := newTable(follow(r.counts.Table, "b", "c"))
	r.store.put(next)
	r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: coord.Ballot{Round: 1, Node: who("b").node}, Table: next.ref})
	if r.release.done || !r.release.flushed {
		t.Fatalf("done %v, flushed %v", r.release.done, r.release.flushed)
	}
	if next := r.Next(); next.After(r.at.Add(20 * time.Millisecond)) {
		t.Errorf("it looks again in %v", next.Sub(r.at))
	}
	r.pass(20 * time.Millisecond)
	if !r.release.done {
		t.Error("not released after guard")
	}
}

// TestUncleanRelease does not call clean what this director was not yet to open itself.
func TestUncleanRelease(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	first := newTable(follow(r.counts.Table, "a")) // takes everything from b and c
	r.adopt(first)
	second := newTable(follow(first.Table, "b", "a", "c"))
	r.adopt(second)
	r.pass(100*time.Millisecond, "b", "c")
	if !r.release.done || r.release.clean {
		t.Errorf("done %v, clean %v", r.release.done, r.release.clean)
	}
}

// TestGivenStaysClosed does not open again what one pending table took when another one replaces it: it may have been said that it is closed.
func TestGivenStaysClosed(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	b := bucketOf(r.counts, "a")
	takes, leaves := newTable(follow(r.counts.Table, "b", "c")), newTable(follow(r.counts.Table, "a", "b", "c"))
	for i, next := range []*table{takes, leaves} {
		r.store.put(next)
		r.hear(&coord.Accept{Header: r.header("b"), Parent: r.counts.ref, Ballot: coord.Ballot{Round: uint32(i + 1), Node: who("b").node}, Table: next.ref})
		if r.pending != next {
			t.Fatalf("table %d is not pending", i)
		}
	}
	if took := r.opensIn(b, "b", "c"); took >= 0 && r.counts != leaves {
		t.Fatalf("opened again after %v, while it was open which of the two counts", took)
	}
	r.adopt(leaves)
	r.Tick(r.at)
	r.obey()
	if took := r.opensIn(b, "b", "c"); took != 0 {
		t.Errorf("opened after %v when it is decided", took)
	}
}

// TestNoticesMissedTimers delays taking, when this director's own timers stood still.
func TestNoticesMissedTimers(t *testing.T) {
	r := farm(t, coord.Available, "a", "b")
	r.at = r.at.Add(time.Second)
	r.Tick(r.at)
	r.obey()
	if !slices.Contains(r.events, "stalled") || r.dead[who("b")] {
		t.Fatalf("events %q, b is dead: %v", r.events, r.dead[who("b")])
	}
	r.pass(490 * time.Millisecond)
	if r.dead[who("b")] {
		t.Error("counted dead too early")
	}
	r.pass(20 * time.Millisecond)
	if !r.dead[who("b")] && !slices.Contains(r.events, "dead") {
		t.Error("never counted dead")
	}
}

// TestSupportsNoDead stops supporting a member that it has counted dead, also when it is heard again, until the next table.
func TestSupportsNoDead(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	supports := func() bool {
		for _, e := range last[coord.Heartbeat](r).Echoes {
			if e.Node == who("b").node && e.Counts {
				return e.Supports
			}
		}
		return false
	}
	r.pass(100*time.Millisecond, "b", "c")
	if !supports() {
		t.Fatal("b is not supported")
	}
	r.pass(600*time.Millisecond, "c")
	if !r.dead[who("b")] {
		t.Fatal("b is not dead")
	}
	r.promise = coord.Ballot{Round: 99, Node: ^uint64(0)} // nothing is decided for a while
	r.quietUntil = r.at.Add(time.Hour)
	r.pass(500*time.Millisecond, "b", "c")
	if r.alive(who("b")) == nil || supports() {
		t.Errorf("b is heard %v, supported %v", r.alive(who("b")) != nil, supports())
	}
	r.adopt(newTable(follow(r.counts.Table, "a", "b", "c")))
	r.pass(300*time.Millisecond, "b", "c")
	if !supports() {
		t.Error("not supported under the next table")
	}
}
