package engine

import (
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// remote enters a record of another director, refreshed age seconds ago, and injects it if it is the newest that is known of its
// connection. It reports whether it was.
func (e *Engine) remote(now time.Time, r *ipvssync.Record, origin peer.ID, stamp table.Stamp, age uint32) bool {
	e.counters[RemoteRecords]++
	e.sawGrant(origin, stamp.Grant)
	r.Normalize()
	slot := e.table.Slot(r)
	if age >= r.Timeout && slot.Known() {
		age = r.Timeout - min(1, r.Timeout) // what it says is over, and so is what it is newer than
	}
	if e.obsolete(slot, r, origin, stamp) {
		cur, _ := e.table.Get(now, r)
		e.counters[Reclaimed]++
		if out := e.publish(now, slot, remaining(&cur), stamp.Grant+1); out == table.Stale || out == table.Refused {
			e.counters[TapDamaged]++
		}
		return false
	}
	out := e.table.PutAt(slot, now, r, origin, stamp, age)
	bucket, shared := e.share.now.Bucket(r)
	switch {
	case out == table.Stale || out == table.Refused:
		e.counters[RemoteStale]++
		return false
	case e.keeps(now, r, origin, stamp, age):
	case shared && e.share.leavesOut(bucket):
		e.counters[LeftOut]++
	case shared && e.late(bucket, stamp):
		e.enterLate(r, out, age)
	case out == table.Moved:
		e.move(now, r, age)
	default:
		e.enter(r, age)
	}
	return true
}

// obsolete reports whether a record must not stand above what this director's own kernel has reported, although its grant is later: it
// is earlier, and was told without knowledge of the report. So it is if it is this director's own, of an earlier life or connection; if its
// time was over when the report came; if its origin took over behind this director's back, while neither heard the other. Where saru says who
// holds what, the latter is for saru to judge: then it is obsolete if it was told before this director was given the bucket that it holds,
// whatever its grant.
func (e *Engine) obsolete(slot table.Slot, r *ipvssync.Record, origin peer.ID, stamp table.Stamp) bool {
	holder, newest, known := e.table.NewestAt(slot, r)
	if !known || holder != e.self || newest.Grant >= stamp.Grant || newest.Clock <= stamp.Clock {
		return false
	}
	if origin == e.self || newest.Clock-stamp.Clock > uint64(r.Timeout)*1e6 {
		return true
	}
	if bucket, shared := e.share.now.Bucket(r); shared {
		return e.share.now.Held[bucket] && stamp.Clock < e.share.since[bucket]
	}
	pa := e.partners[origin]
	return pa != nil && pa.from != 0 && pa.from <= newest.Clock && (pa.to == 0 || newest.Clock <= pa.to)
}

// local handles a record of this director's kernel: it has just forwarded a packet of the connection.
func (e *Engine) local(now time.Time, r *ipvssync.Record) {
	e.counters[TapRecords]++
	if !e.cfg.Filter.Match(r) {
		e.counters[TapFiltered]++
		return
	}
	if e.cfg.DropSequence {
		r.DropSeq()
	}
	r.Normalize()
	if e.join.state == Learning {
		slot, stamp := e.join.own.Slot(r), table.Stamp{Grant: reported, Clock: e.wall(now)}
		if _, newest, known := e.join.own.NewestAt(slot, r); known { // reported in the same moment
			stamp.Clock = max(stamp.Clock, newest.Clock+1)
		}
		e.join.own.PutAt(slot, now, r, e.self, stamp, 0)
		return
	}
	e.claim(now, r)
}

// claim publishes a connection that this director's kernel has above whatever others have told of it. It reports whether it did: what this
// director does not hold, or holds no longer, may be another's by a later grant.
func (e *Engine) claim(now time.Time, r *ipvssync.Record) bool {
	slot := e.table.Slot(r)
	origin, newest, known := e.table.NewestAt(slot, r)
	foreign := known && origin != e.self
	grant := newest.Grant
	bucket, shared := e.share.now.Bucket(r)
	switch {
	case shared:
		grant = e.share.grant(bucket, newest, known && !foreign)
	case foreign:
		grant++
	}
	if !known && grant == 0 && r.Flags&ipvssync.FlagSync != 0 {
		// Taken over from somebody whose record is not here (this daemon was restarted): above whatever a first owner has.
		grant = mirror.NewGrant(0, 1)
	}
	switch out := e.publish(now, slot, r, grant); {
	case out == table.Stale && foreign && grant < newest.Grant:
		e.counters[Overruled]++
		return false
	case out == table.Stale || out == table.Refused:
		e.counters[TapDamaged]++
	case foreign:
		e.counters[Takeovers]++
	}
	return true
}
