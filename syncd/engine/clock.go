package engine

import (
	"time"

	"saru/lib/peer"
)

// maxLead is by how much the clock of the stamps may be ahead of this director's wall clock, and grow further, without an alarm. Directors
// whose clocks are kept right differ by milliseconds; one that drifts by a second a day needs two months.
const maxLead = time.Minute

// wall returns the wall clock in microseconds, the unit of stamps.
func wall(now time.Time) uint64 { return uint64(now.UnixMicro()) }

// wall returns what the wall clock would show if nobody had set it since the start. The clock of the stamps, which never goes back, runs by
// that: one that is set right while the daemon runs, as on a machine that boots in 1970, does not take the farm years ahead.
func (e *Engine) wall(now time.Time) uint64 {
	return wall(e.started) + uint64(now.Sub(e.started).Microseconds())
}

// lead returns by how much the clock of the stamps is ahead of this director's wall clock, at most by the 292 years of a Duration. It is
// negative where the wall clock was set forward since the start.
func (e *Engine) lead(now time.Time) time.Duration {
	const most = int64(1<<63-1) / 1000
	return time.Duration(max(min(int64(e.wall(now)+e.clock.Ahead()-wall(now)), most), -most)) * time.Microsecond
}

// follow takes a stamp of another director into account. Whoever is ahead takes all with it, for ever: no clock goes back.
func (e *Engine) follow(now time.Time, stamp uint64, from peer.ID, name string) {
	before := e.clock.Ahead()
	e.clock.Seen(stamp, e.wall(now))
	if e.clock.Ahead() == before {
		return
	}
	lead := e.lead(now)
	if lead <= maxLead || lead-e.leadSaid <= maxLead || !e.leadSaidAt.IsZero() && now.Sub(e.leadSaidAt) < time.Minute {
		return
	}
	e.leadSaid, e.leadSaidAt = lead, now
	if name == "" {
		name = e.origin(from)
	}
	e.cfg.Log.Error("clock of another director is ahead of this one's: all directors follow it until all are stopped and started again (CLOCKS in syncd(8))",
		"peer", name, "lead", lead.Round(time.Second))
}
