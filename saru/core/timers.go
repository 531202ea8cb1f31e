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

// compareTimers raises an alarm while somebody with other timers is heard.
func (c *Core) compareTimers() {
	var differ []string
	for v := range c.live {
		if !c.alike(v) {
			t := v.beat.Timers
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
