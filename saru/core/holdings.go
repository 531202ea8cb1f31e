package core

import (
	"math/bits"
	"slices"
	"time"
)

// fits reports whether this director's share function has all of the table's.
func (c *Core) fits() bool {
	if c.counts == nil {
		return false
	}
	if c.fn == c.counts.fn {
		return true
	}
	mine, theirs := c.local.Function, c.counts.Function
	if mine.Buckets != theirs.Buckets || mine.Seed != theirs.Seed {
		return false
	}
	for _, v := range theirs.Virtuals {
		if !slices.Contains(mine.Virtuals, v) {
			return false
		}
	}
	return true
}

// rebuild computes what is open, when something has changed or a bucket's time has come.
func (c *Core) rebuild() {
	if !c.stale && (c.opens.IsZero() || c.now.Before(c.opens)) {
		c.publish(c.desired.Open)
		return
	}
	c.stale, c.opens = false, time.Time{}
	c.publish(c.entitled())
}

// entitled returns the buckets that the tables give to this director, and whose time has come. It notes when the next one's comes.
func (c *Core) entitled() []uint64 {
	if c.counts == nil || c.lapsed || c.muted != 0 || !c.fits() {
		return nil
	}
	me := c.counts.index(c.self)
	if me < 0 {
		return nil
	}
	pending := -1
	if c.pending != nil {
		if pending = c.pending.index(c.self); pending < 0 || len(c.pending.Owner) != len(c.counts.Owner) {
			return nil
		}
	}
	open := make([]uint64, (len(c.counts.Owner)+63)/64)
	if c.meets() {
		c.metUntil = c.now.Add(c.cfg.Guard)
	}
	for b, o := range c.counts.Owner {
		if int(o) != me || pending >= 0 && int(c.pending.Owner[b]) != pending || len(c.given) > 0 && c.given[uint16(b)] {
			continue
		}
		at := c.notBefore[b]
		if b/64 >= len(c.desired.Open) || c.desired.Open[b/64]&(1<<(b%64)) == 0 {
			at = later(at, c.metUntil)
		}
		if c.now.Before(at) {
			if c.opens.IsZero() || at.Before(c.opens) {
				c.opens = at
			}
			continue
		}
		open[b/64] |= 1 << (b % 64)
	}
	return open
}

// publish tells the filter what has changed.
func (c *Core) publish(open []uint64) {
	lease := c.lease
	if !c.now.Before(lease) {
		lease = time.Time{}
		// Without a lease nothing is let through, whatever stands in the set. It stays there, so that a lease opens it at once.
	} else if count(open) > 0 {
		c.held = true
	}
	changed := !equal(open, c.desired.Open)
	d := Desired{Gen: c.desired.Gen, Open: open, Lease: lease}
	if c.counts != nil {
		d.Function = &c.counts.Function
	}
	if changed || c.desired.Gen == 0 || d.Function != c.desired.Function {
		d.Gen++
		c.dirty = true
	}
	if d.Gen == c.desired.Gen && d.Lease.Equal(c.desired.Lease) {
		return
	}
	c.desired = d
	out := d
	c.out.Filter = &out
}

func equal(a, b []uint64) bool {
	if count(a) == 0 && count(b) == 0 {
		return true
	}
	return slices.Equal(a, b)
}

func count(set []uint64) (n int) {
	for _, w := range set {
		n += bits.OnesCount64(w)
	}
	return n
}
