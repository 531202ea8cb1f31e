package engine

import (
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
}

// PeerStatus is what it says of a peer.
type PeerStatus struct {
	Name        string
	Incarnation peer.Incarnation
	Sequence    uint64 // newest number of its stream that arrived
	Missing     uint64 // numbers that did not
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
	s := Status{Synced: e.synced, Total: e.table.Len(), Local: e.table.Origin(e.self), Counter: e.counters}
	for p := range e.peers.Peers {
		ps := PeerStatus{
			Name: p.Name, Incarnation: p.Incarnation, Sequence: p.Stream.Newest(), Missing: p.Missing(), LastHeard: p.LastHeard,
			Synced: p.Synced, Lost: p.Lost,
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
	return e.table.Walk(now, c, limit, func(en *table.Entry) bool { return fn(en, e.name(en.Origin)) })
}
