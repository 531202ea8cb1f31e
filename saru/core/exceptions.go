package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"saru/proto/coord"
)

// What docs/SAFETY.md, section 5, calls exceptions cannot be ruled out from inside; here they are noticed, and told by alarms.

// passing is for how long an alarm stays that is about something that is over at once, so that whoever looks now and then sees it.
const passing = time.Minute

// PassingAlarm raises an alarm about what is over, which ends by itself after a minute, or that long after it was raised last.
func (c *Core) PassingAlarm(name, text string) {
	c.passing[name] = c.now.Add(passing)
	c.alarm(name, text)
}

// goesWithout notes members that the side of this director takes over from though they may live, cut off: exception 1. They are told until they are heard again.
func (c *Core) goesWithout(members []coord.Member) {
	for _, m := range members {
		c.without[m.Node] = m.Name
	}
	c.tellWithout()
}

func (c *Core) heardAgain(node uint64) {
	if _, ok := c.without[node]; ok {
		delete(c.without, node)
		c.tellWithout()
	}
}

func (c *Core) tellWithout() {
	if len(c.without) == 0 {
		c.alarm("partition", "")
		return
	}
	c.alarm("partition", fmt.Sprintf("this side goes on without %s: if that is not dead, but cut off, each packet is accepted on both sides",
		strings.Join(slices.Sorted(maps.Values(c.without)), ", ")))
}

// takenOver notes, from a table that counts, whom it takes over from with the consent of those alone that hear each other.
func (c *Core) takenOver(old, t *table) {
	if old == nil || t.Parent != old.ref.Digest || t.Line == old.Line || t.index(c.self) < 0 {
		return // a table with a quorum: whoever is cut off has closed
	}
	var gone []coord.Member
	for i, m := range old.members {
		if t.gone(m) {
			gone = append(gone, old.Members[i])
		}
	}
	c.goesWithout(gone)
}

// standsStill notices that others have taken over from this director while its lease was running by its own clock: the clock has stood still, exception 2.
func (c *Core) standsStill() {
	if c.leased() {
		c.stoodStill()
	}
}

func (c *Core) stoodStill() {
	c.PassingAlarm("clock", "the others took over from this director while its own lease was running: its clock stood still, as in a virtual machine that is paused, and packets may have been accepted twice")
}

// leased reports whether the lease is running, as far as this director's clock tells.
func (c *Core) leased() bool { return c.held && !c.lapsed && c.now.Before(c.lease) }

// diesBy notes that a table names this director dead: while its lease is running, or it was running when the table was spoken of already, and could only be fetched now.
func (c *Core) diesBy(t *table) {
	if t.Line == c.counts.Line && t.Version <= c.overtaken {
		c.stoodStill()
	} else {
		c.standsStill()
	}
}

// noteOvertaken remembers that a later table is spoken of while the lease is running.
func (c *Core) noteOvertaken(r coord.Ref) {
	if c.counts != nil && r.Line == c.counts.Line && r.Version > c.counts.Version && c.leased() {
		c.overtaken = max(c.overtaken, r.Version)
	}
}

// endAlarms takes back alarms about what has been over for long enough.
func (c *Core) endAlarms() {
	for name, until := range c.passing {
		if !c.now.Before(until) {
			delete(c.passing, name)
			c.alarm(name, "")
		}
	}
}
