package engine

import (
	"time"

	"saru/lib/peer"
	"saru/proto/mirror"
)

// Times of repair.
const (
	// askAfter is how long a gap must stand before it is asked for, so that datagrams that overtook each other are not, and up to how
	// much longer a director waits by chance, so that one asks and the others hear it (RFC 5740 section 5.3 calls it NACK backoff).
	askAfter  = 5 * time.Millisecond
	askJitter = 20 * time.Millisecond
	// askAgain is how long an answer may take before the next request, with the same jitter. It is also how long another director's
	// request stands for this one's.
	askAgain = 40 * time.Millisecond
	// repeatAfter is how soon the same datagram is repeated at the earliest: those who asked too late have heard the repetition.
	repeatAfter = 10 * time.Millisecond
)

// Limits of repair, so that a peer that asks for everything all the time costs no more than this.
const (
	// requestsAtOnce is how many requests, of mirror.MaxRanges gaps each, are sent at the same time.
	requestsAtOnce = 4
	// repeatRate is how many datagrams a second are repeated, and repeatBurst how many at once.
	repeatRate  = 20000
	repeatBurst = 2000
)

// repairStep asks for what is missing.
func (e *Engine) repairStep() {
	for p := range e.peers.Peers {
		if p.Lost {
			continue
		}
		pa := e.partner(p.ID)
		n := p.GivenUp()
		if n > pa.givenUp {
			pa.lossAt = e.now
		}
		pa.givenUp = n
		missing := false
		for range p.Gaps {
			missing = true
			break
		}
		switch {
		case !missing:
			pa.ask = time.Time{}
		case pa.ask.IsZero():
			pa.ask = e.now.Add(askAfter + e.jitter(askJitter))
		case !e.now.Before(pa.ask):
			e.request(p, pa)
			pa.ask = e.now.Add(askAgain + e.jitter(askJitter))
		}
	}
}

func (e *Engine) jitter(most time.Duration) time.Duration {
	return time.Duration(e.rand.Int64N(int64(most)))
}

// request asks a peer for what is missing, but for what another director has just asked for.
func (e *Engine) request(p *peer.Peer, pa *partner) {
	held := false
	e.ranges = e.ranges[:0]
	for first, count := range p.Gaps {
		if e.now.Sub(pa.askedAt) < askAgain && covered(pa.asked, first, count) {
			held = true
			continue
		}
		if e.ranges = append(e.ranges, mirror.Range{First: first, Count: count}); len(e.ranges) == requestsAtOnce*mirror.MaxRanges {
			break
		}
	}
	if held {
		e.counters[RepairHeld]++
	}
	for left := e.ranges; len(left) > 0; {
		n := min(len(left), mirror.MaxRanges)
		body, err := mirror.AppendRequest(e.body[:0], &mirror.Request{Node: uint64(p.ID), Incarnation: uint64(p.Incarnation)}, left[:n])
		e.body = body
		if err != nil {
			e.cfg.Log.Error("request not sent", "error", err)
			return
		}
		e.control(mirror.KindRequest, 0, body)
		e.counters[RepairRequests]++
		left = left[n:]
	}
}

// covered reports whether a range lies within one of those, which are in order.
func covered(ranges []mirror.Range, first uint64, count uint32) bool {
	for _, r := range ranges {
		if first >= r.First && first+uint64(count) <= r.First+uint64(r.Count) {
			return true
		}
	}
	return false
}

// asked handles a request of a peer: for this director's datagrams, or for another's.
func (e *Engine) asked(now time.Time, link int, t *mirror.Trailer) (Counter, bool) {
	req, err := mirror.ParseRequest(t.Body)
	if err != nil {
		return DropTruncated, true
	}
	_, v := e.peers.Control(now, peer.ID(t.Sender), peer.Incarnation(t.Incarnation), t.Sequence, link)
	if v != peer.Accept {
		return verdicts[v], true
	}
	if peer.ID(req.Node) != e.self {
		if p := e.peers.Get(peer.ID(req.Node)); p != nil && p.Incarnation == peer.Incarnation(req.Incarnation) {
			pa := e.partner(p.ID)
			if now.Sub(pa.askedAt) >= askAgain {
				pa.asked = pa.asked[:0]
			}
			pa.askedAt = now
			for r := range req.Ranges() {
				if len(pa.asked) < requestsAtOnce*mirror.MaxRanges {
					pa.asked = append(pa.asked, r)
				}
			}
		}
		return 0, false
	}
	if peer.Incarnation(req.Incarnation) != e.cfg.Incarnation {
		return 0, false // it has not heard of this incarnation yet
	}
	for r := range req.Ranges() {
		e.repeat(now, r)
	}
	return 0, false
}

// repeat sends a range of this director's datagrams again.
func (e *Engine) repeat(now time.Time, r mirror.Range) {
	first, end := r.First, r.First+uint64(r.Count)
	if end < first || end > e.stream+1 {
		end = e.stream + 1
	}
	if oldest := e.backlog.oldest(e.stream); first < oldest {
		gone := min(end, oldest) - min(first, end)
		e.counters[RepairAsked] += gone
		e.counters[RepairGone] += gone
		first = oldest
	}
	for number := first; number < end; number++ {
		e.counters[RepairAsked]++
		kept, it := e.backlog.get(number)
		if kept == nil || e.backlog.clock(now)-it.again < repeatAfter {
			continue
		}
		if e.budget < 1 {
			return // it will be asked for again
		}
		e.budget--
		it.again = e.backlog.clock(now)
		var buf [mirror.MaxDatagram]byte
		b := append(buf[:0], kept...)
		key := uint8(0)
		if e.signs() {
			key = e.cfg.Ring.Signer()
		}
		mirror.MarkRepeat(b, key)
		if key != 0 {
			e.cfg.Ring.Sign(b)
		}
		e.counters[RepairDatagrams]++
		e.counters[RepairBytes] += uint64(len(b))
		e.emit(b)
	}
}

// earn fills the budget of repetitions; since is the time of the latest call.
func (e *Engine) earn(since time.Duration) {
	e.budget = min(e.budget+since.Seconds()*repeatRate, repeatBurst)
}
