package coord

import (
	"encoding/binary"
	"fmt"
)

// Sizes of a heartbeat's body.
const (
	heartbeatLen = 176
	echoLen      = 29
	// MaxName is the longest node name in bytes.
	MaxName = 63
	// MaxEchoes is how many echoes fit into one heartbeat beside the longest name.
	MaxEchoes = (MaxDatagram - MinLen - heartbeatLen - MaxName) / echoLen
)

// Flags of an echo.
const (
	echoSupports = 1 << iota
	echoDead
	echoCounts
	echoFlags = 1<<iota - 1 // all of them
)

// Kind returns KindHeartbeat.
func (h *Heartbeat) Kind() Kind { return KindHeartbeat }

// Pages splits a heartbeat with any number of echoes into heartbeats of at most MaxEchoes, which are equal but for Echoes, and Paged if there are
// several. They share the echoes' memory with h. Each needs a sequence number of its own.
func (h *Heartbeat) Pages() []Heartbeat {
	n := max(1, (len(h.Echoes)+MaxEchoes-1)/MaxEchoes)
	pages := make([]Heartbeat, n)
	for i := range pages {
		first, last := i*MaxEchoes, min((i+1)*MaxEchoes, len(h.Echoes))
		pages[i] = *h
		pages[i].Paged = h.Paged || n > 1
		pages[i].Echoes = h.Echoes[first:last:last]
	}
	return pages
}

func (h *Heartbeat) check() error {
	if err := h.Header.check(); err != nil {
		return err
	}
	switch {
	case !nameOK(h.Name):
		return fmt.Errorf("node name %q: %w", h.Name, ErrMalformed)
	case h.State&^allStates != 0:
		return fmt.Errorf("state %#x: %w", uint16(h.State), ErrMalformed)
	case h.Term == 0 && h.Master != 0:
		return fmt.Errorf("master %#x in term %d: %w", h.Master, h.Term, ErrMalformed)
	case !h.Counts.ok() || !h.Pending.ok():
		return fmt.Errorf("references %+v and %+v: %w", h.Counts, h.Pending, ErrMalformed)
	case !h.PendingBallot.ok() || !h.Promise.ok():
		return fmt.Errorf("ballots %+v and %+v: %w", h.PendingBallot, h.Promise, ErrMalformed)
	case h.Timers.Keepalive == 0 || h.Timers.Deadtime == 0 || h.Timers.Lease == 0:
		return fmt.Errorf("timers %+v: %w", h.Timers, ErrMalformed)
	case len(h.Echoes) > MaxEchoes:
		return fmt.Errorf("%d echoes: %w", len(h.Echoes), ErrMalformed)
	}
	for i := range h.Echoes {
		if e := &h.Echoes[i]; e.Node == 0 || e.Incarnation == 0 {
			return fmt.Errorf("echo of node %#x, incarnation %#x: %w", e.Node, e.Incarnation, ErrMalformed)
		}
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (h *Heartbeat) AppendBinary(b []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return b, fmt.Errorf("append heartbeat: %w", err)
	}
	var flags uint8
	if h.Paged {
		flags = flagPaged
	}
	b = h.appendHeader(b, KindHeartbeat, flags)
	b = binary.BigEndian.AppendUint64(b, h.UptimeMS)
	b = binary.BigEndian.AppendUint16(b, uint16(h.State))
	b = binary.BigEndian.AppendUint16(b, h.Weight)
	b = binary.BigEndian.AppendUint16(b, h.Pings)
	b = append(b, uint8(len(h.Name)), uint8(len(h.Echoes)))
	b = binary.BigEndian.AppendUint32(b, h.Open)
	b = binary.BigEndian.AppendUint32(b, h.Term)
	b = binary.BigEndian.AppendUint64(b, h.Master)
	b = append(b, h.Function[:]...)
	b = appendRef(b, h.Counts)
	b = appendRef(b, h.Pending)
	b = appendBallot(b, h.PendingBallot)
	b = appendBallot(b, h.Promise)
	b = append(b, h.Released[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Answer)
	for _, us := range []uint32{h.Timers.Keepalive, h.Timers.Deadtime, h.Timers.Lease, h.Timers.Guard} {
		b = binary.BigEndian.AppendUint32(b, us)
	}
	b = append(b, h.Name...)
	for i := range h.Echoes {
		b = appendEcho(b, &h.Echoes[i])
	}
	return appendTag(b), nil
}

func appendEcho(b []byte, e *Echo) []byte {
	var flags uint8
	if e.Supports {
		flags |= echoSupports
	}
	if e.Dead {
		flags |= echoDead
	}
	if e.Counts {
		flags |= echoCounts
	}
	b = binary.BigEndian.AppendUint64(b, e.Node)
	b = binary.BigEndian.AppendUint64(b, e.Incarnation)
	b = binary.BigEndian.AppendUint64(b, e.Sequence)
	b = binary.BigEndian.AppendUint32(b, e.AgeMS)
	return append(b, flags)
}

// parseHeartbeat reads the body of a heartbeat. The caller checks its values.
func parseHeartbeat(head Header, flags uint8, r *reader) (*Heartbeat, error) {
	h := &Heartbeat{Header: head, Paged: flags&flagPaged != 0}
	h.UptimeMS = r.uint64()
	h.State = State(r.uint16())
	h.Weight = r.uint16()
	h.Pings = r.uint16()
	name, echoes := int(r.uint8()), int(r.uint8())
	h.Open = r.uint32()
	h.Term = r.uint32()
	h.Master = r.uint64()
	h.Function = r.digest()
	h.Counts = r.ref()
	h.Pending = r.ref()
	h.PendingBallot = r.ballot()
	h.Promise = r.ballot()
	h.Released = r.digest()
	h.Answer = r.uint64()
	h.Timers = Timers{Keepalive: r.uint32(), Deadtime: r.uint32(), Lease: r.uint32(), Guard: r.uint32()}
	h.Name = string(r.bytes(name))
	if echoes == 0 || len(r.b) < echoes*echoLen {
		r.bytes(echoes * echoLen)
		return h, nil
	}
	h.Echoes = make([]Echo, echoes)
	for i := range h.Echoes {
		e := Echo{Node: r.uint64(), Incarnation: r.uint64(), Sequence: r.uint64(), AgeMS: r.uint32()}
		f := r.uint8()
		if f&^echoFlags != 0 {
			return nil, fmt.Errorf("echo with flags %#x: %w", f, ErrMalformed)
		}
		e.Supports, e.Dead, e.Counts = f&echoSupports != 0, f&echoDead != 0, f&echoCounts != 0
		h.Echoes[i] = e
	}
	return h, nil
}

// nameOK reports whether a node may have this name.
func nameOK(name string) bool {
	if name == "" || len(name) > MaxName {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}
