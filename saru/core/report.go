package core

import (
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// Report is what this director knows, for operators.
type Report struct {
	Node        string
	Incarnation uint64
	Started     time.Time
	// Table is the one that counts; nil: there is none. It is not to be changed.
	Table    *coord.Table
	Since    time.Time // when it came to count
	Pending  uint32    // version accepted as its successor; 0: none
	Member   bool
	Draining bool
	Leaving  bool
	Lapsed   bool
	Fits     bool
	// Majority: most of the table's members are heard. Alone: no other member is.
	Majority, Alone bool
	Gen             uint64 // of what the filter is to do
	Open            []uint64
	Lease           time.Time
	Function        coord.Digest // of this director's configuration
	Members         []MemberReport
	Alarms          map[string]string
}

// MemberReport is what is known about a director: a member, or one that is heard.
type MemberReport struct {
	Node        uint64
	Incarnation uint64
	Name        string
	Self        bool
	Index       int // in the table, or -1
	Dead        bool
	Heard       bool // now
	LastHeard   time.Time
	Links       []time.Time // when each link brought something last; zero: never
	Said        coord.Heartbeat
}

// Report returns what is known now.
func (c *Core) Report(now time.Time) Report {
	c.advance(now)
	r := Report{
		Node: c.cfg.Node, Incarnation: c.self.incarnation, Started: c.started, Since: c.countsAt, Member: c.votes(), Draining: c.draining, Leaving: c.leaving,
		Lapsed: c.lapsed, Fits: c.fits(), Gen: c.desired.Gen, Open: slices.Clone(c.desired.Open), Lease: c.desired.Lease, Function: c.fn, Alarms: map[string]string{}, Alone: true,
	}
	for name, text := range c.alarms {
		r.Alarms[name] = text
	}
	if c.pending != nil {
		r.Pending = c.pending.Version
	}
	r.Members = append(r.Members, MemberReport{Node: c.self.node, Incarnation: c.self.incarnation, Name: c.cfg.Node, Self: true, Index: -1, Heard: true, LastHeard: c.now})
	listed := map[member]bool{c.self: true}
	if c.counts != nil {
		r.Table, r.Members[0].Index, r.Majority = c.counts.Table, c.counts.index(c.self), c.hasMajority()
		for i, m := range c.counts.members {
			if m == c.self {
				continue
			}
			listed[m] = true
			e := c.reportOf(m)
			e.Index, e.Dead = i, c.dead[m]
			r.Alone = r.Alone && !e.Heard
			r.Members = append(r.Members, e)
		}
	}
	for v := range c.live {
		if !listed[v.who] {
			r.Members = append(r.Members, c.reportOf(v.who))
		}
	}
	return r
}

func (c *Core) reportOf(m member) MemberReport {
	e := MemberReport{Node: m.node, Incarnation: m.incarnation, Name: c.name(m), Index: -1, Heard: c.alive(m) != nil, Links: make([]time.Time, c.cfg.Links)}
	if v := c.views[m.node]; v != nil && v.who == m {
		e.Said, e.LastHeard = v.beat, v.at
	}
	if p := c.peers.Get(peer.ID(m.node)); p != nil && uint64(p.Incarnation) == m.incarnation {
		for i := range p.Links {
			e.Links[i] = p.Links[i].LastHeard
		}
	}
	return e
}

// Names returns the names of the table's members, by their index.
func Names(t *coord.Table) []string {
	out := make([]string, len(t.Members))
	for i, m := range t.Members {
		out[i] = m.Name
	}
	return out
}

// Alarm raises an alarm that the daemon has found out about, or, with an empty text, ends it.
func (c *Core) Alarm(name, text string) { c.alarm(name, text) }
