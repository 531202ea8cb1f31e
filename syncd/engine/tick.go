package engine

import (
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// rebindPerTick is how many entries a Tick looks at for services that have come, and for buckets that have.
const rebindPerTick = 20000

// stallTime is how long a Tick may be late before this director distrusts what it knows of the others: it did not run itself.
const stallTime = 10 * TickInterval

// TickInterval is how often Tick is to be called.
const TickInterval = 20 * time.Millisecond

// rebinding is the walk that injects the entries of services that have come.
type rebinding struct {
	services []Service
	all      bool // of every service
	at       table.Cursor
}

// Tick does what time asks for. Call it every TickInterval.
func (e *Engine) Tick(now time.Time) {
	if e.lastTick.IsZero() {
		e.lastTick, e.join.began = now, now
	}
	late := now.Sub(e.lastTick)
	e.now, e.lastTick = now, now
	if late > stallTime {
		e.cfg.Log.Warn("this daemon did not run for a while", "missed", late.Round(time.Millisecond))
		e.trusted = now.Add(2 * HeartbeatInterval)
		e.stalled, e.backAt = late, now
		e.join.stalled(late)
	}
	e.backlog.expire(now)
	e.earn(late)
	if !now.Before(e.nextHeartbeat) {
		e.nextHeartbeat = now.Add(HeartbeatInterval)
		e.heartbeat()
	}
	if !now.Before(e.nextExpiry) {
		e.nextExpiry = now.Add(time.Second)
		e.counters[Expired] += uint64(e.table.Expire(now))
		if !now.Before(e.trusted) {
			e.peers.Expire(now, DeadTime, e.lost)
		}
	}
	e.joinStep(now)
	e.repairStep()
	e.rebindStep(now)
	e.bringStep(now, rebindPerTick)
	e.moveStep(now)
	e.builders.flush()
}

// lost is called for each peer that is not heard any more. What it has sent and this director lacks may have reached others.
func (e *Engine) lost(p *peer.Peer) {
	e.cfg.Log.Warn("peer lost", "peer", p.Name, "incarnation", p.Incarnation, "silent", e.now.Sub(p.LastHeard).Round(time.Millisecond),
		"missing", p.Missing())
	pa := e.partner(p.ID)
	pa.from, pa.to = pa.heard, 0
	if p.Missing() > 0 || pa.compare {
		e.wantOthers(p.ID)
	}
}

// Rebind injects again the entries of services that have come, as the kernel binds an entry to its real server only when it is
// injected (ip_vs_sync.c, ip_vs_proc_conn; ip_vs_conn.c, ip_vs_try_bind_dest).
func (e *Engine) Rebind(services []Service) {
	if len(services) > 0 {
		e.rebind.services = append(e.rebind.services, services...)
		e.rebind.at = table.Cursor{}
	}
}

// Reinject injects everything again that other directors have told, and that this kernel is to have: it has not got it.
func (e *Engine) Reinject() { e.rebind.all, e.rebind.at = true, table.Cursor{} }

// Reinjecting reports whether that is still going on.
func (e *Engine) Reinjecting() bool { return e.rebind.all }

func (e *Engine) rebindStep(now time.Time) {
	if len(e.rebind.services) == 0 && !e.rebind.all {
		return
	}
	e.rebind.at = e.table.Walk(now, e.rebind.at, rebindPerTick, func(en *table.Entry) bool {
		if en.Origin == e.self && en.Stamp.Clock >= e.wall(e.started) && en.Record.Flags&ipvssync.FlagSync == 0 || en.Remaining == 0 {
			return true // made by this kernel, so bound when it was made
		}
		if !e.kept(&en.Record) {
			return true
		}
		if e.rebind.all || slices.ContainsFunc(e.rebind.services, func(s Service) bool { return s.matches(&en.Record) }) {
			if bucket, shared := e.share.now.Bucket(&en.Record); shared && en.Origin != e.self && e.late(bucket, en.Stamp) {
				e.enterLate(&en.Record, table.Replaced, en.Age()) // what this kernel has made meanwhile stands, as it does when the update comes
			} else {
				e.inject(&en.Record, en.Age())
			}
		}
		return true
	})
	if e.rebind.at.Done {
		e.rebind = rebinding{}
	}
}
