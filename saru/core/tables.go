package core

import (
	"fmt"
	"maps"
	"time"

	"saru/proto/coord"
)

// release is what this director says of buckets that a table takes from it.
type release struct {
	table    coord.Digest // the table that takes them; zero: none was seen yet
	buckets  []uint16
	gen      uint64    // generation of Desired in which they are closed
	closed   time.Time // when that had come into the kernel
	clean    bool      // each was this director's own to open
	flushing bool
	flushed  bool
	done     bool
}

// catchUp adopts a table that counts for somebody else in the same line, or in the line that is joined: the latest one that is known here. A later one that is not is
// asked for, but not waited for: who speaks of it may never send it.
func (c *Core) catchUp() {
	var best *table
	var missing coord.Ref
	var of member
	for v := range c.live {
		r := v.beat.Counts
		if r == (coord.Ref{}) || c.counts != nil && r == c.counts.ref || !c.follows(r) || best != nil && !refBefore(best.ref, r) {
			continue
		}
		if t := c.lookup(r.Digest); t != nil && t.ref == r {
			best = t
		} else if missing == (coord.Ref{}) || refBefore(missing, r) {
			missing, of = r, v.who
		}
	}
	if missing != (coord.Ref{}) && (best == nil || refBefore(best.ref, missing)) {
		c.fetch(missing.Digest, of)
	}
	if best != nil {
		c.adopt(best)
	}
}

// follows reports whether a table that counts for somebody is one that counts here next: the pending one, a later one of this line, or any when
// there is none here.
func (c *Core) follows(r coord.Ref) bool {
	if c.counts == nil || !c.votes() && lineBefore(c.counts.ref.Line, r.Line) {
		return true
	}
	return c.pending != nil && r == c.pending.ref || r.Line == c.counts.ref.Line && r.Version > c.counts.ref.Version
}

// adopt lets a table count (docs/SAFETY.md, section 4).
func (c *Core) adopt(t *table) {
	old := c.counts
	direct := old != nil && t.Parent == old.ref.Digest
	accepted := c.pending != nil && c.pending.ref == t.ref
	if old == nil && c.pending != nil && !accepted {
		c.silent = c.now.Add(c.cfg.wait()) // it was to be another farm
	}
	switch {
	case old == nil:
	case t.gone(c.self):
		c.diesBy(t)
	case !c.leaving && old.index(c.self) >= 0 && t.index(c.self) < 0:
		c.standsStill()
	}
	c.overtaken = 0
	c.takenOver(old, t)
	c.alarm("alone", "")
	c.founding = nil
	if len(c.notBefore) != len(t.Owner) {
		c.notBefore, direct = make([]time.Time, len(t.Owner)), false
	}
	deadline := c.now.Add(c.cfg.wait())
	clear(c.awaiting)
	for b := range t.Owner {
		if !direct {
			c.notBefore[b] = later(c.notBefore[b], deadline) // rule 3: the parent is unknown
			continue
		}
		from := old.owner(b)
		switch {
		case from == t.owner(b), from == member{}:
		case t.gone(from): // rule 2; rule 4 keeps what there was
		default:
			c.notBefore[b] = later(c.notBefore[b], deadline)
			c.awaiting[uint16(b)] = from // rule 1 may lower it
		}
	}
	if direct && !accepted {
		c.releaseFor(old, t)
	}
	if !direct {
		c.release = release{table: t.ref.Digest} // not clean: nothing is known of who held before
	}
	if old != nil && old.fn != t.fn && c.release.table == t.ref.Digest {
		// Addresses close only now, where the table counts: what was said to be released is not, before the kernel has that too.
		c.release.gen, c.release.closed, c.release.done = 0, time.Time{}, false
	}
	c.acceptedAt = c.now
	if accepted {
		c.acceptedAt = c.pendingAt
	}
	c.handed = old != nil && t.index(c.self) < 0 && (c.handed || old.index(c.self) >= 0)
	c.counts, c.pending, c.countsAt = t, nil, c.now
	maps.DeleteFunc(c.strangers, func(m member, _ stranger) bool { return t.index(m) < 0 })
	c.pendingBallot, c.promise = coord.Ballot{}, coord.Ballot{}
	clear(c.given)
	clear(c.dead)
	c.proposal, c.neededSince = nil, time.Time{}
	c.maxTerm = max(c.maxTerm, t.Line.Term, t.Term)
	c.held, c.lapsed = false, false
	c.alarm("lapsed", "")
	c.rejudge(old != nil && (direct || t.Line == old.Line))
	c.dirty, c.stale, c.review, c.swept = true, true, true, time.Time{}
	c.need = nil
	maps.DeleteFunc(c.ineligible, func(m member, _ time.Time) bool { return t.index(m) < 0 })
	c.store.put(t)
	c.event("table", fmt.Sprintf("term %d version %d, master %s, %d members, %d buckets here", t.Term, t.Version, c.name(t.master()), len(t.members), c.ownedBy(t, c.self)))
}

