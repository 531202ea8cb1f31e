package core

import (
	"fmt"
	"slices"
	"time"

	"saru/proto/coord"
)

// proposal is an attempt of this director to let a table succeed the one that counts: single-decree Paxos, docs/SAFETY.md, section 2.
type proposal struct {
	parent    *table
	ballot    coord.Ballot
	want      *table // what this director wants
	value     *table // what is proposed; nil: promises are being collected
	since     time.Time
	again     time.Time // when to repeat what was not answered
	sentParts bool
}

// patience is after how many keepalives a ballot that brings nothing is given up.
const patience = 4

// votes reports whether this director is an acceptor of the successor.
func (c *Core) votes() bool { return c.counts != nil && c.counts.index(c.self) >= 0 }

func (c *Core) hearPrepare(p *coord.Prepare) {
	if !c.votes() || p.Parent != c.counts.ref {
		return
	}
	if ballotBefore(c.promise, p.Ballot) {
		c.promise, c.dirty = p.Ballot, true
		c.standBack()
	}
}

// standBack leaves a proposer the time that it needs, which is four datagrams. Whoever waits then does so for a random time, so that one comes first: directors
// that all want the next table at once would otherwise outbid each other for ever.
func (c *Core) standBack() {
	c.quietUntil = later(c.quietUntil, c.now.Add(2*c.cfg.Keepalive+c.cfg.Jitter(2*c.cfg.Keepalive)))
}

func (c *Core) hearAccept(a *coord.Accept) {
	if a.Parent == a.Table {
		c.hearFounding(a)
		return
	}
	if !c.votes() || a.Parent != c.counts.ref || ballotBefore(a.Ballot, c.promise) {
		return
	}
	if c.pending != nil && c.pending.ref == a.Table && c.pendingBallot == a.Ballot {
		return
	}
	t := c.lookup(a.Table.Digest)
	if t == nil {
		if c.promise != a.Ballot {
			c.promise, c.dirty = a.Ballot, true
			c.standBack()
		}
		c.fetch(a.Table.Digest, member{a.Sender, a.Incarnation})
		return
	}
	if why := c.succeeds(t); why != "" {
		c.event("refused", fmt.Sprintf("a table that %s proposes: %s", c.name(member{a.Sender, a.Incarnation}), why))
		return
	}
	c.accept(t, a.Ballot)
}

// succeeds says why a table cannot be the successor of the one that counts.
func (c *Core) succeeds(t *table) string {
	switch {
	case t.Parent != c.counts.ref.Digest:
		return "it is not built upon the table that counts"
	case t.Version != c.counts.Version+1:
		return fmt.Sprintf("version %d follows %d", t.Version, c.counts.Version)
	case t.Term < c.counts.Term, t.Term == c.counts.Term && t.Master != c.counts.Master:
		return "its term does not rise"
	case t.Line != c.counts.Line && !lineBefore(c.counts.Line, t.Line):
		return "its line does not follow"
	case t.Line != c.counts.Line && c.counts.Policy == coord.Quorum:
		return "it leaves the line that a majority goes on with"
	case t.Function.Buckets != c.counts.Function.Buckets, t.Function.Seed != c.counts.Function.Seed:
		return "its buckets are others"
	}
	return ""
}

func ballotBefore(a, b coord.Ballot) bool {
	return a.Round < b.Round || a.Round == b.Round && a.Node < b.Node
}

// begin starts a proposal.
func (c *Core) begin(want *table) {
	round := c.promise.Round
	for v := range c.live {
		if v.beat.Counts == c.counts.ref {
			round = max(round, v.beat.Promise.Round)
		}
	}
	c.store.put(want)
	c.proposal = &proposal{parent: c.counts, ballot: coord.Ballot{Round: round + 1, Node: c.self.node}, want: want, since: c.now}
	c.promise, c.dirty = c.proposal.ballot, true
}

