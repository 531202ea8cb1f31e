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

// maxAhead bounds how far a received stamp may push the clock ahead of this director's own time, in microseconds: one day. A peer
// whose wall clock is further ahead than that keeps its order with itself but does not drag the farm along for ever.
const maxAhead = 24 * 3600 * 1e6

// Clock is a hybrid logical clock (Kulkarni et al. 2014), with the logical part folded into microseconds: it follows the wall clock,
// never stands still or goes back, and is later than every stamp that was seen. No synchronised clocks are assumed. It is not safe
// for concurrent use; the zero value is ready.
type Clock struct{ last uint64 }

// Next returns the stamp for an event now; wall is the wall clock in microseconds.
func (c *Clock) Next(wall uint64) uint64 {
	c.last = max(wall, c.last+1)
	return c.last
}

// Seen takes a stamp of another director into account.
func (c *Clock) Seen(stamp, wall uint64) {
	if stamp > c.last && stamp <= wall+maxAhead {
		c.last = stamp
	}
}
