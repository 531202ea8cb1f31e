package engine

import (
	"time"

	"saru/lib/peer"
)

// confirmTime is how long heartbeats ask for confirmation at most.
const confirmTime = 5 * time.Second

// confirming is what peers are asked to confirm.
type confirming struct {
	until time.Time // heartbeats ask until then
}

// Mark is how far this director had come with the streams of its peers at some moment.
type Mark struct {
	streams []markOf
	settles bool // the join was over but for the kernel
	share   uint64
}

type markOf struct {
	id          peer.ID
	incarnation peer.Incarnation
	sound       uint64
}

// sure reports whether this director can know what its kernel has: it has joined, and is not injecting everything again.
func (e *Engine) sure() bool { return e.join.state >= Settling && !e.rebind.all }

// sound returns up to which number everything that a peer has published is here: nothing while its replica may have what this one lacks, as
// when both ran apart and have just met.
func (e *Engine) sound(p *peer.Peer) uint64 {
	if e.partner(p.ID).compare {
		return 0
	}
	return p.Sound()
}

// Unconfirmed reports whether a Mark would tell anything new.
func (e *Engine) Unconfirmed() bool {
	if !e.sure() {
		return false
	}
	for p := range e.peers.Peers {
		if e.sound(p) > p.Confirmed {
			return true
		}
	}
	return e.join.state == Settling || e.share.ready < e.share.handed
}

// Mark returns how far the streams have come. Take it when everything that was given to Output.Inject has been handed to the kernel;
// when the kernel has entered it, call Injected. What was given up and not made good is in no kernel: nothing above it is confirmed.
func (e *Engine) Mark() Mark {
	if !e.sure() {
		return Mark{}
	}
	m := Mark{settles: e.join.state == Settling, share: e.share.handed}
	for p := range e.peers.Peers {
		m.streams = append(m.streams, markOf{p.ID, p.Incarnation, e.sound(p)})
	}
	return m
}

// Injected says that the kernel has entered everything up to a mark. Whoever waits for it is told at once.
func (e *Engine) Injected(now time.Time, m Mark) {
	e.now = now
	answer := false
	for _, s := range m.streams {
		p := e.peers.Get(s.id)
		if p == nil || p.Incarnation != s.incarnation {
			continue
		}
		p.Confirmed = max(p.Confirmed, s.sound)
		answer = e.answerable(p) || answer
	}
	e.share.ready = max(e.share.ready, m.share)
	if m.settles && e.join.state == Settling {
		e.join.state = Synced
		e.cfg.Log.Info("synced", "connections", e.table.Len(), "after", now.Sub(e.started).Round(time.Millisecond))
		answer = true
	}
	if answer {
		e.beat(0)
	}
}

// waits handles a heartbeat of a peer that waits for the confirmation of its stream. The answer does not ask itself, though this director
// may wait as well: two that do would answer each other without end.
func (e *Engine) waits(p *peer.Peer) {
	pa := e.partner(p.ID)
	if pa.awaited <= pa.told { // else it is answered when what it asked for first is confirmed
		pa.awaited = p.Announced
	}
	if e.answerable(p) {
		e.beat(0)
	}
}

// answerable reports whether a peer waits for a confirmation that can be given, and has not been, in a heartbeat.
func (e *Engine) answerable(p *peer.Peer) bool {
	pa := e.partner(p.ID)
	return pa.awaited > pa.told && p.Confirmed >= pa.awaited
}

// Published reports whether everything that this director's kernel had or has reported is in its stream: it is not while it joins.
func (e *Engine) Published() bool { return e.join.state >= Settling }

// AskConfirmation sends what was gathered and asks the peers to confirm it. It returns the number to give to Confirmation.
func (e *Engine) AskConfirmation(now time.Time) uint64 {
	e.now = now
	e.builders.flush()
	e.confirm.until = now.Add(confirmTime)
	e.heartbeat()
	return e.stream
}

// awaits reports whether this director waits for confirmations.
func (e *Engine) awaits() bool { return e.now.Before(e.confirm.until) }

// Confirmation returns who has this director's stream up to a number in its kernel, and which live peers have not: also those that have
// not joined yet, and those that do not hear this director.
func (e *Engine) Confirmation(number uint64) (have, lack []string) {
	for p := range e.peers.Peers {
		switch {
		case p.Lost:
		case p.Synced && p.Echoed.Counts && p.Echoed.Confirmed >= number:
			have = append(have, p.Name)
		default:
			lack = append(lack, p.Name)
		}
	}
	return have, lack
}

// EndConfirmation stops asking.
func (e *Engine) EndConfirmation() { e.confirm.until = time.Time{} }
