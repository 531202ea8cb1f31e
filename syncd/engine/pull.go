package engine

import (
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/syncd/table"
)

// Purpose is what a pull is for.
type Purpose uint8

// Purposes.
const (
	PullJoin  Purpose = iota // all of the teacher's table
	PullAudit                // the buckets that differ
)

// Pull is a session with a peer that the daemon is to hold: connect to Addr, give what comes to Learned, and end with PullEnded.
type Pull struct {
	Teacher
	Purpose Purpose

	givenUp  uint64 // datagrams of the peer that this pull makes up for
	began    time.Time
	repaired uint64 // entries that it has brought that were newer than the replica
}

// Teacher is a peer that can be pulled from.
type Teacher struct {
	ID          peer.ID
	Incarnation peer.Incarnation
	Name        string
	Addr        netip.AddrPort
	Link        string // the interface by which it was heard last
}

func (e *Engine) teacherOf(p *peer.Peer) Teacher {
	t := Teacher{ID: p.ID, Incarnation: p.Incarnation, Name: p.Name, Addr: p.Teaches, Link: e.cfg.Links[0]}
	var latest time.Time
	for i := range p.Links {
		if heard := p.Links[i].LastHeard; heard.After(latest) {
			t.Link, latest = e.cfg.Links[i], heard
		}
	}
	return t
}

// Teachers returns the live peers, those that do not teach without an address.
func (e *Engine) Teachers() []Teacher {
	var all []Teacher
	for p := range e.peers.Peers {
		if !p.Lost {
			all = append(all, e.teacherOf(p))
		}
	}
	return all
}

// PullResult is how a pull ended.
type PullResult struct {
	Complete  bool   // the teacher said that it was complete itself
	Busy      bool   // it has as many sessions as it can have
	Entries   uint64 // that came
	Differing int    // buckets that differed
}

// cutAge is how old a change must be for digests to look at it, in microseconds: until then it may be on its way.
const cutAge = 2_000_000

// pulls is the account of the sessions.
type pulls struct {
	running *Pull
	next    time.Time // when the next audit is due
	latest  Audit
}

// Audit is what the latest comparison with a peer found.
type Audit struct {
	At        time.Time // zero: there was none
	Peer      string
	Differing int    // buckets
	Repaired  uint64 // entries that were missing here or older
	Total     uint64 // entries that audits have brought since the start
	Count     uint64 // audits since then
}

// NextPull returns the session to hold now, if any. There is never more than one; call PullEnded when it has ended.
func (e *Engine) NextPull(now time.Time) (Pull, bool) {
	e.now = now
	if e.pulls.running != nil {
		return Pull{}, false
	}
	var p *peer.Peer
	purpose := PullAudit
	switch e.join.state {
	case Learning:
		if p, purpose = e.teacher(now), PullJoin; p != nil {
			e.join.attempts++
			e.join.teacher, e.join.entries, e.join.total = p.Name, 0, uint64(p.Entries)
		}
	case Synced:
		p = e.auditee(now)
	case Publishing, Settling:
	}
	if p == nil {
		return Pull{}, false
	}
	e.pulls.running = &Pull{
		Teacher: e.teacherOf(p), Purpose: purpose,
		givenUp: p.GivenUp(), began: now,
	}
	e.partner(p.ID).pulled = now
	return *e.pulls.running, true
}

// Pulled takes entries that the session has brought that NextPull returned.
func (e *Engine) Pulled(now time.Time, entries []table.Entry, names map[peer.ID]string) {
	changed := e.Learned(now, entries, names)
	pull := e.pulls.running
	if pull == nil {
		return
	}
	if pull.repaired += changed; pull.Purpose == PullJoin {
		e.join.progress = now
		e.join.entries += uint64(len(entries))
	}
}

// Learned takes entries of a peer's replica, with the names of their origins, and returns how many were newer than this one's.
func (e *Engine) Learned(now time.Time, entries []table.Entry, names map[peer.ID]string) (changed uint64) {
	e.now = now
	ahead := 0
	for i := range entries {
		if i == ahead {
			for more := true; more && ahead < len(entries); ahead++ {
				more = e.table.Expect(&entries[ahead].Record)
			}
			e.table.Fetch()
		}
		en := &entries[i]
		if _, known := e.names[en.Origin]; !known && names[en.Origin] != "" {
			e.call(en.Origin, names[en.Origin])
		}
		e.counters[LearnedRecords]++
		e.follow(now, en.Stamp.Clock, en.Origin, "")
		if e.remote(now, &en.Record, en.Origin, en.Stamp, en.Age()) {
			changed++
		}
	}
	e.counters[LearnedChanged] += changed
	return changed
}

// PullEnded says how the session ended that NextPull returned.
func (e *Engine) PullEnded(now time.Time, res PullResult, err error) {
	e.now = now
	pull := e.pulls.running
	e.pulls.running = nil
	if pull == nil {
		return
	}
	if p := e.peers.Get(pull.ID); p != nil && p.Incarnation == pull.Incarnation {
		e.pulledFrom(p, pull, res, err)
	}
	if pull.Purpose == PullJoin {
		e.joinEnded(pull, res, err)
		return
	}
	if err != nil {
		return
	}
	e.pulls.latest = Audit{
		At: now, Peer: pull.Name, Differing: res.Differing, Repaired: pull.repaired, Total: e.pulls.latest.Total + pull.repaired,
		Count: e.pulls.latest.Count + 1,
	}
	if pull.repaired > 0 {
		e.cfg.Log.Info("audit has found entries that were missing here", "peer", pull.Name, "buckets", res.Differing, "entries", pull.repaired)
	}
}

func (e *Engine) joinEnded(pull *Pull, res PullResult, err error) {
	j := &e.join
	switch {
	case res.Busy:
		if j.busy.IsZero() {
			j.busy = e.now.Add(busyTime)
			e.cfg.Log.Info("teacher is busy with others", "peer", pull.Name)
		}
	case err != nil:
		e.cfg.Log.Warn("teacher failed, another will be asked", "peer", pull.Name, "address", pull.Addr, "entries", res.Entries, "error", err)
	case res.Complete:
		j.total = allTaught
	default:
		e.cfg.Log.Info("teacher is not complete itself", "peer", pull.Name, "entries", res.Entries)
		j.asked[pull.ID] = pull.Incarnation
	}
}

// Cut returns the time up to which digests look at changes, on the clock of the stamps.
func (e *Engine) Cut(now time.Time) uint64 { return e.clock.Next(e.wall(now)) - cutAge }

// Digest returns the digest of a bucket of the replica; see table.Table.Digest.
func (e *Engine) Digest(bucket uint16, cut uint64) (sum uint64, count uint32) {
	return e.table.Digest(bucket, cut)
}

// DigestStep is a step of the digest of a bucket with many entries; see table.Table.DigestStep.
func (e *Engine) DigestStep(c table.Cursor, limit int, bucket uint16, cut uint64) (sum uint64, count uint32, next table.Cursor) {
	return e.table.DigestStep(c, limit, bucket, cut)
}

// BucketLen is how many entries a bucket has.
func (e *Engine) BucketLen(bucket uint16) int { return e.table.BucketLen(bucket) }

// Bucket calls fn for each entry of a bucket.
func (e *Engine) Bucket(now time.Time, bucket uint16, fn func(en *table.Entry) bool) {
	e.table.Bucket(now, bucket, fn)
}

// OriginName returns the name of an entry's origin.
func (e *Engine) OriginName(id peer.ID) string { return e.origin(id) }
