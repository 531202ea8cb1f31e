package core

import (
	"time"

	"saru/proto/coord"
)

// ring remembers when the newest own datagrams were sent.
type ring struct {
	entries [1024]struct {
		seq uint64
		at  time.Time
	}
}

func (r *ring) add(seq uint64, at time.Time) {
	e := &r.entries[seq%uint64(len(r.entries))]
	e.seq, e.at = seq, at
}

func (r *ring) at(seq uint64) (time.Time, bool) {
	e := &r.entries[seq%uint64(len(r.entries))]
	return e.at, e.seq == seq && seq != 0
}

// header returns the header of the next datagram. The key is the sender's matter.
func (c *Core) header() coord.Header {
	h := coord.Header{Sender: c.self.node, Incarnation: c.self.incarnation, Sequence: c.peers.NextControl()}
	c.sent.add(h.Sequence, c.now) // what is echoed may be any of them
	return h
}

func (c *Core) send(m coord.Message) {
	if c.muted != 0 {
		return // nothing is said before the kernel has closed (docs/SAFETY.md, hole 9 and exception 1)
	}
	c.out.Send = append(c.out.Send, m)
}

// beat sends a heartbeat when it is time, or when something of it has changed.
func (c *Core) beat() {
	asks := !c.asksAt().IsZero() && !c.now.Before(c.asksAt())
	if asks && c.now.Sub(c.asked) >= c.cfg.Keepalive/4 {
		c.asked, c.dirty = c.now, true
	}
	due := !c.now.Before(c.nextBeat)
	if !c.dirty && !due {
		return
	}
	if due {
		c.repeatCommand()
		c.nextBeat = c.nextBeat.Add(c.cfg.Keepalive)
		if !c.nextBeat.After(c.now) {
			c.nextBeat = c.now.Add(c.cfg.Keepalive)
		}
	}
	if c.muted != 0 {
		return
	}
	c.dirty, c.beaten = false, c.now
	h := &coord.Heartbeat{
		Name: c.cfg.Node, UptimeMS: uint64(c.now.Sub(c.started).Milliseconds()), State: c.state(), Weight: c.cfg.Weight,
		Pings: uint16(c.local.Pings), Open: uint32(count(c.desired.Open)), Function: c.fn,
		Timers: c.cfg.timers(), Term: c.maxTerm, PendingBallot: c.pendingBallot, Promise: c.promise, Answer: c.answer,
	}
	// Who is no member only looks on; but one that hands over, or was taken out as dead, may be the only one to know that the table counts.
	if c.votes() || c.handed && (c.leaving || !c.membersKnow()) {
		h.Master, h.Counts = c.counts.Master, c.counts.ref
	}
	if c.pending != nil {
		h.Pending = c.pending.ref
	}
	if c.release.done {
		h.Released = c.release.table
	}
	h.Echoes = c.echoes()
	pages := h.Pages()
	for i := range pages {
		pages[i].Header = c.header()
		c.send(&pages[i])
	}
}

// membersKnow reports whether a member says that the table counts which took this director out, or a later one.
func (c *Core) membersKnow() bool {
	for v := range c.live {
		if r := v.beat.Counts; c.counts.index(v.who) >= 0 && r.Line == c.counts.Line && r.Version >= c.counts.Version {
			return true
		}
	}
	return false
}

func (c *Core) state() coord.State {
	var s coord.State
	set := func(on bool, bit coord.State) {
		if on {
			s |= bit
		}
	}
	set(c.local.Synced, coord.StateSynced)
	set(c.local.Usable, coord.StateUsable)
	set(c.wantsToJoin(), coord.StateJoins)
	set(c.draining, coord.StateDrains)
	set(c.leaving, coord.StateLeaves)
	set(c.lapsed, coord.StateLapsed)
	set(c.release.done && c.release.clean, coord.StateReleased)
	set(c.hearsNobody(), coord.StateDeaf)
	set(c.fits(), coord.StateFits)
	set(c.asked == c.now, coord.StateAsks)
	return s
}

// echoes returns what this director says of all that it hears, and of members that it counts dead.
func (c *Core) echoes() []coord.Echo {
	var out []coord.Echo
	listed := map[member]bool{}
	for _, e := range c.peers.Echoes(nil, c.now, 1<<16) {
		who := member{uint64(e.Node), uint64(e.Incarnation)}
		listed[who] = true
		out = append(out, coord.Echo{
			Node: who.node, Incarnation: who.incarnation, Sequence: e.Control, AgeMS: milliseconds(e.Age),
			Counts: e.Counts, Supports: e.Counts && !c.dead[who] && !c.now.Before(c.silent), Dead: c.dead[who],
		})
	}
	if c.counts == nil {
		return out
	}
	for _, m := range c.counts.members {
		if c.dead[m] && !listed[m] {
			out = append(out, coord.Echo{Node: m.node, Incarnation: m.incarnation, AgeMS: milliseconds(c.now.Sub(c.heard[m])), Dead: true})
		}
	}
	return out
}

// asksAt is when this director asks the others for heartbeats, because theirs or its own were lost and its lease runs out; zero: it holds nothing.
func (c *Core) asksAt() time.Time {
	if !c.held || c.lapsed || c.lease.IsZero() {
		return time.Time{}
	}
	// Of the heartbeat from which it is counted, which is the newest that enough of the others have echoed in theirs, the age is up to 1.5 keepalives in a farm of many, and
	// 2 in one of two, which is small enough to ask now and then without need. Asked later, two directors that lose a tenth of their datagrams lose a lease each minute.
	return c.lease.Add(c.cfg.Keepalive*17/10 - c.cfg.Lease)
}

func milliseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 0), 1<<31))
}

func (c *Core) hearsNobody() bool {
	for range c.live {
		return false
	}
	return true
}

// countDead counts members dead that nobody has heard for deadtime. It stays so until another table counts: their leases are not supported any more
// (docs/SAFETY.md, section 4).
func (c *Core) countDead() {
	c.death = time.Time{}
	if c.counts == nil || c.counts.index(c.self) < 0 {
		return
	}
	for _, m := range c.counts.members {
		if m == c.self || c.dead[m] {
			continue
		}
		at, ok := c.heard[m]
		if !ok {
			at = c.countsAt
		}
		at = later(at, c.countsAt)
		if c.now.Sub(at) >= c.cfg.Deadtime {
			c.dead[m] = true
			c.dirty, c.review = true, true
			c.event("dead", c.name(m)+" has been heard by nobody for "+c.now.Sub(at).Round(time.Millisecond).String())
		} else if at = at.Add(c.cfg.Deadtime); c.death.IsZero() || at.Before(c.death) {
			c.death = at // or later: it may be heard until then
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
