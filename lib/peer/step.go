package peer

import (
	"cmp"
	"slices"
	"time"
)

// Heartbeat takes an authenticated heartbeat into account. Only with Accept has it changed anything.
func (s *Set) Heartbeat(now time.Time, h Heartbeat) (*Peer, Verdict, Event) {
	if h.Node == s.self {
		if h.Incarnation == s.incarnation {
			return nil, Own, Nothing
		}
		return nil, WrongIncarnation, s.stranger(now, h)
	}
	if h.Control == 0 {
		return nil, Replayed, Nothing // numbers begin at 1; 0 would put the floor of the windows at the highest number
	}
	p := s.peers[h.Node]
	if p == nil {
		if len(s.peers) >= MaxPeers && !s.evict() {
			return nil, Overflow, Nothing
		}
		p = &Peer{ID: h.Node, Links: make([]LinkState, s.links)} // windows are made at admission: strangers take little memory
		s.peers[h.Node] = p
		s.order = append(s.order, h.Node)
	}
	event := Nothing
	if h.Incarnation != p.Incarnation || p.Incarnation == 0 {
		var lives bool
		if p.candidates, lives = s.prove(p.candidates, now, h); !lives {
			return nil, WrongIncarnation, Nothing
		}
		p.admit(h)
		event = Admitted
	} else if p.Lost {
		// Datagrams that were sent to a director that could not hear them are new to its windows for ever: who was lost must prove anew
		// that it lives. It keeps its windows.
		var lives bool
		if p.candidates, lives = s.prove(p.candidates, now, h); !lives {
			return nil, WrongIncarnation, Nothing
		}
		p.candidates = nil
	}
	if v := p.arrived(now, h.Link, h.Control, true); v != Accept {
		return p, v, event
	}
	if p.Lost {
		p.Lost, p.Silence.To = false, now
		event = Returned
	}
	p.LastHeard = now
	if h.Control > p.beat { // an overtaken heartbeat says nothing newer
		p.told(now, h)
	}
	return p, Accept, event
}

// told takes over what the newest heartbeat says.
func (p *Peer) told(now time.Time, h Heartbeat) {
	p.beat = h.Control
	p.Name, p.Synced, p.Uptime, p.Clock = h.Name, h.Synced, h.Uptime, h.Clock
	p.Teaches, p.Entries, p.Confirm = h.Teaches, h.Entries, h.Confirm
	if h.Echo.Incarnation != 0 || !h.Paged || now.Sub(p.echoedAt) > echoAge {
		p.Echoed, p.echoedAt = h.Echo, now
	}
	p.Announced = max(p.Announced, h.Stream)
	if h.Oldest > p.Oldest {
		p.Oldest = h.Oldest
		if p.Oldest-1 > p.Announced {
			p.Oldest = p.Announced + 1 // nonsense: what has not been sent cannot have been dropped
		}
		p.GiveUp(p.Oldest)
	}
}

// Control takes the sequence number of an authenticated control datagram other than a heartbeat into account. The peer is nil unless
// admitted.
func (s *Set) Control(now time.Time, id ID, inc Incarnation, seq uint64, link int) (*Peer, Verdict) {
	p, v := s.sender(id, inc)
	if v != Accept {
		return nil, v
	}
	return p, p.arrived(now, link, seq, true)
}

// Stream takes the sequence number of an authenticated stream datagram into account. repeat says that it was marked as a repetition,
// which everybody hears though few have asked for it: then the link's window neither judges nor learns it. So a repetition is never
// a replay, and does not make one of the first copy if that comes later. The peer is nil unless admitted.
func (s *Set) Stream(now time.Time, id ID, inc Incarnation, seq uint64, link int, repeat bool) (*Peer, Verdict) {
	p, v := s.sender(id, inc)
	if v != Accept {
		return nil, v
	}
	if !repeat {
		return p, p.arrived(now, link, seq, false)
	}
	if p.Stream.Add(seq) != New {
		return p, Known
	}
	p.Links[link].LastHeard = now
	return p, Accept
}

// sender returns the peer that an incarnation is, if it counts.
func (s *Set) sender(id ID, inc Incarnation) (*Peer, Verdict) {
	if id == s.self && inc == s.incarnation {
		return nil, Own
	}
	p := s.peers[id]
	if p == nil || p.Incarnation == 0 || p.Incarnation != inc || p.Lost {
		return nil, WrongIncarnation
	}
	return p, Accept
}

// admit makes h's incarnation the peer's. What it sent before this heartbeat does not count: it was not proved to be fresh.
func (p *Peer) admit(h Heartbeat) {
	if p.Incarnation == 0 {
		p.Control, p.Stream = NewWindow(controlWindow), NewWindow(streamWindow)
		for i := range p.Links {
			p.Links[i].control, p.Links[i].stream = NewWindow(controlWindow), NewWindow(streamWindow)
		}
	}
	p.Incarnation, p.Name = h.Incarnation, h.Name
	p.Control.Reset(h.Control - 1)
	p.Stream.Reset(h.Stream)
	for i := range p.Links {
		p.Links[i].control.Reset(h.Control - 1)
		p.Links[i].stream.Reset(h.Stream)
	}
	p.Announced, p.Oldest, p.Confirmed, p.beat = h.Stream, 0, 0, 0
	p.Echoed, p.echoedAt = Echo{}, time.Time{}
	p.candidates, p.Lost, p.Silence = nil, false, Silence{}
}

