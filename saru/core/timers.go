package core

import (
	"fmt"
	"strings"
	"time"

	"saru/proto/coord"
)

// timers returns what the other directors must know of this one's options, and have themselves: whoever takes from a dead director has waited for its own deadtime, not for
// the other's lease (docs/SAFETY.md, section 4).
func (c *Config) timers() coord.Timers {
	return coord.Timers{Keepalive: microseconds(c.Keepalive), Deadtime: microseconds(c.Deadtime), Lease: microseconds(c.Lease), Guard: microseconds(c.Guard)}
}

func microseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), 1<<32-1))
}

// alike reports whether a director has the timers of this one. With others it is never a member of a table beside this one.
func (c *Core) alike(v *view) bool { return v.beat.Timers == c.cfg.timers() }

// noteTimers remembers who has a farm with other timers: beside it this director founds none, even if it hears nothing of it any more, until it hears that one with the
// same timers. The one of the two farms that yields on contact could not join the other.
func (c *Core) noteTimers(v *view) {
	switch {
	case c.alike(v):
		delete(c.others, v.who.node)
	case v.beat.Counts != (coord.Ref{}):
		c.others[v.who.node] = v.beat.Name
	}
}

// compareTimers raises an alarm while somebody with other timers is heard. With a longer keepalive it may be silent for longer than this director's deadtime.
func (c *Core) compareTimers() {
	var differ []string
	for _, v := range c.all {
		t := v.beat.Timers
		if !c.alike(v) && c.now.Sub(v.at) < 2*max(c.cfg.Deadtime, duration(t.Deadtime)) {
			differ = append(differ, fmt.Sprintf("%s has --keepalive %v --deadtime %v --lease %v --guard %v", v.beat.Name, duration(t.Keepalive), duration(t.Deadtime),
				duration(t.Lease), duration(t.Guard)))
		}
	}
	if len(differ) == 0 {
		c.alarm("timers", "")
		return
	}
	c.alarm("timers", fmt.Sprintf("%s; this director has --keepalive %v --deadtime %v --lease %v --guard %v: they share nothing until all are configured alike and restarted",
		strings.Join(differ, ", "), c.cfg.Keepalive, c.cfg.Deadtime, c.cfg.Lease, c.cfg.Guard))
}

func duration(us uint32) time.Duration { return time.Duration(us) * time.Microsecond }
