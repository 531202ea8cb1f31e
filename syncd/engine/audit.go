package engine

import (
	"time"

	"saru/lib/peer"
)

const (
	// pullAgain is how long a peer that was pulled from is left alone. Each time in a row that it fails doubles that, up to 2^maxDoubled s.
	pullAgain  = time.Second
	maxDoubled = 5
	// lossAge is how old a loss must be for an audit to see all of it: digests leave out what is younger than cutAge, and clocks and
	// heartbeats are given a second.
	lossAge = cutAge*time.Microsecond + time.Second
)

// covers reports whether an audit of the peer has seen whatever was lost at a time.
func (pa *partner) covers(loss time.Time) bool { return pa.audited.Sub(loss) > lossAge }

// ripe reports whether to pull from a peer because of a loss: at once, and again when an audit sees all of it.
func (pa *partner) ripe(now, loss time.Time) bool {
	return !pa.covers(loss) && (pa.pulled.Before(loss) || now.Sub(loss) > lossAge)
}

// want says that a peer's replica may have what this one lacks, and was lost until some time.
func (pa *partner) want(until time.Time) {
	if pa.compare = true; pa.lossAt.Before(until) {
		pa.lossAt = until
	}
}

// wantOthers says that all replicas but this peer's own may have what was missing of it. It does not look into the set of peers, which may
// be about to change.
func (e *Engine) wantOthers(id peer.ID) {
	for other, pa := range e.partners {
		if other != id {
			pa.want(e.now)
		}
	}
}

// wantAll says that nobody has taught this director what the peers have.
func (e *Engine) wantAll() {
	for p := range e.peers.Peers {
		if p.Entries > 0 {
			e.partner(p.ID).want(e.now)
		}
	}
}

// returned acts on a peer that was lost and is heard again. What it has published meanwhile has numbers that are missing; what it has heard
// meanwhile, and this director has not, is seen by an audit that begins now, but for what is still on its way.
func (e *Engine) returned(now time.Time, p *peer.Peer) {
	pa := e.partner(p.ID)
	pa.to, pa.failures, pa.notBefore = e.clock.Next(e.wall(now)), 0, time.Time{}
	if p.Teaches.IsValid() {
		pa.want(now.Add(-lossAge - 1))
	}
	e.cfg.Log.Info("peer is heard again", "peer", p.Name, "missing", p.Missing())
}

// missingBefore returns how much is missing of the stream of a peer that the heartbeat is not of: it is of a later incarnation.
func (e *Engine) missingBefore(h *peer.Heartbeat) uint64 {
	if p := e.peers.Get(h.Node); p != nil && !p.Lost && p.Incarnation != h.Incarnation { // if it was lost, that has been looked for
		return p.Missing()
	}
	return 0
}

// admitted acts on an incarnation that counts from now on; before is how much was missing of an earlier one. What it published before this
// heartbeat never came here. It has published something if it says so; if it is synced, it may also have been taught what is not known here.
// A newcomer is taught all that afterwards, but for what those have whom it meets while it is taught.
func (e *Engine) admitted(now time.Time, p *peer.Peer, h *peer.Heartbeat, before uint64) {
	e.callPeer(p.ID, h.Name)
	pa := &partner{from: e.partner(p.ID).from, to: e.clock.Next(e.wall(now))}
	e.partners[p.ID] = pa
	e.forgetPartners()
	e.join.admitted = now
	e.cfg.Log.Info("peer admitted", "peer", h.Name, "incarnation", p.Incarnation, "synced", h.Synced)
	if before > 0 {
		e.wantOthers(p.ID)
	}
	if (e.join.state != Learning || e.pulls.running != nil) && h.Entries > 0 && (h.Synced || h.Stream > 0) {
		pa.want(now)
	}
}

// wanting reports whether something of a peer's replica may be missing here.
func (e *Engine) wanting(p *peer.Peer) bool { return e.partner(p.ID).compare || p.GivenUp() > 0 }

// auditee returns the peer whose replica is to be compared with this one now: when an audit is due any peer, else one that may have what is
// missing here. Of these it is the one that has been left alone the longest.
func (e *Engine) auditee(now time.Time) *peer.Peer {
	if e.cfg.AuditInterval > 0 && e.pulls.next.IsZero() {
		e.schedule(now)
	}
	due := e.cfg.AuditInterval > 0 && !now.Before(e.pulls.next)
	loss, lost := e.unreachable()
	var best *peer.Peer
	for p := range e.peers.Peers {
		pa := e.partner(p.ID)
		if p.Lost || !p.Teaches.IsValid() || now.Before(pa.notBefore) {
			continue
		}
		if due || e.wanting(p) && pa.ripe(now, pa.lossAt) || lost && pa.ripe(now, loss) {
			if best == nil || e.sooner(p, best) {
				best = p
			}
		}
	}
	if best != nil && due {
		e.schedule(now)
	}
	return best
}

// sooner reports whether p's turn is before q's. At first the turns go by IDs, from this director's own: not all begin with the same peer.
func (e *Engine) sooner(p, q *peer.Peer) bool {
	a, b := e.partner(p.ID).pulled, e.partner(q.ID).pulled
	return a.Before(b) || a.Equal(b) && p.ID-e.self < q.ID-e.self
}

// unreachable returns when something was last lost of peers that cannot be asked for it, as they do not teach or do not answer: all
// others are to be audited after that. When they have been, and the peer does not teach, nothing more can be done.
func (e *Engine) unreachable() (loss time.Time, lost bool) {
	for p := range e.peers.Peers {
		pa := e.partner(p.ID)
		if p.Lost || !e.wanting(p) || p.Teaches.IsValid() && pa.failures == 0 {
			continue
		}
		if !p.Teaches.IsValid() && e.covered(p) {
			if n := p.GivenUp(); n > 0 {
				e.cfg.Log.Warn("what a peer had sent was lost, and it does not teach: what no other peer had either is missing until it is refreshed",
					"peer", p.Name, "messages", n)
			}
			pa.compare = false
			p.Settle(p.GivenUp())
			continue
		}
		if lost = true; pa.lossAt.After(loss) {
			loss = pa.lossAt
		}
	}
	return loss, lost
}

// covered reports whether all others that teach have been audited after what was lost of a peer.
func (e *Engine) covered(of *peer.Peer) bool {
	others, loss := false, e.partner(of.ID).lossAt
	for p := range e.peers.Peers {
		if p == of || p.Lost || !p.Teaches.IsValid() {
			continue
		}
		if others = true; !e.partner(p.ID).covers(loss) {
			return false
		}
	}
	return others
}

// pulledFrom takes to account how a pull from a peer ended.
func (e *Engine) pulledFrom(p *peer.Peer, pull *Pull, res PullResult, err error) {
	pa := e.partner(p.ID)
	pa.notBefore = e.now.Add(pullAgain)
	switch {
	case res.Busy:
	case err != nil:
		if pa.failures++; pa.failures == 1 && pull.Purpose == PullAudit {
			e.cfg.Log.Warn("replicas not compared", "peer", pull.Name, "address", pull.Addr, "error", err)
		}
		pa.notBefore = e.now.Add(pullAgain << min(pa.failures, maxDoubled))
	default:
		pa.failures, pa.audited = 0, pull.began
		if pa.covers(pa.lossAt) {
			pa.compare = false
			p.Settle(pull.givenUp)
		}
	}
}

// schedule sets the time of the next audit: not the same for all directors.
func (e *Engine) schedule(now time.Time) {
	if d := e.cfg.AuditInterval; d > 0 {
		e.pulls.next = now.Add(d*4/5 + e.jitter(d*2/5))
	}
}