// pursue goes on with the proposal as far as what was heard allows.
func (c *Core) pursue() {
	p := c.proposal
	if p == nil {
		return
	}
	if p.parent != c.counts || c.promise != p.ballot {
		c.giveUp(false) // decided, or somebody else has a higher ballot
		return
	}
	if c.now.Sub(p.since) > patience*c.cfg.Keepalive {
		c.giveUp(true)
		return
	}
	if p.value == nil {
		if !c.collectPromises(p) {
			c.repeat(p)
			return
		}
		p.again = time.Time{}
		c.accept(p.value, p.ballot)
	}
	if c.enough(p.parent, p.value, func(v *view) bool {
		return v.beat.Counts == p.value.ref || v.beat.Counts == p.parent.ref && v.beat.Pending == p.value.ref && v.beat.PendingBallot == p.ballot
	}) {
		c.adopt(p.value)
		return
	}
	c.repeat(p)
}

// collectPromises sets the value once a quorum has promised: the one that may have been chosen, or else this director's own.
func (c *Core) collectPromises(p *proposal) bool {
	value, ballot := coord.Ref{}, coord.Ballot{}
	var of member
	if c.pending != nil {
		value, ballot, of = c.pending.ref, c.pendingBallot, c.self
	}
	promised := func(v *view) bool { return v.beat.Counts == p.parent.ref && v.beat.Promise == p.ballot }
	if !c.enough(p.parent, p.want, promised) {
		return false
	}
	for _, m := range p.parent.members {
		v := c.alive(m)
		if v != nil && promised(v) && v.beat.Pending != (coord.Ref{}) && ballotBefore(ballot, v.beat.PendingBallot) {
			value, ballot, of = v.beat.Pending, v.beat.PendingBallot, m
		}
	}
	if value == (coord.Ref{}) {
		p.value = p.want
		return true
	}
	if t := c.lookup(value.Digest); t != nil {
		p.value = t
		if p.parent.Policy == coord.Available && slices.ContainsFunc(p.want.Dead, func(m coord.Member) bool {
			return !t.gone(member{m.Node, m.Incarnation})
		}) {
			// It needs the consent of who is dead. If that had been given, it would count for somebody who lives, or for the dead alone, whose
			// leases are not supported any more.
			p.value = p.want
		}
		return true
	}
	c.fetch(value.Digest, of)
	return false
}

// enough reports whether a quorum of the parent's members satisfies a condition; this director does. Which quorum that is, the parent's policy says;
// with `available` the table names the dead, without whom it must be unanimous.
func (c *Core) enough(parent, t *table, ok func(*view) bool) bool {
	n := 0
	for _, m := range parent.members {
		if m == c.self {
			n++
			continue
		}
		if v := c.alive(m); v != nil && ok(v) {
			n++
		} else if parent.Policy == coord.Available && !t.gone(m) {
			return false
		}
	}
	return parent.Policy == coord.Available || n >= c.majority(parent)
}

// repeat asks again who has not answered.
func (c *Core) repeat(p *proposal) {
	if c.now.Before(p.again) {
		return
	}
	p.again = c.now.Add(c.cfg.Keepalive / 2)
	if p.value == nil {
		c.send(&coord.Prepare{Header: c.header(), Parent: p.parent.ref, Ballot: p.ballot})
		if !p.sentParts { // while the promises come in
			p.sentParts = true
			c.sendParts(p.want)
		}
		return
	}
	c.send(&coord.Accept{Header: c.header(), Parent: p.parent.ref, Ballot: p.ballot, Table: p.value.ref})
}

// giveUp ends the proposal; the next one waits for a random time, longer each time.
func (c *Core) giveUp(failed bool) {
	p := c.proposal
	if failed {
		c.event("proposal", fmt.Sprintf("no quorum for version %d within %v", p.want.Version, patience*c.cfg.Keepalive))
	}
	c.proposal = nil
	c.failed++
	if p.parent != c.counts {
		c.failed = 0
	}
	if c.failed > 0 {
		c.quietUntil = later(c.quietUntil, c.now.Add(c.cfg.Jitter(c.cfg.Keepalive*time.Duration(min(c.failed, 8)))))
	}
}
