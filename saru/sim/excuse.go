package sim

import "time"

// excused reports whether an overlap is one of the stated exceptions (docs/SAFETY.md, section 5): two lines of tables of sides that do not hear each other, or did not
// until a moment ago. Within one line nothing is excused, and with `quorum` alone nothing at all.
func (w *World) excused(a, b *Director) bool {
	if !a.available() && !b.available() || a.kernel.line == b.kernel.line {
		return false
	}
	// On contact a side needs two keepalives until it believes that the other lives, and some time in which its kernel closes.
	const late = 400 * time.Millisecond
	w.apart(a, b)
	at, ok := w.split[pair(a, b)]
	return ok && w.now-at < late
}

// apart notes that two directors are cut off from each other now, if they are.
func (w *World) apart(a, b *Director) {
	if w.dark(a.index, b.index) || w.foundsDeaf(a, b) || w.foundsDeaf(b, a) || strangers(a, b) {
		w.split[pair(a, b)] = w.now
	}
}

func pair(a, b *Director) [2]int { return [2]int{min(a.index, b.index), max(a.index, b.index)} }

// foundsDeaf reports whether a director has started and, as it does not hear the other, founded a farm of its own, though the other may hear it:
// exception 3.
func (w *World) foundsDeaf(starter, other *Director) bool {
	const start = time.Second
	return starter.core != nil && other.core != nil && w.now-w.delivered[[2]int{other.index, starter.index}] > start && !other.core.HasMember(starter.core.Self())
}

// contact is what a director knows of another, each as it is since it last began anew: when it heard it first, when the newest datagram was sent that it heard, and
// whether it has had a proof that the other lives, an echo of something that it sent after it had first heard it.
type contact struct {
	mine, theirs uint64
	first, heard time.Duration
	proven       bool
}

// knows returns the contact with another as both are now, or nil.
func (d *Director) knows(o *Director) *contact {
	if d.core == nil || o.core == nil {
		return nil
	}
	_, mine := d.core.Self()
	_, theirs := o.core.Self()
	if c := d.met[o.index]; c != nil && c.mine == mine && c.theirs == theirs {
		return c
	}
	return nil
}

// hears notes that a datagram has come that was sent at a time by an incarnation that had heard what this director sent at another: 0: nothing.
func (d *Director) hears(from int, incarnation uint64, sent, echoed time.Duration) {
	d.w.apart(d.w.Directors[from], d) // until now
	d.w.delivered[[2]int{from, d.index}] = d.w.now
	_, mine := d.core.Self()
	c := d.met[from]
	if c == nil || c.mine != mine || c.theirs != incarnation {
		c = &contact{mine: mine, theirs: incarnation, first: d.w.now}
		d.met[from] = c
	}
	c.heard = max(c.heard, sent)
	c.proven = c.proven || echoed > c.first
}

// strangers reports whether neither of two directors, as they are since they last began anew, has had a proof that the other lives: what they hear cannot be told
// from a recording. It is exception 3 as well.
func strangers(a, b *Director) bool {
	if a.core == nil || b.core == nil {
		return false
	}
	ab, ba := a.knows(b), b.knows(a)
	return (ab == nil || !ab.proven) && (ba == nil || !ba.proven)
}