func (c *Core) ownedBy(t *table, m member) (n int) {
	i := t.index(m)
	if i < 0 {
		return 0
	}
	for _, o := range t.Owner {
		if int(o) == i {
			n++
		}
	}
	return n
}

// accept takes a table as the successor of the one that counts, and closes at once what it takes away.
func (c *Core) accept(t *table, b coord.Ballot) {
	c.promise, c.pendingBallot = b, b
	c.dirty = true
	if c.pending != nil && c.pending.ref == t.ref {
		c.rejudge(true) // who accepted another one under a ballot between counts now
		return
	}
	replaced := c.pending != nil
	if t.gone(c.self) {
		c.diesBy(t)
	}
	c.pending, c.pendingAt = t, c.now
	c.stale, c.review = true, true
	c.rejudge(!replaced)
	c.releaseFor(c.counts, t)
}

// releaseFor begins to release what a table takes from this director. What an earlier one took and is not released yet stays to be done.
func (c *Core) releaseFor(old, t *table) {
	r := release{table: t.ref.Digest, clean: true}
	if prev := &c.release; prev.table != (coord.Digest{}) && !prev.done {
		r.buckets, r.clean = prev.buckets, prev.clean
	}
	for b := range t.Owner {
		if b < len(old.Owner) && old.owner(b) == c.self && t.owner(b) != c.self {
			r.buckets = append(r.buckets, uint16(b))
			c.given[uint16(b)] = true
			r.clean = r.clean && !c.now.Before(c.notBefore[b])
		}
	}
	c.release = r
	c.stale = true
}

// releaseStep goes on with the release: closed in the kernel, flushed by syncd, said.
func (c *Core) releaseStep() {
	r := &c.release
	switch {
	case r.table == coord.Digest{} || r.done:
		return
	case r.gen == 0:
		r.gen = c.desired.Gen // rebuild has just made it
	}
	if c.applied < r.gen {
		return
	}
	if r.closed.IsZero() {
		r.closed = c.now // it was closed before
	}
	if len(r.buckets) > 0 && !r.flushed {
		if !r.flushing {
			r.flushing = true
			c.out.Flush = &Flush{Gen: r.gen, Buckets: r.buckets}
		}
		return
	}
	if len(r.buckets) > 0 && c.now.Sub(r.closed) < c.cfg.Guard {
		return // copies of one packet do not come to all directors at once (assumption A7)
	}
	r.done, c.dirty = true, true
}

// learnReleases opens what former owners say they have closed (rule 1).
func (c *Core) learnReleases() {
	if len(c.awaiting) == 0 || c.counts == nil {
		return
	}
	clean := map[member]bool{}
	for v := range c.live {
		clean[v.who] = v.beat.Released == c.counts.ref.Digest && v.beat.State&coord.StateReleased != 0
	}
	clean[c.self] = c.release.table == c.counts.ref.Digest && c.release.done && c.release.clean
	for b, from := range c.awaiting {
		if clean[from] {
			c.notBefore[b] = time.Time{}
			delete(c.awaiting, b)
			c.stale = true
		}
	}
}

// refBefore orders tables of one line by version, and those of several by line.
func refBefore(a, b coord.Ref) bool {
	return lineBefore(a.Line, b.Line) || a.Line == b.Line && a.Version < b.Version
}

// lineBefore orders lines: the later one has the higher term.
func lineBefore(a, b coord.Line) bool {
	return a.Term < b.Term || a.Term == b.Term && a.Node < b.Node
}
