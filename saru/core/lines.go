package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// wantsToJoin reports whether this director asks to become a member.
func (c *Core) wantsToJoin() bool {
	return !c.leaving && c.ready() && (c.counts == nil || c.counts.index(c.self) < 0)
}

// ready reports whether this director may take part: its table of connections is complete, or it has waited long enough for that.
func (c *Core) ready() bool {
	return c.local.Synced || c.now.Sub(c.started) >= c.cfg.StartDelay
}

// yieldToForeign closes this director when it meets a line of tables that goes before its own (docs/SAFETY.md, exception 1).
func (c *Core) yieldToForeign() {
	c.met = false
	if !c.votes() {
		c.alarm("split", "")
		return // who only looks on follows the latest line
	}
	met := ""
	for _, v := range c.all {
		if v.who.incarnation != uint64(v.peer.Incarnation) || !c.foreign(v) || !c.speaks(v) {
			continue
		}
		theirs := v.beat.Counts.Line
		deaf := v.peer.Lost || c.deaf(v)
		if lineBefore(c.counts.Line, theirs) || deaf && c.foreignFor(v) {
			if c.counts.index(v.who) >= 0 && !c.dead[v.who] && v.line == c.counts.Line && v.at.Sub(v.before) <= 2*c.cfg.Keepalive {
				c.standsStill() // that one was in this line a moment ago, as far as this director knows
			}
			c.yield(fmt.Sprintf("%s is in the line of term %d, this director in that of %d", c.name(v.who), theirs.Term, c.counts.Line.Term))
			return
		}
		met, c.met = c.name(v.who), true
	}
	if met != "" {
		c.alarm("split", met+" follows another line of tables, until it yields")
	} else {
		c.alarm("split", "")
	}
}

// foreign reports whether a peer follows a line of tables that does not come together with this one.
func (c *Core) foreign(v *view) bool {
	r := v.beat.Counts
	switch {
	case r == (coord.Ref{}) || r.Line == c.counts.ref.Line:
		return false
	case c.pending != nil && r.Line == c.pending.ref.Line:
		return false // it knows that the table pending here counts
	case v.beat.Pending == c.counts.ref || r.Digest == c.counts.Parent && c.counts.index(v.who) >= 0:
		return false // it is about to follow
	}
	return true
}

// foreignFor waits a little before a deaf peer is yielded to: who has just come back has not echoed anybody yet.
func (c *Core) foreignFor(v *view) bool {
	return c.now.Sub(c.peerSince(v)) > 3*c.cfg.Keepalive
}

func (c *Core) peerSince(v *view) time.Time {
	if v.lives() && v.peer.Silence.To.After(v.since) {
		return v.peer.Silence.To
	}
	return v.since
}

// yield closes everything and begins anew, under another incarnation. Nothing is said before the kernel has closed.
func (c *Core) yield(why string) {
	c.event("yield", "everything is closed, this director joins as new: "+why)
	c.maxTerm = max(c.maxTerm, c.counts.Line.Term, c.counts.Term)
	c.counts, c.pending, c.proposal, c.founding = nil, nil, nil, nil
	c.pendingBallot, c.promise = coord.Ballot{}, coord.Ballot{}
	c.release, c.held, c.lapsed, c.lease, c.handed = release{}, false, false, time.Time{}, false
	clear(c.dead)
	clear(c.awaiting)
	clear(c.given)
	c.alarm("lapsed", "")
	c.alarm("split", "")
	c.stale, c.listens = true, c.now
	c.rebuild()
	if c.applied < c.desired.Gen {
		c.muted = c.desired.Gen
	}
	// As after a restart: whoever counts on the former incarnation finds it silent.
	c.self.incarnation = uint64(c.cfg.Incarnations())
	c.peers = peer.NewSet(peer.ID(c.self.node), peer.Incarnation(c.self.incarnation), c.cfg.Links)
	c.sent = ring{}
	clear(c.known)
	clear(c.strangers)
	for _, v := range c.all {
		c.known[v.who] = v.beat.Sequence
	}
	clear(c.views)
	c.all = nil
	clear(c.heard)
	clear(c.ineligible)
	c.overtaken = 0
	clear(c.without)
	c.tellWithout()
	c.dirty = true
}

