package core

import (
	"fmt"
	"slices"
	"time"

	"saru/proto/coord"
)

// founding is an attempt to found a farm together (docs/SAFETY.md, section 2).
type founding struct {
	table *table
	since time.Time
	again time.Time
}

// majority is how many members of a table with the policy quorum decide. A farm that is founded of N that are expected has no table before it whose members
// could have decided: more than half of N must have, and hold it, so that there is no second one.
func (c *Core) majority(t *table) int {
	n := len(t.members)/2 + 1
	if t.founds() && t.Policy == coord.Quorum {
		n = max(n, c.cfg.Expect/2+1)
	}
	return n
}

// constitute founds a farm together with all that start and hear each other. They accept its table as they accept a successor, each one at a time.
func (c *Core) constitute() {
	f := c.founding
	if c.pending != nil && c.pending.Master != c.self.node && !c.mayAbandon() {
		return
	}
	if f == nil || c.now.Sub(f.since) > 2*patience*c.cfg.Keepalive {
		t, err := c.firstTable()
		if err != nil {
			c.alarm("internal", "the table to begin with: "+err.Error())
			return
		}
		f = &founding{table: newTable(t), since: c.now}
		c.founding = f
		c.acceptFounding(f.table, coord.Ballot{Round: 1, Node: c.self.node})
		c.store.put(f.table)
		c.event("propose", fmt.Sprintf("a farm of %d directors, term %d", len(t.Members), t.Term))
		c.sendParts(f.table)
	}
	votes := 1
	for v := range c.live {
		if f.table.index(v.who) >= 0 && v.beat.Pending == f.table.ref && v.beat.Counts == (coord.Ref{}) {
			votes++
		}
	}
	if votes >= c.majority(f.table) {
		c.event("line", fmt.Sprintf("founded a line of tables, term %d, with %d of %d directors", f.table.Term, votes, c.cfg.Expect))
		c.adopt(f.table)
		return
	}
	if !c.now.Before(f.again) {
		f.again = c.now.Add(c.cfg.Keepalive / 2)
		c.send(&coord.Accept{Header: c.header(), Parent: f.table.ref, Ballot: c.pendingBallot, Table: f.table.ref})
	}
}

// firstTable makes a table of all that start and hear each other.
func (c *Core) firstTable() (*coord.Table, error) {
	t := &coord.Table{
		Line: coord.Line{Term: c.maxTerm + 1, Node: c.self.incarnation}, Version: 1, Term: c.maxTerm + 1, Master: c.self.node,
		Members: []coord.Member{c.asMember()}, Function: c.local.Function,
	}
	for v := range c.live {
		if v.beat.State&coord.StateJoins != 0 && !c.deaf(v) && c.alike(v) && len(t.Members) < coord.MaxMembers {
			t.Members = append(t.Members, coord.Member{Node: v.who.node, Incarnation: v.who.incarnation, Weight: weightOf(v.beat), Name: v.beat.Name})
		}
	}
	slices.SortFunc(t.Members, byNode)
	t.Policy = c.policyFor(len(t.Members))
	weights := make([]uint32, len(t.Members))
	for i, m := range t.Members {
		weights[i] = uint32(m.Weight)
	}
	t.Owner, t.Next = allocateNew(int(t.Function.Buckets), weights)
	return t, t.Check()
}

// hearFounding accepts the table of a farm that is founded, if this director has no table and has accepted no other.
func (c *Core) hearFounding(a *coord.Accept) {
	if c.counts != nil || !c.wantsToJoin() || c.muted != 0 || c.farmSpoken() {
		return
	}
	t := c.lookup(a.Table.Digest)
	switch {
	case t == nil:
		c.fetch(a.Table.Digest, member{a.Sender, a.Incarnation})
	case !c.alike(c.views[a.Sender]) || !t.founds() || t.Version != 1 || t.Policy != coord.Quorum || t.Master != a.Sender || t.index(c.self) < 0:
		c.event("refused", fmt.Sprintf("a farm that %s founds", c.name(member{a.Sender, a.Incarnation})))
	case c.pending == nil || c.pending.ref == t.ref || c.pending.Master == t.Master || c.mayAbandon():
		c.acceptFounding(t, a.Ballot)
	}
}

func (c *Core) acceptFounding(t *table, b coord.Ballot) {
	if c.pending != nil && c.pending.ref == t.ref {
		return
	}
	if c.pending != nil && c.pending.Master != t.Master {
		// What was accepted before may count for its founder, who must have lost its lease before anything is opened by this one's.
		c.silent = c.now.Add(c.cfg.wait())
	}
	if t.Master != c.self.node {
		c.founding = nil
	}
	c.pending, c.pendingAt, c.pendingBallot, c.dirty = t, c.now, b, true
}

// mayAbandon reports whether the farm that this director has accepted has had time enough to be founded.
func (c *Core) mayAbandon() bool {
	return c.now.Sub(c.pendingAt) > 2*c.cfg.Deadtime || c.pending.Master != c.self.node && c.alive(c.pending.master()) == nil
}

// farmSpoken reports whether somebody speaks of a farm that there is, or did until a moment ago.
func (c *Core) farmSpoken() bool {
	if c.rumours() {
		return true
	}
	return slices.ContainsFunc(c.all, func(v *view) bool { return v.beat.Counts != (coord.Ref{}) && c.now.Sub(v.at) < c.listen() })
}
