package inspect

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// fragTimeout is how long a datagram waits for its fragments, in time of the capture (net.ipv4.ipfrag_time).
	fragTimeout = 30 * time.Second
	// fragLimit bounds how many datagrams wait; the oldest gives way.
	fragLimit = 64
	// maxDatagram is the longest payload of an IP packet.
	maxDatagram = 65535
)

// fragKey names a datagram (RFC 791 section 3.2, RFC 8200 section 4.5). The link is part of it, as captures on all interfaces have a packet more than once.
type fragKey struct {
	link     string
	src, dst netip.Addr
	id       uint32
}

// span is a piece of a datagram that has arrived.
type span struct{ from, to int }

// partial is a datagram that waits for fragments.
type partial struct {
	datagram        // of the first fragment seen; the payload grows
	spans    []span // sorted, disjoint
	total    int    // known with the last fragment; -1
}

// reassembler puts fragments together. A datagram whose fragments overlap is given up, as no sane sender makes such (RFC 5722);
// identical copies are ignored.
type reassembler struct {
	waiting map[fragKey]*partial
	order   []fragKey // oldest first
}

func newReassembler() reassembler { return reassembler{waiting: make(map[fragKey]*partial)} }

// add takes a fragment. It returns the datagram, with the UDP header in its payload, when this was the last one missing, and
// the datagrams that are given up because of the fragment.
func (r *reassembler) add(g datagram, ip *ipPacket) (lost []datagram, ready datagram, ok bool) {
	key := fragKey{g.link, ip.src, ip.dst, ip.id}
	w := r.waiting[key]
	if w == nil {
		if len(r.order) >= fragLimit {
			lost = append(lost, r.remove(r.order[0], "fragments missing"))
		}
		w = &partial{datagram: g, total: -1}
		r.waiting[key] = w
		r.order = append(r.order, key)
	}
	s := span{ip.offset, ip.offset + len(ip.data)}
	defect := ""
	switch {
	case ip.cutOff:
		defect = "fragment cut off by the capture"
	case s.to > maxDatagram:
		defect = "fragments beyond 65535 bytes"
	case s.from == s.to, ip.more && s.to%8 != 0:
		defect = "fragment of a wrong length"
	case w.total >= 0 && s.to > w.total, !ip.more && len(w.spans) > 0 && s.to < w.spans[len(w.spans)-1].to:
		defect = "fragments that do not fit together"
	}
	if defect == "" && slices.Contains(w.spans, s) {
		return lost, datagram{}, false
	}
	i, _ := slices.BinarySearchFunc(w.spans, s.from, func(s span, from int) int { return s.from - from })
	if defect == "" && (i > 0 && w.spans[i-1].to > s.from || i < len(w.spans) && w.spans[i].from < s.to) {
		defect = "fragments that overlap"
	}
	if defect != "" {
		return append(lost, r.remove(key, defect)), datagram{}, false
	}
	if len(w.payload) < s.to {
		w.payload = append(w.payload, make([]byte, s.to-len(w.payload))...)
	}
	copy(w.payload[s.from:], ip.data)
	w.spans = slices.Insert(w.spans, i, s)
	if !ip.more {
		w.total = s.to
	}
	at := 0
	for _, s := range w.spans {
		if s.from != at {
			return lost, datagram{}, false
		}
		at = s.to
	}
	if at != w.total {
		return lost, datagram{}, false
	}
	return lost, r.remove(key, ""), true
}

// expire gives up what has waited too long at the given time.
func (r *reassembler) expire(now time.Time) (lost []datagram) {
	for len(r.order) > 0 && now.Sub(r.waiting[r.order[0]].time) > fragTimeout {
		lost = append(lost, r.remove(r.order[0], "fragments missing"))
	}
	return lost
}

// drain gives up everything.
func (r *reassembler) drain() (lost []datagram) {
	for len(r.order) > 0 {
		lost = append(lost, r.remove(r.order[0], "fragments missing"))
	}
	return lost
}

// remove takes a datagram out. With a defect its ports are read, if the fragment that has them is there.
func (r *reassembler) remove(key fragKey, defect string) datagram {
	w := r.waiting[key]
	delete(r.waiting, key)
	r.order = slices.DeleteFunc(r.order, func(k fragKey) bool { return k == key })
	g := w.datagram
	if defect == "" {
		return g
	}
	if len(w.spans) > 0 && w.spans[0].from == 0 {
		g, _ = parseUDP(g, g.payload, false)
	}
	g.payload, g.defect = nil, defect
	return g
}