// rumours reports whether a farm is spoken of by somebody who does not hear this director. It may be a tape of yesterday's: after the start delay
// it does not keep a farm from being founded any more, unless it goes on from what was heard of the same incarnation before.
func (c *Core) rumours() bool {
	since := func(t time.Time) bool { return !t.IsZero() && c.now.Sub(t) < c.listen() }
	return since(c.word) || since(c.rumour) && c.now.Sub(c.listens) < c.cfg.StartDelay
}

func (c *Core) recent(t time.Time) bool {
	return !t.IsZero() && c.now.Sub(t) <= 2*c.cfg.Keepalive+c.cfg.Keepalive/2
}

// meets reports whether another line than this one is heard now, be it of somebody who was known before this director began anew and does not hear it.
// Nothing is opened meanwhile: one of the two is about to yield, or this director should.
func (c *Core) meets() bool { return c.met || c.recent(c.word) && c.wordLine != c.counts.ref.Line }

// hush takes the founding of a line back when a farm is spoken of before anything was opened.
func (c *Core) hush() {
	if c.counts != nil && c.counts.Parent == (coord.Digest{}) && c.counts.Master == c.self.node && len(c.counts.members) == 1 && count(c.desired.Open) == 0 && c.rumours() {
		listens := c.listens
		c.yield("there seems to be a farm")
		c.listens = listens // the start delay goes on
	}
}

// speaks reports whether something was heard of a director just now, whether it hears this one or not.
func (c *Core) speaks(v *view) bool { return c.now.Sub(v.at) <= 2*c.cfg.Keepalive+c.cfg.Keepalive/2 }

// listen is for how long a director that starts, or begins anew, looks for a farm before it founds one.
func (c *Core) listen() time.Duration { return 2*c.cfg.Deadtime + 2*c.cfg.Keepalive }

// observe drops a table of others that none of its members follows any more.
func (c *Core) observe() {
	if c.counts == nil || c.votes() || c.leaving || c.now.Sub(c.countsAt) < c.cfg.Deadtime {
		return
	}
	for v := range c.live {
		if r := v.beat.Counts; r.Line == c.counts.ref.Line && (r.Version > c.counts.Version || c.counts.index(v.who) >= 0) { // others were taken out, too
			return
		}
	}
	c.event("line", fmt.Sprintf("nobody follows the line of term %d any more", c.counts.Line.Term))
	c.counts, c.pending, c.handed = nil, nil, false
	c.listens, c.stale, c.dirty = c.now, true, true
}

// found begins a line of tables: at a cold start, or as a minority that may go on.
func (c *Core) found() {
	if c.counts != nil {
		c.survive()
		return
	}
	if c.muted != 0 || c.leaving || !c.ready() || c.now.Sub(c.listens) < c.listen() {
		return
	}
	if c.farmSpoken() {
		return // there is a farm: it is joined, as soon as it hears this director
	}
	if len(c.others) > 0 {
		c.alarm("alone", "no farm is founded beside that of directors with other timers: "+strings.Join(slices.Sorted(maps.Values(c.others)), ", "))
		return
	}
	waited := c.now.Sub(c.started) >= c.cfg.StartDelay
	starting, unready := 1, 0
	for v := range c.live {
		switch {
		case v.beat.State&coord.StateJoins != 0 && !c.deaf(v):
			if v.who.node < c.self.node && (c.cfg.Expect == 0 || c.alike(v)) {
				return // that one founds it, be it without this director
			}
			if c.alike(v) {
				starting++
			}
		default:
			unready++
		}
	}
	switch {
	case c.cfg.PingNodes > 0 && c.local.Pings == 0:
		c.alarm("alone", "no ping node answers: no farm is founded")
		return
	case c.cfg.Expect > 0 && starting < c.cfg.Expect && (!waited || starting <= c.cfg.Expect/2):
		if waited {
			c.alarm("alone", fmt.Sprintf("%d of %d expected directors hear each other and have the same timers: no farm is founded", starting, c.cfg.Expect))
		}
		return
	case unready > 0 && !waited && c.cfg.Expect == 0:
		return
	}
	c.alarm("alone", "")
	if c.cfg.Expect > 0 && c.policyFor(starting) == coord.Quorum {
		c.constitute()
		return
	}
	c.establish("founded")
}

