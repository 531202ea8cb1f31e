package core

import (
	"fmt"
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// view is what an admitted peer said last.
type view struct {
	who    member
	peer   *peer.Peer
	beat   coord.Heartbeat // its newest one, without echoes
	at     time.Time       // when that came
	before time.Time       // when the one before it came
	line   coord.Line      // of the table that it spoke of then
	since  time.Time       // when the first one came
	// Of its newest echo of this director: the number, and the tables that the peer had then.
	echo            uint64
	echoAt          time.Time
	echoedFresh     time.Time // send time of the own heartbeat echoed
	counts, pending coord.Ref
	pendingBallot   coord.Ballot
	supports        bool
	supported       uint64          // newest number that supports the lease under counts and pending
	deadHere        map[member]bool // whom it counts dead under its table that counts
}

// stranger is what was last heard of a member without proof that it is no replay: its number must rise.
type stranger struct {
	seq uint64
	at  time.Time
}

// Hear takes in an authenticated message that came by a link.
func (c *Core) Hear(now time.Time, link int, m coord.Message) peer.Verdict {
	c.advance(now)
	var v peer.Verdict
	switch m := m.(type) {
	case *coord.Heartbeat:
		v = c.hearBeat(link, m)
	case *coord.Prepare:
		if v = c.control(link, &m.Header); v == peer.Accept {
			c.hearPrepare(m)
		}
	case *coord.Accept:
		if v = c.control(link, &m.Header); v == peer.Accept {
			c.hearAccept(m)
		}
	case *coord.Part:
		if v = c.control(link, &m.Header); v == peer.Accept {
			c.hearPart(m)
		}
	case *coord.Fetch:
		if v = c.control(link, &m.Header); v == peer.Accept {
			c.hearFetch(m)
		}
	case *coord.Command:
		if v = c.control(link, &m.Header); v == peer.Accept {
			c.hearCommand(m)
		}
	}
	if v == peer.Accept {
		c.step()
	}
	return v
}

func (c *Core) control(link int, h *coord.Header) peer.Verdict {
	_, v := c.peers.Control(c.now, peer.ID(h.Sender), peer.Incarnation(h.Incarnation), h.Sequence, link)
	return v
}

func (c *Core) hearBeat(link int, h *coord.Heartbeat) peer.Verdict {
	var own coord.Echo
	for i := range h.Echoes {
		if e := &h.Echoes[i]; e.Node == c.self.node && e.Incarnation == c.self.incarnation {
			own = *e
		}
	}
	p, verdict, what := c.peers.Heartbeat(c.now, peer.Heartbeat{
		Node: peer.ID(h.Sender), Incarnation: peer.Incarnation(h.Incarnation), Name: h.Name, Control: h.Sequence,
		Uptime: time.Duration(h.UptimeMS) * time.Millisecond, Synced: h.State&coord.StateSynced != 0, Link: link, Paged: h.Paged,
		Echo: peer.Echo{Node: peer.ID(own.Node), Incarnation: peer.Incarnation(own.Incarnation), Control: own.Sequence,
			Age: time.Duration(own.AgeMS) * time.Millisecond, Counts: own.Counts},
	})
	if what == peer.Namesake {
		up, other := c.now.Sub(c.started), time.Duration(h.UptimeMS)*time.Millisecond
		if c.failure == nil && (up < other || up == other && c.self.incarnation < h.Incarnation) {
			c.failure = fmt.Errorf("another director is named %q and runs longer than this one: give each its own --node", c.cfg.Node)
		}
		c.PassingAlarm("namesake", fmt.Sprintf("another live director uses the name %s", c.cfg.Node))
	}
	if verdict == peer.WrongIncarnation {
		c.hearLost(h)
		c.hearStranger(h)
		if h.Sender != c.self.node && h.Counts != (coord.Ref{}) {
			c.rumour = c.now
			if seq, ok := c.known[member{h.Sender, h.Incarnation}]; ok && h.Sequence > seq {
				c.known[member{h.Sender, h.Incarnation}], c.word, c.wordLine = h.Sequence, c.now, h.Counts.Line
			}
			c.hush()
		}
	}
	if verdict != peer.Accept {
		return verdict
	}
	who := member{h.Sender, h.Incarnation}
	v := c.views[h.Sender]
	if v == nil || v.who != who {
		v = &view{who: who, peer: p, since: c.now, deadHere: map[member]bool{}}
		c.forget(h.Sender)
		c.views[h.Sender], c.all = v, append(c.all, v)
		c.review = true
		c.event("heard", fmt.Sprintf("%s is heard, incarnation %016x", p.Name, h.Incarnation))
	} else if what == peer.Returned {
		c.event("heard", fmt.Sprintf("%s is heard again", p.Name))
		c.review = true
	}
	c.heard[who] = c.now
	c.heardAgain(h.Sender)
	c.maxTerm = max(c.maxTerm, h.Term, h.Counts.Line.Term, h.Pending.Line.Term)
	newest := h.Sequence > v.beat.Sequence
	if newest {
		if v.beat.Counts != h.Counts {
			clear(v.deadHere)
		}
		c.review = c.review || v.beat.Counts != h.Counts || v.beat.State != h.State || v.beat.Weight != h.Weight || v.beat.Pings != h.Pings || v.beat.Function != h.Function
		echoes := h.Echoes
		v.before, v.line = v.at, v.beat.Counts.Line
		v.beat, v.at = *h, c.now
		v.beat.Echoes = nil
		h.Echoes = echoes
		c.noteTimers(v)
		c.noteOvertaken(h.Counts)
	}
	for i := range h.Echoes {
		e := &h.Echoes[i]
		who := member{e.Node, e.Incarnation}
		if who == c.self || c.counts == nil || c.counts.index(who) < 0 {
			continue // of no interest, and there may be any number of them
		}
		// The age is that of the sending: by the time of receipt it is older, and to take it for younger only delays.
		if at := c.now.Add(-time.Duration(e.AgeMS) * time.Millisecond); at.After(c.heard[who]) && e.Counts {
			c.heard[who] = at
		}
		if newest {
			switch {
			case e.Dead && !v.deadHere[who]:
				v.deadHere[who], c.review = true, true
			case !e.Dead && len(v.deadHere) > 0 && v.deadHere[who]:
				delete(v.deadHere, who)
				c.review = true
			}
		}
	}
	if newest && h.State&coord.StateAsks != 0 && c.now.Sub(c.beaten) >= c.cfg.Keepalive/8 { // all may ask at once
		c.dirty = true
	}
	if own.Sequence > v.echo {
		v.echo, v.echoAt = own.Sequence, c.now
		v.counts, v.pending, v.pendingBallot, v.supports = h.Counts, h.Pending, h.PendingBallot, own.Supports
		if t, ok := c.sent.at(own.Sequence); ok {
			v.echoedFresh = t
		}
		c.judge(v)
	}
	return verdict
}

// judge lets the newest echo of a peer support the lease, if the peer's tables are not newer than those here (docs/SAFETY.md, section 3).
func (c *Core) judge(v *view) {
	if v.supports && c.notNewer(v.counts, v.pending, v.pendingBallot) {
		v.supported, c.resupply = max(v.supported, v.echo), true
	}
}

// notNewer reports whether a member that stated these tables has accepted none that is newer than those here.
func (c *Core) notNewer(counts, pending coord.Ref, ballot coord.Ballot) bool {
	if c.counts == nil {
		return false
	}
	mine := c.counts.ref
	var p coord.Ref
	if c.pending != nil {
		p = c.pending.ref
	}
	switch {
	case counts == mine:
		// Another one that it accepted under a ballot below that of the one pending here is not chosen under that ballot, and as soon as it is chosen under a
		// higher one a majority says so.
		return pending == (coord.Ref{}) || pending == p || p != (coord.Ref{}) && ballotBefore(ballot, c.pendingBallot)
	case counts == p && p != (coord.Ref{}):
		return pending == (coord.Ref{})
	case counts.Digest == c.counts.Parent:
		return pending == (coord.Ref{}) || pending == mine
	case counts.Line == mine.Line && counts.Version < mine.Version:
		return true // what it has accepted is at most a sibling of an ancestor: chosen is what leads here
	case counts == (coord.Ref{}):
		return pending == (coord.Ref{}) || pending == mine // it has just joined: it knows no table yet, or founds this one
	}
	return false
}

// hearLost notices a director that was lost, speaks again and does not hear this one: it cannot prove that it lives, and may own what is held
// here. Its numbers must go on behind those that are known, several times, so that no replay does it.
func (c *Core) hearLost(h *coord.Heartbeat) {
	p := c.peers.Get(peer.ID(h.Sender))
	if p == nil || !p.Lost || uint64(p.Incarnation) != h.Incarnation || h.Sequence <= p.Control.Newest() {
		return
	}
	v := c.views[h.Sender]
	if v == nil || v.who.incarnation != h.Incarnation || h.Sequence <= v.beat.Sequence {
		return
	}
	// The statement is taken over, so that it can be told for foreign; echoes and proofs are not.
	v.beat, v.at = *h, c.now
	v.beat.Echoes = nil
}

// hearStranger notices a member that does not hear this one, and has not since it became one. It will count this director dead as soon as nobody reports it
// any more.
func (c *Core) hearStranger(h *coord.Heartbeat) {
	m := member{h.Sender, h.Incarnation}
	member := c.counts != nil && c.counts.index(m) >= 0 || c.pending != nil && c.pending.index(m) >= 0
	if member && h.Sequence > c.strangers[m].seq {
		c.strangers[m] = stranger{h.Sequence, c.now}
	}
}

// expire forgets who is not heard any more.
func (c *Core) expire() {
	c.peers.Expire(c.now, c.cfg.Deadtime, func(p *peer.Peer) {
		c.event("lost", fmt.Sprintf("%s is not heard any more, for %v now", p.Name, c.now.Sub(p.LastHeard).Round(time.Millisecond)))
		c.dirty, c.review = true, true
	})
	for _, v := range slices.Clone(c.all) {
		if c.peers.Get(v.peer.ID) == nil {
			c.forget(v.who.node)
		}
	}
	c.compareTimers()
	c.endAlarms()
	for m := range c.heard {
		if c.views[m.node] == nil && (c.counts == nil || c.counts.index(m) < 0) {
			delete(c.heard, m)
		}
	}
}

// forget drops what is known of a director.
func (c *Core) forget(node uint64) {
	delete(c.views, node)
	c.all = slices.DeleteFunc(c.all, func(v *view) bool { return v.who.node == node })
	c.resupply, c.review = true, true
}

// alive returns the view of an admitted peer that is heard now, or nil.
func (c *Core) alive(m member) *view {
	if v := c.views[m.node]; v != nil && v.who == m && v.lives() {
		return v
	}
	return nil
}

func (v *view) lives() bool { return !v.peer.Lost && uint64(v.peer.Incarnation) == v.who.incarnation }

// live yields the views of the peers that are heard now.
func (c *Core) live(yield func(*view) bool) {
	for _, v := range c.all {
		if v.lives() && !yield(v) {
			return
		}
	}
}

// deaf reports whether a peer's newest echo of this director was old when it was made.
func (c *Core) deaf(v *view) bool {
	return v.echo == 0 || v.at.Sub(v.echoedFresh) > 2*c.cfg.Keepalive+c.cfg.Keepalive/2
}

// name returns what a director is called.
func (c *Core) name(m member) string {
	if m == c.self {
		return c.cfg.Node
	}
	if v := c.views[m.node]; v != nil && v.beat.Name != "" {
		return v.beat.Name
	}
	if c.counts != nil {
		if i := c.counts.index(m); i >= 0 {
			return c.counts.Members[i].Name
		}
	}
	return fmt.Sprintf("%016x", m.node)
}
