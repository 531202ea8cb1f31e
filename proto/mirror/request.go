package mirror

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

// Sizes of a request's body.
const (
	requestLen = 16
	rangeLen   = 12
	// MaxRanges is how many ranges fit into one request.
	MaxRanges = (MaxDatagram - headerLen - MinLen - requestLen) / rangeLen
)

// Request is the body of KindRequest: its sender misses datagrams of a node's stream.
type Request struct {
	Node        uint64 // the node asked
	Incarnation uint64 // the incarnation of it whose stream is meant

	ranges []byte
}

// Range is a run of sequence numbers.
type Range struct {
	First uint64 // from 1
	Count uint32 // at least 1
}

// last returns the last number of the range; the range is in order when it is not below First.
func (r Range) last() uint64 { return r.First + uint64(r.Count) - 1 }

// follows reports whether r is a range, and lies behind all numbers up to last. So no request asks for the same datagram twice.
func (r Range) follows(last uint64) bool {
	return r.Count > 0 && r.First > last && r.First <= math.MaxUint64-uint64(r.Count-1)
}

// AppendRequest appends the body of a request for 1 to MaxRanges ranges, in ascending order and apart. On an error b is returned
// unchanged.
func AppendRequest(b []byte, r *Request, ranges []Range) ([]byte, error) {
	if len(ranges) == 0 || len(ranges) > MaxRanges {
		return b, fmt.Errorf("append request for %d ranges: %w", len(ranges), ErrBody)
	}
	var last uint64
	for i, g := range ranges {
		if !g.follows(last) {
			return b, fmt.Errorf("append request for %d numbers from %d, as range %d: %w", g.Count, g.First, i, ErrBody)
		}
		last = g.last()
	}
	b = binary.BigEndian.AppendUint64(b, r.Node)
	b = binary.BigEndian.AppendUint64(b, r.Incarnation)
	for _, g := range ranges {
		b = binary.BigEndian.AppendUint64(b, g.First)
		b = binary.BigEndian.AppendUint32(b, g.Count)
	}
	return b, nil
}

// ParseRequest reads the body of a request. Ranges reads from body.
func ParseRequest(body []byte) (Request, error) {
	n := (len(body) - requestLen) / rangeLen
	if n < 1 || n > MaxRanges || len(body) != requestLen+n*rangeLen {
		return Request{}, fmt.Errorf("request of %d bytes: %w", len(body), ErrBody)
	}
	r := Request{
		Node:        binary.BigEndian.Uint64(body),
		Incarnation: binary.BigEndian.Uint64(body[8:]),
		ranges:      body[requestLen:],
	}
	var last uint64
	for g := range r.Ranges() {
		if !g.follows(last) {
			return Request{}, fmt.Errorf("request for %d numbers from %d behind %d: %w", g.Count, g.First, last, ErrBody)
		}
		last = g.last()
	}
	return r, nil
}

// Ranges iterates over the ranges of a parsed request: in ascending order, apart, and none beyond the highest number that there is.
func (r *Request) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for b := r.ranges; len(b) >= rangeLen; b = b[rangeLen:] {
			if !yield(Range{First: binary.BigEndian.Uint64(b), Count: binary.BigEndian.Uint32(b[8:])}) {
				return
			}
		}
	}
}
