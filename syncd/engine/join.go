package engine

import (
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// JoinState is how far a director has come from its start to a complete mirror.
type JoinState uint8

// States of the join, in order. Nothing of its own is sent while a director learns.
const (
	Learning   JoinState = iota // it looks for a teacher, or is taught
	Publishing                  // what its kernel has reported meanwhile is being published
	Settling                    // its kernel has not entered everything yet
	Synced
)

// Times of the join.
const (
	// admitTime is how long after the latest admission a newcomer waits for further peers to be admitted: whose updates it does not hear
	// live while it is taught, it would miss.
	admitTime = 250 * time.Millisecond
	// retryTime is how long a teacher that failed is not asked again.
	retryTime = time.Second
	// busyTime is how long a newcomer waits for complete teachers that teach others, all in all.
	busyTime = time.Minute
)

// publishPerTick is how many entries of the director's own are published at once after the join: 1 million a second.
const publishPerTick = 20000

// joining is the way to a complete mirror.
type joining struct {
	state    JoinState
	began    time.Time    // when this director first ran; later if it did not run for a while
	own      *table.Table // what this kernel had at the start and has reported since, until it is published; then nil
	at       table.Cursor // of own
	asked    map[peer.ID]peer.Incarnation
	admitted time.Time // when a peer was admitted for the last time
	stranger time.Time // when any other director was last heard
	knocking time.Time // when one was last heard that is not admitted
	progress time.Time // when a teacher last sent something
	busy     time.Time // until when to wait for complete teachers; zero: none has said that it has sessions enough
	attempts int
	teacher  string
	entries  uint64
	total    uint64
	partial  bool // no teacher was complete itself, or none could be asked
	ended    time.Time
	since    uint64 // the clock then
}

// Stamps of joining.own have the plain wall clock, as what is heard makes the hybrid one leap: then they are ahead as much. Their grants
// tell where an entry comes from.
const (
	listed   mirror.Grant = iota // in the kernel's list at the start; the clock says when it was refreshed
	reported                     // by the kernel since, or told by another and stands above what the kernel has
)

// ageSlack is by how many seconds ages must differ to be told apart: both are rounded, on the way to a kernel and back twice.
const ageSlack = 3

// stalled makes up for a time in which this director did not run.
func (j *joining) stalled(late time.Duration) {
	j.began, j.progress, j.admitted = j.began.Add(late), j.progress.Add(late), j.admitted.Add(late)
}

// keeps reports whether what this director's kernel has of a connection must not be overwritten by a record that is told while it
// joins. If it may be overwritten, what the kernel had is forgotten: nothing that is told later brings it back.
func (e *Engine) keeps(now time.Time, r *ipvssync.Record, origin peer.ID, stamp table.Stamp, age uint32) bool {
	own := e.join.own
	if own == nil {
		return false
	}
	slot := own.Slot(r)
	if holder, _, known := own.NewestAt(slot, r); !known || holder != e.self {
		return false
	}
	mine, _ := own.Get(now, r)
	if origin == e.self || e.younger(&mine, stamp, age) {
		return true
	}
	clock := uint64(1)
	if ahead := e.clock.Ahead(); stamp.Clock > ahead {
		clock = stamp.Clock - ahead
	}
	own.PutAt(slot, now, r, origin, table.Stamp{Grant: reported, Clock: clock}, age)
	return false
}

// younger reports whether what this director's kernel has, an entry of joining.own, is later than an update of another, refreshed age
// seconds ago. Of what was only in its list, a copy of another's connection is not; a connection that it made itself is, by its age.
func (e *Engine) younger(mine *table.Entry, stamp table.Stamp, age uint32) bool {
	if mine.Stamp.Grant == reported {
		return mine.Stamp.Clock+e.clock.Ahead() > stamp.Clock
	}
	if now := e.wall(e.now) + e.clock.Ahead(); now > stamp.Clock {
		age = max(age, uint32(min((now-stamp.Clock)/1e6, 1<<31))) // an update of a kernel's list is stamped for its age
	}
	return mine.Record.Flags&ipvssync.FlagSync == 0 && mine.Age()+ageSlack < age
}

// FromKernel takes an entry that this director's kernel had before the daemon was started, refreshed age seconds ago.
func (e *Engine) FromKernel(now time.Time, r *ipvssync.Record, age uint32) {
	if e.join.state == Learning && e.Mirrored(r) {
		r.Normalize()
		e.join.own.Put(now, r, e.self, table.Stamp{Grant: listed, Clock: e.wall(now) - uint64(age)*1e6}, age)
	}
}

// joinStep brings the join forward.
func (e *Engine) joinStep(now time.Time) {
	j := &e.join
	switch j.state {
	case Learning:
		if e.learned(now) {
			j.state, j.ended, j.since = Publishing, now, e.clock.Next(e.wall(now))
		}
	case Publishing:
		j.at = j.own.Walk(now, j.at, publishPerTick, func(en *table.Entry) bool {
			if en.Remaining > 0 && en.Origin == e.self {
				e.settle(now, en)
			}
			return true
		})
		if j.at.Done {
			j.own, j.state = nil, Settling
		}
	case Settling, Synced: // Injected goes on
	}
}

// settle publishes what this director's kernel had or reported while it joined, if it is newer than what the replica has. What others told
// later stands above it, and so does what the kernel has reported since. What this director told in an earlier life does not.
func (e *Engine) settle(now time.Time, mine *table.Entry) {
	cur, known := e.table.Get(now, &mine.Record)
	heard := mine.Stamp.Grant == reported
	switch {
	case !known && !heard:
		// Nobody is left who knows more. Others may have the same connection in their lists: the youngest counts.
		back := stampedBack(mine)
		e.publishAt(now, e.table.Slot(&mine.Record), remaining(mine), 0, back)
		return
	case !known:
	case cur.Origin != e.self:
		if !e.younger(mine, cur.Stamp, cur.Age()) {
			return
		}
	case cur.Stamp.Clock > e.join.since: // reported since
		return
	case !heard && cur.Record.Real == mine.Record.Real && cur.Record.State == mine.Record.State:
		return // as it was told
	}
	e.claim(now, remaining(mine))
}

// stampedBack returns how far back an entry of the kernel's list is stamped, in microseconds: about as far as it was refreshed. Ages are rounded, so a
// connection that this kernel has made is stamped no earlier than it was refreshed: what this director told of it in its former life, and another one may still
// know, is earlier than that. A copy of another's connection is stamped no later, and so not above what that one has told since. In between there are few steps,
// each half as long again as the one before, so that many records share a message.
func stampedBack(mine *table.Entry) uint64 {
	age, below, step := mine.Age(), uint32(0), uint32(1)
	made := mine.Record.Flags&ipvssync.FlagSync == 0
	if made {
		age -= min(age, ageSlack)
	} else {
		age += ageSlack
	}
	for step < age {
		below = step
		step += max(1, step/2)
	}
	if made && step != age {
		step = below
	}
	return uint64(step) * 1e6
}

// remaining returns the record of an entry with what remains of its timeout.
func remaining(en *table.Entry) *ipvssync.Record {
	en.Record.Timeout = uint32(en.Remaining / time.Second)
	return &en.Record
}

// learned reports whether nobody can teach this director any more, and logs why.
func (e *Engine) learned(now time.Time) bool {
	j := &e.join
	if e.pulls.running != nil {
		return false
	}
	peers, complete, open := 0, 0, 0
	for p := range e.peers.Peers {
		if p.Lost {
			continue
		}
		peers++
		if p.Synced {
			complete++
		}
		if j.asked[p.ID] != p.Incarnation {
			open++
		}
	}
	since := max(now.Sub(j.began)-JoinTime, 0)
	switch {
	case j.complete():
		e.cfg.Log.Info("joined", "teacher", j.teacher, "entries", j.entries, "took", now.Sub(e.started).Round(time.Millisecond))
	case peers == 0 && now.Sub(j.began) > quietTime && now.Sub(j.stranger) > quietTime:
		e.cfg.Log.Info("joined: no peer answered", "connections", j.own.Len())
	case peers > 0 && complete == 0 && open == 0 && now.Sub(j.knocking) > admitTime && now.Sub(j.admitted) > admitTime:
		e.cfg.Log.Info("joined: no peer is complete, and all have told what they know", "peers", peers, "entries", e.table.Len())
		j.partial = true
	case complete > 0 && now.Before(j.busy):
		return false
	case since > 0 && now.Sub(j.progress) > JoinTime && now.Sub(j.admitted) > JoinTime:
		e.cfg.Log.Warn("joined without a teacher: none could be reached in time; what they had told before is missing until the audit finds it",
			"peers", peers, "complete", complete, "attempts", j.attempts)
		j.partial = true
		e.wantAll()
	default:
		return false
	}
	return true
}

// complete reports whether a teacher that was complete itself has sent everything.
func (j *joining) complete() bool { return j.total == allTaught }

// allTaught is the total of a join that has ended well.
const allTaught = ^uint64(0)

// teacher returns the peer to learn from: one that is complete if there is any, else one that has not been asked.
func (e *Engine) teacher(now time.Time) *peer.Peer {
	j := &e.join
	if now.Sub(j.admitted) < admitTime {
		return nil
	}
	var best *peer.Peer
	seen, anyComplete := 0, false
	for p := range e.peers.Peers {
		if p.Lost {
			continue
		}
		anyComplete = anyComplete || p.Synced
		if !p.Teaches.IsValid() || now.Sub(e.partner(p.ID).pulled) < retryTime || !p.Synced && j.asked[p.ID] == p.Incarnation {
			continue
		}
		switch {
		case best == nil, p.Synced && !best.Synced:
			best, seen = p, 1
		case p.Synced == best.Synced:
			if seen++; e.rand.IntN(seen) == 0 { // each of the equals with the same chance
				best = p
			}
		}
	}
	if best != nil && !best.Synced && anyComplete && (now.Sub(j.began) < JoinTime || now.Before(j.busy)) {
		return nil // who is complete will be asked again
	}
	return best
}
