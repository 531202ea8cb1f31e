package core

import (
	"fmt"
	"slices"
	"time"

	"saru/proto/coord"
)

// support returns the send time of the newest own heartbeat that a member supports under the tables here, or the zero time.
func (c *Core) support(m member) time.Time {
	if m == c.self {
		return c.now
	}
	v := c.views[m.node]
	if v == nil || v.who != m || v.supported == 0 {
		return time.Time{}
	}
	at, _ := c.sent.at(v.supported)
	return at
}

// hold returns S of docs/SAFETY.md, section 3, for one table.
func (c *Core) hold(t *table) time.Time {
	if t.Policy == coord.Quorum {
		if t.held.IsZero() || c.resupply || len(t.members) == 1 {
			times := c.times[:0]
			for _, m := range t.members {
				times = append(times, c.support(m))
			}
			c.times = times
			slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
			t.held = time.Time{}
			if k := c.majority(t); k <= len(times) {
				t.held = times[k-1]
			}
		}
		return t.held
	}
	s, others := c.now, false
	for _, m := range t.members {
		if m == c.self {
			continue
		}
		v := c.views[m.node]
		if v == nil || v.who != m {
			// It has not proved that it lives. If it is heard nevertheless, it is deaf to this director, and counts it dead deadtime after the table at the earliest.
			if c.now.Sub(c.strangers[m].at) < c.cfg.Deadtime {
				since := c.acceptedAt
				if t == c.pending {
					since = c.pendingAt
				}
				if at := since.Add(c.cfg.Deadtime - c.cfg.wait()); at.Before(s) {
					s = at
				}
			}
			continue // never heard: it cannot hold, and does not bind
		}
		silence := c.now.Sub(v.at)
		others = others || silence < c.cfg.Deadtime
		if silence <= 2*c.cfg.Keepalive || silence < c.cfg.Deadtime && c.deaf(v) {
			if at := c.support(m); at.Before(s) {
				s = at
			}
		}
	}
	if !others && c.cfg.PingNodes > 0 && c.local.Pings == 0 {
		return time.Time{} // cut off from everything: the others serve, if anybody does
	}
	return s
}

// updateLease computes until when this director may hold, and notices that the lease was lost.
func (c *Core) updateLease() {
	if c.counts == nil || c.counts.index(c.self) < 0 {
		c.lease, c.held = time.Time{}, false
		return
	}
	if count(c.desired.Open) == 0 {
		c.held = false // nothing to lose
	}
	s := c.hold(c.counts)
	if c.pending != nil && c.pending.index(c.self) >= 0 {
		if p := c.hold(c.pending); p.Before(s) {
			s = p
		}
	}
	c.resupply = false
	var end time.Time
	if !s.IsZero() {
		end = s.Add(c.cfg.Lease)
	}
	if c.held && !c.lapsed && !c.now.Before(c.lease) {
		c.lapse("its support came too late") // whatever came since
	}
	// It may go back: with `available`, who was silent for a moment and binds again shows what it has heard.
	c.lease = end
	if c.held && !c.lapsed && !c.now.Before(c.lease) {
		c.lapse(c.whyUnsupported())
	}
}

func (c *Core) whyUnsupported() string {
	n := 0
	for _, m := range c.counts.members {
		if s := c.support(m); !s.IsZero() && c.now.Sub(s) < c.cfg.Lease {
			n++
		}
	}
	return fmt.Sprintf("%d of %d members support it", n, len(c.counts.members))
}

// lapse closes this director until another table counts.
func (c *Core) lapse(why string) {
	c.lapsed, c.dirty, c.stale, c.review = true, true, true, true
	c.event("lapsed", "the lease is lost, everything is closed until the next table: "+why)
	c.alarm("lapsed", "this director has lost its lease: "+why)
}

// rejudge looks at the newest echoes again, after a table has changed. keep: what supported before supports still.
func (c *Core) rejudge(keep bool) {
	c.resupply = true
	for _, v := range c.all {
		if !keep {
			v.supported = 0 // a table replaced: some of it may have come from who has accepted a third one since
		}
		c.judge(v)
	}
}
