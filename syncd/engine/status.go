package engine

import (
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/syncd/table"
)

// Status is what an engine says of itself.
type Status struct {
	Synced  bool
	Total   int // entries
	Local   int // of them, those whose origin is this director
	Peers   []PeerStatus
	Counter Counters
	Join    JoinStatus
	Backlog BacklogStatus
	Audit   Audit
	Share   ShareStatus
	Auth    Auth
	Signer  uint8         // key id; 0: unsigned
	Lead    time.Duration // by which the clock of the stamps is ahead of this director's wall clock
}

// JoinStatus says how the join goes, or went.
type JoinStatus struct {
	State    JoinState
	Partial  bool // no teacher was complete
	Teacher  string
	Entries  uint64 // learned of the latest teacher
	Total    uint64 // that it said to have; 0: not known
	Attempts int
	Took     time.Duration // since the start
}

// BacklogStatus says what can be repeated.
type BacklogStatus struct {
	Bytes, Limit, Datagrams int
	Reach                   time.Duration // how long ago the oldest was sent
}

// PeerStatus is what it says of a peer.
type PeerStatus struct {
	Name        string
	Incarnation peer.Incarnation
	Sequence    uint64 // newest number of its stream that arrived
	Missing     uint64 // numbers that did not
	GivenUp     uint64 // of them, those that cannot be repeated any more
	Confirmed   uint64 // up to which number of this director's stream it has everything in its kernel
	Teaches     netip.AddrPort
	Entries     uint32 // of its table
	LastHeard   time.Time
	Synced      bool
	Lost        bool
	Links       []LinkStatus
}

// LinkStatus is when a link last brought something of a peer; the zero time is never.
type LinkStatus struct {
	Interface string
	LastHeard time.Time
}

// Status returns what the engine knows.
func (e *Engine) Status(now time.Time) Status {
	s := Status{
		Synced: e.Synced(), Total: e.table.Len(), Local: e.table.Origin(e.self), Counter: e.counters, Audit: e.pulls.latest,
		Auth: e.cfg.Auth, Join: e.joinStatus(now), Lead: e.lead(now), Share: e.shareStatus(),
		Backlog: BacklogStatus{Bytes: e.backlog.bytes, Limit: e.backlog.limit, Datagrams: e.backlog.count, Reach: e.backlog.reach(now)},
	}
	if e.signs() {
		s.Signer = e.cfg.Ring.Signer()
	}
	for p := range e.peers.Peers {
		ps := PeerStatus{
			Name: p.Name, Incarnation: p.Incarnation, Sequence: p.Stream.Newest(), Missing: p.Missing(), LastHeard: p.LastHeard,
			Synced: p.Synced, Lost: p.Lost, GivenUp: p.GivenUp(), Teaches: p.Teaches, Entries: p.Entries,
		}
		if p.Echoed.Incarnation == e.cfg.Incarnation {
			ps.Confirmed = p.Echoed.Confirmed
		}
		for i := range p.Links {
			ps.Links = append(ps.Links, LinkStatus{e.cfg.Links[i], p.Links[i].LastHeard})
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}

// Walk calls fn for a part of the entries, as table.Table.Walk does, with the name of each entry's origin.
func (e *Engine) Walk(now time.Time, c table.Cursor, limit int, fn func(en *table.Entry, origin string) bool) table.Cursor {
	return e.table.Walk(now, c, limit, func(en *table.Entry) bool { return fn(en, e.origin(en.Origin)) })
}

func (e *Engine) joinStatus(now time.Time) JoinStatus {
	j := &e.join
	s := JoinStatus{State: j.state, Partial: j.partial, Teacher: j.teacher, Entries: j.entries, Total: j.total, Attempts: j.attempts}
	if s.Took = j.ended.Sub(e.started); j.state == Learning {
		s.Took = now.Sub(e.started)
	}
	if j.complete() {
		s.Total = j.entries
	}
	return s
}