// survive lets a minority go on where it may: it has ping nodes, reaches all, and has waited.
func (c *Core) survive() {
	if c.counts.Policy != coord.Quorum || c.counts.index(c.self) < 0 || !c.lapsed && c.held || c.hasMajority() || c.leaving {
		c.minoritySince = time.Time{}
		c.alarm("minority", "")
		return
	}
	if c.minoritySince.IsZero() {
		c.minoritySince = c.now
	}
	if c.now.Sub(c.minoritySince) < c.cfg.Deadtime {
		return
	}
	why := ""
	if c.restarted() {
		why = "all other members have started again since"
	} else if c.counts.founds() && c.cfg.Expect > 0 {
		why = "the farm that was founded has lost one whom it needs"
	}
	if why != "" {
		c.minoritySince = time.Time{}
		c.alarm("minority", "")
		c.yield(why)
		return
	}
	c.alarm("minority", "most of the members are not heard: this side is closed")
	if c.cfg.SurvivorDelay == Never || c.cfg.PingNodes == 0 || c.local.Pings < c.cfg.PingNodes || c.now.Sub(c.minoritySince) < c.cfg.SurvivorDelay {
		return
	}
	for v := range c.live {
		if c.counts.index(v.who) >= 0 && v.who.node < c.self.node && !c.deaf(v) {
			return // that one does it, and this director joins
		}
	}
	c.minoritySince = time.Time{}
	c.alarm("minority", "")
	c.event("survivor", "a minority that reaches all ping nodes goes on")
	var others []coord.Member
	for i, m := range c.counts.members {
		if v := c.views[m.node]; m != c.self && (v == nil || !v.lives()) {
			others = append(others, c.counts.Members[i])
		}
	}
	if c.establish("survived"); len(c.counts.members) == 1 {
		c.goesWithout(others)
	}
}

// restarted reports whether every other member is heard, and too few under the incarnation that is a member: power has failed. Nobody is left who
// could hold under this table, and there will never be a quorum of it.
func (c *Core) restarted() bool {
	for _, m := range c.counts.members {
		if m == c.self {
			continue
		}
		v := c.views[m.node]
		if v == nil || c.alive(v.who) == nil || v.who != m && v.beat.Counts != (coord.Ref{}) && v.beat.Counts.Line != c.counts.ref.Line {
			return false
		}
	}
	return true
}

// hasMajority reports whether most members are heard now.
func (c *Core) hasMajority() bool {
	n := 0
	for _, m := range c.counts.members {
		if m == c.self || c.alive(m) != nil {
			n++
		}
	}
	return n >= c.majority(c.counts)
}

// establish makes a table of a new line with this director alone, and lets it count. The others join.
func (c *Core) establish(how string) {
	// Of its founder the incarnation, not the name: after a restart it may not have heard of the line that it founded before.
	line := coord.Line{Term: c.maxTerm + 1, Node: c.self.incarnation}
	version := uint32(1)
	if c.counts != nil {
		version = c.counts.Version + 1
	}
	t := &coord.Table{
		Line: line, Version: version, Term: line.Term, Master: c.self.node, Policy: c.policyFor(1),
		Members:  []coord.Member{c.asMember()},
		Function: c.local.Function,
		Owner:    make([]uint8, c.local.Function.Buckets), Next: make([]uint8, c.local.Function.Buckets),
	}
	for b := range t.Next {
		t.Next[b] = coord.NoMember
	}
	if err := t.Check(); err != nil {
		c.alarm("internal", "the table to begin with: "+err.Error())
		return
	}
	c.event("line", fmt.Sprintf("%s a line of tables, term %d", how, line.Term))
	c.counts = nil // rule 3 for every bucket
	c.adopt(newTable(t))
}

func (c *Core) asMember() coord.Member {
	return coord.Member{Node: c.self.node, Incarnation: c.self.incarnation, Weight: c.cfg.Weight, Name: c.cfg.Node}
}

func (c *Core) policyFor(members int) coord.Policy {
	if c.cfg.Partition == WithQuorum || c.cfg.Partition == ByTableSize && members >= 3 {
		return coord.Quorum
	}
	return coord.Available
}
