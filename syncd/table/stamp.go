package table

import (
	"cmp"

	"saru/lib/peer"
	"saru/proto/mirror"
)

// Stamp orders the updates of one connection: first by the grant under which the origin held it, then by the origin's hybrid
// logical clock.
type Stamp struct {
	Grant mirror.Grant
	Clock uint64 // microseconds
}

// Compare returns -1, 0 or 1 as (s, origin) comes before, is the same as, or comes after (t, other).
func (s Stamp) Compare(origin peer.ID, t Stamp, other peer.ID) int {
	return cmp.Or(cmp.Compare(s.Grant, t.Grant), cmp.Compare(s.Clock, t.Clock), cmp.Compare(origin, other))
}

// MaxClock is the latest clock of a stamp, in microseconds: 146,000 years. What is later is no stamp.
const MaxClock = 1 << 62

// maxStep is by how much the wall clock may go back, in microseconds, before the Clock stops to wait for it: a second.
const maxStep = 1e6

// Clock is a hybrid logical clock (Kulkarni et al. 2014), with the logical part folded into microseconds: it never stands still or
// goes back, and is later than every stamp that was seen. It runs at the speed of the wall clock, but ahead of it by as much as the
// fastest director's that was heard of: so stamps of all directors can be compared with a time, and no synchronised clocks are assumed.
// It is not safe for concurrent use; the zero value is ready.
type Clock struct{ last, ahead uint64 }

// Next returns the stamp for an event now; wall is the wall clock in microseconds.
func (c *Clock) Next(wall uint64) uint64 {
	if c.last > wall+c.ahead+maxStep {
		c.ahead = c.last - wall // the wall clock was set back
	}
	c.last = max(wall+c.ahead, c.last+1)
	return c.last
}

// Ahead returns by how much the clock is ahead of the wall clock.
func (c *Clock) Ahead() uint64 { return c.ahead }

// Seen takes a stamp of another director into account.
func (c *Clock) Seen(stamp, wall uint64) {
	if stamp > c.last && stamp <= MaxClock {
		c.last = stamp
		if stamp > wall+c.ahead {
			c.ahead = stamp - wall
		}
	}
}
