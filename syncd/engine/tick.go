package engine

import (
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// How much of the background work a Tick does at most. Ticks come every 20 ms or so.
const (
	// teachPerTick is how many entries are sent to newcomers: 40 datagrams, 64,000 entries a second.
	teachPerTick = 1280
	// lookPerTick is how many places of the table are looked at for that; a table that was large once has many empty ones.
	lookPerTick = 50000
	// retellInterval is how long after a table the next one is sent to who lacks something.
	retellInterval = 5 * time.Second
	// rebindPerTick is how many entries are looked at for services that have come.
	rebindPerTick = 20000
)

// teaching is the walk that sends the table to newcomers. All of them listen to the same one.
type teaching struct {
	active bool
	again  bool // somebody came after it had begun
	at     table.Cursor
	since  time.Time
	sent   int
}

// rebinding is the walk that injects the entries of services that have come.
type rebinding struct {
	services []Service
	all      bool // of every service
	at       table.Cursor
}

// Tick does what time asks for. Call it every 20 ms.
func (e *Engine) Tick(now time.Time) {
	if !now.Before(e.nextHeartbeat) {
		e.nextHeartbeat = now.Add(HeartbeatInterval)
		e.heartbeat(now)
	}
	if !now.Before(e.nextExpiry) {
		e.nextExpiry = now.Add(time.Second)
		e.counters[Expired] += uint64(e.table.Expire(now))
		e.peers.Expire(now, DeadTime, func(p *peer.Peer) {
			e.cfg.Log.Warn("peer lost", "peer", p.Name, "incarnation", p.Incarnation, "silent", now.Sub(p.LastHeard).Round(time.Millisecond))
		})
	}
	if !e.synced {
		e.join(now)
	}
	e.teachStep(now)
	e.rebindStep(now)
	e.builders.flush()
}

// join looks whether the replica is complete: every peer has sent its table, or there is no peer.
func (e *Engine) join(now time.Time) {
	untaught, peers := 0, 0
	for p := range e.peers.Peers {
		if p.Lost {
			continue
		}
		peers++
		if e.lesson(p.ID).done.IsZero() {
			untaught++
		}
	}
	alone := peers == 0 && now.Sub(e.started) > quietTime && now.Sub(e.stranger) > quietTime
	switch {
	case alone:
		e.cfg.Log.Info("synced: no peer answered", "connections", e.table.Len())
	case peers > 0 && untaught == 0:
		e.cfg.Log.Info("synced: the peers have sent their tables", "peers", peers, "connections", e.table.Len())
	case now.Sub(e.started) > JoinTime && now.Sub(e.progress) > JoinTime:
		e.cfg.Log.Warn("synced, although not every peer has sent its table", "peers", peers, "without", untaught, "connections", e.table.Len())
	default:
		return
	}
	e.synced = true
}

// teachStep sends a part of the table, if a newcomer wants it and hears this director.
func (e *Engine) teachStep(now time.Time) {
	for id := range e.wants {
		p := e.peers.Get(id)
		if p == nil || p.Lost {
			delete(e.wants, id)
		} else if p.Echoed.Incarnation == e.cfg.Incarnation && p.Echoed.Counts {
			delete(e.wants, id)
			if e.teach.active {
				e.teach.again = true
			} else {
				e.teach = teaching{active: true, since: now}
			}
			e.cfg.Log.Debug("sending the table", "peer", p.Name, "connections", e.table.Len())
		}
	}
	if !e.teach.active {
		return
	}
	left := teachPerTick
	e.teach.at = e.table.Walk(now, e.teach.at, lookPerTick, func(en *table.Entry) bool {
		e.tell(now, en)
		left--
		return left > 0
	})
	if !e.teach.at.Done {
		return
	}
	if e.teach.again {
		e.teach = teaching{active: true, since: now, sent: e.teach.sent}
		return
	}
	e.builders.flush()
	// A table message without records says that this was all.
	e.builders.get(now, mirror.KindTable, e.self, 0, 0).last = true
	e.builders.flush()
	e.cfg.Log.Info("table sent", "entries", e.teach.sent, "took", now.Sub(e.teach.since).Round(time.Millisecond))
	e.teach, e.told = teaching{}, now
}

// tell puts one entry into a table message. What is about to expire is not worth it.
func (e *Engine) tell(now time.Time, en *table.Entry) {
	if en.Remaining < time.Second {
		return
	}
	size := ipvssync.RecordLen(&en.Record)
	m := e.builders.get(now, mirror.KindTable, en.Origin, en.Stamp.Grant, size)
	if n := len(m.clocks); n > 0 && spread(m, en.Stamp.Clock) > mirror.MaxClockOffset {
		e.builders.flush()
		m = e.builders.get(now, mirror.KindTable, en.Origin, en.Stamp.Grant, size)
	}
	if err := m.b.Add(&en.Record); err != nil {
		e.cfg.Log.Debug("entry not sent", "client", en.Record.Client, "error", err)
		return
	}
	m.clock = max(m.clock, en.Stamp.Clock)
	m.clocks = append(m.clocks, en.Stamp.Clock)
	m.ages = append(m.ages, en.Age())
	e.teach.sent++
	e.counters[TaughtRecords]++
}

// spread returns how far the clocks of a message's records would lie apart with one more.
func spread(m *message, clock uint64) uint64 {
	lo, hi := clock, max(clock, m.clock)
	for _, c := range m.clocks {
		lo = min(lo, c)
	}
	return hi - lo
}

// Rebind injects again the entries of services that have come, as the kernel binds an entry to its real server only when it is
// injected (ip_vs_sync.c, ip_vs_proc_conn; ip_vs_conn.c, ip_vs_try_bind_dest).
func (e *Engine) Rebind(services []Service) {
	if len(services) > 0 {
		e.rebind.services = append(e.rebind.services, services...)
		e.rebind.at = table.Cursor{}
	}
}

// Reinject injects everything again that other directors have told: the kernel has not got it.
func (e *Engine) Reinject() { e.rebind.all, e.rebind.at = true, table.Cursor{} }

func (e *Engine) rebindStep(now time.Time) {
	if len(e.rebind.services) == 0 && !e.rebind.all {
		return
	}
	e.rebind.at = e.table.Walk(now, e.rebind.at, rebindPerTick, func(en *table.Entry) bool {
		if en.Origin == e.self && en.Stamp.Clock >= wall(e.started) && en.Record.Flags&ipvssync.FlagSync == 0 || en.Remaining == 0 {
			return true // made by this kernel, so bound when it was made
		}
		if e.rebind.all || slices.ContainsFunc(e.rebind.services, func(s Service) bool { return s.matches(&en.Record) }) {
			e.inject(&en.Record, en.Age())
		}
		return true
	})
	if e.rebind.at.Done {
		e.rebind = rebinding{}
	}
}
