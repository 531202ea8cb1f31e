package mcast

import (
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// segmentsLeast is how many datagrams of one length in a row are handed to the kernel as one large one, which it splits itself
	// (UDP_SEGMENT, Linux 4.18). That one walks through routing, firewall and queue for all of them, which is most of what a datagram
	// costs. A packet capture on this host shows the large one, so where the load is low there is none.
	segmentsLeast = 8
	// segmentsMost is the kernel's limit (include/linux/udp.h, UDP_MAX_SEGMENTS, before Linux 6.9), and segmentBytes the longest UDP
	// payload of IPv4.
	segmentsMost = 64
	segmentBytes = 65535 - 20 - 8
)

// outgoing has the shape that x/net wants, made without allocation in the steady state.
type outgoing struct {
	messages []ipv4.Message
	payloads [][]byte
	controls [][]byte // of each message
}

// prepare makes a message of each datagram, or of several in a row that are equally long but for the last one, which may be shorter. whole
// says that there are to be none of the latter.
func (o *outgoing) prepare(l *Link, bufs [][]byte, whole bool) {
	o.payloads = append(o.payloads[:0], bufs...)
	o.messages = o.messages[:0]
	for first := 0; first < len(bufs); {
		n := 1
		if !whole {
			n = alike(bufs[first:])
		}
		m := ipv4.Message{Addr: l.dst, Buffers: o.payloads[first : first+n : first+n]}
		if n > 1 {
			i := len(o.messages)
			for len(o.controls) <= i {
				o.controls = append(o.controls, make([]byte, unix.CmsgSpace(2)))
			}
			m.OOB = segmentControl(o.controls[i], len(bufs[first]))
		}
		o.messages = append(o.messages, m)
		first += n
	}
}

// segmentControl writes the control message (cmsg(3)) that says how long each datagram is.
func segmentControl(b []byte, size int) []byte {
	b = slices.Grow(b[:0], unix.CmsgSpace(2))[:unix.CmsgSpace(2)]
	clear(b)
	if n := unix.CmsgLen(0); n == 16 {
		binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2)))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(unix.CmsgLen(2)))
	}
	level := b[unix.CmsgLen(0)-8:]
	binary.NativeEndian.PutUint32(level, unix.SOL_UDP)
	binary.NativeEndian.PutUint32(level[4:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(level[8:], uint16(size))
	return b
}

// alike returns how many datagrams from the first on can be handed over as one: 1, or segmentsLeast and more.
func alike(bufs [][]byte) int {
	size := len(bufs[0])
	if size == 0 {
		return 1
	}
	most := min(len(bufs), segmentsMost, segmentBytes/size)
	n := 1
	for n < most && len(bufs[n]) == size {
		n++
	}
	if n < most && len(bufs[n]) > 0 && len(bufs[n]) < size {
		n++
	}
	if n < segmentsLeast {
		return 1
	}
	return n
}

// cannotSplit reports whether an error may be that of a device without checksums (EIO), of one with a small MTU (EINVAL, EMSGSIZE), or of a
// kernel that does not know how to split (net/ipv4/udp.c, udp_send_skb and __udp_cmsg_send).
func cannotSplit(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EOPNOTSUPP)
}