// arrived files the sequence number of a datagram that is no repetition. A number that is new to its link but known was brought by
// another link or by a repetition; one that this link brought before is a replay.
func (p *Peer) arrived(now time.Time, link int, seq uint64, control bool) Verdict {
	l := &p.Links[link]
	all, one := &p.Stream, &l.stream
	if control {
		all, one = &p.Control, &l.control
	}
	if one.Add(seq) != New {
		return Replayed
	}
	l.LastHeard = now
	switch all.Add(seq) {
	case Duplicate:
		return Repeated
	case Old:
		return Replayed
	}
	return Accept
}

// prove looks whether h shows that its incarnation lives now, and otherwise keeps it among the candidates.
func (s *Set) prove(cs []candidate, now time.Time, h Heartbeat) ([]candidate, bool) {
	echo := uint64(0)
	if h.Echo.Incarnation == s.incarnation {
		echo = h.Echo.Control
	}
	i := slices.IndexFunc(cs, func(c candidate) bool { return c.incarnation == h.Incarnation })
	if i < 0 {
		if len(cs) >= maxCandidates {
			// The one with the newest echo stays: old datagrams, however many, cannot push out who hears this director now.
			worst := 0
			for j := range cs {
				if cmp.Or(cmp.Compare(cs[j].echo, cs[worst].echo), cs[j].heard.Compare(cs[worst].heard)) < 0 {
					worst = j
				}
			}
			if echo < cs[worst].echo {
				return cs, false
			}
			cs = slices.Delete(cs, worst, worst+1)
		}
		cs = append(cs, candidate{incarnation: h.Incarnation, since: s.control})
		i = len(cs) - 1
	}
	c := &cs[i]
	if h.Control > c.control {
		c.control, c.stream = h.Control, h.Stream
	}
	c.heard, c.echo = now, max(c.echo, echo)
	return cs, echo > c.since
}

// stranger handles a heartbeat under this director's own name.
func (s *Set) stranger(now time.Time, h Heartbeat) Event {
	var lives bool
	if s.namesake, lives = s.prove(s.namesake, now, h); lives {
		return Namesake
	}
	return Nothing
}

// Expire marks peers as lost that were not heard for deadtime and forgets candidates. lost is called for each that is lost now.
func (s *Set) Expire(now time.Time, deadtime time.Duration, lost func(*Peer)) {
	stale := func(c candidate) bool { return now.Sub(c.heard) > candidateAge }
	s.namesake = slices.DeleteFunc(s.namesake, stale)
	s.order = slices.DeleteFunc(s.order, func(id ID) bool {
		p := s.peers[id]
		p.candidates = slices.DeleteFunc(p.candidates, stale)
		if p.Incarnation == 0 {
			if len(p.candidates) == 0 {
				delete(s.peers, id)
				return true
			}
			return false
		}
		if !p.Lost && now.Sub(p.LastHeard) > deadtime {
			p.Lost, p.Silence = true, Silence{From: p.LastHeard}
			lost(p)
		}
		return false
	})
}

// evict makes room by dropping the peer that has been lost the longest.
func (s *Set) evict() bool {
	var worst *Peer
	for _, p := range s.peers {
		if p.Lost && (worst == nil || p.LastHeard.Before(worst.LastHeard)) {
			worst = p
		}
	}
	if worst == nil {
		return false
	}
	delete(s.peers, worst.ID)
	s.order = slices.DeleteFunc(s.order, func(id ID) bool { return id == worst.ID })
	return true
}

// Echoes appends what the next heartbeat tells the others: up to limit echoes, going round from call to call when there are more.
// Candidates are echoed too, or nobody would ever be admitted; lost peers are not. Who waits for its confirmation is in every one, as long
// as these leave half of the room to others.
func (s *Set) Echoes(dst []Echo, now time.Time, limit int) []Echo {
	var urgent, all []Echo
	add := func(id ID, cs []candidate) {
		for _, c := range cs {
			all = append(all, Echo{Node: id, Incarnation: c.incarnation, Control: c.control, Stream: c.stream, Age: now.Sub(c.heard)})
		}
	}
	for _, id := range s.order {
		p := s.peers[id]
		if p.Incarnation != 0 && !p.Lost {
			e := Echo{
				Node: id, Incarnation: p.Incarnation, Control: p.Control.Newest(),
				Stream: p.Stream.Newest(), Confirmed: p.Confirmed, Age: now.Sub(p.LastHeard), Counts: true,
			}
			if p.Confirm && len(urgent) < limit/2 {
				urgent = append(urgent, e)
			} else {
				all = append(all, e)
			}
		}
		add(id, p.candidates)
	}
	add(s.self, s.namesake)
	dst = append(dst, urgent...)
	limit -= len(urgent)
	if len(all) <= limit {
		s.page = 0
		return append(dst, all...)
	}
	for range limit {
		dst = append(dst, all[s.page%len(all)])
		s.page++
	}
	return dst
}
