package coord

import (
	"encoding/binary"
	"fmt"
)

// reader takes fields from the front of b. Behind the end they are zero, and end says so.
type reader struct {
	b     []byte
	short bool
}

// bytes returns the next n bytes, which alias b, or nil.
func (r *reader) bytes(n int) []byte {
	if len(r.b) < n {
		r.b, r.short = nil, true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) digest() (d Digest) {
	copy(d[:], r.bytes(len(d)))
	return d
}

func (r *reader) line() Line { return Line{Term: r.uint32(), Node: r.uint64()} }

func (r *reader) ref() Ref { return Ref{Line: r.line(), Version: r.uint32(), Digest: r.digest()} }

func (r *reader) ballot() Ballot { return Ballot{Round: r.uint32(), Node: r.uint64()} }

// end returns an error unless all was there, and nothing is left.
func (r *reader) end() error {
	if r.short {
		return ErrTruncated
	}
	if len(r.b) > 0 {
		return fmt.Errorf("%d bytes too many: %w", len(r.b), ErrMalformed)
	}
	return nil
}

func appendLine(b []byte, l Line) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, l.Term), l.Node)
}

func appendRef(b []byte, r Ref) []byte {
	return append(binary.BigEndian.AppendUint32(appendLine(b, r.Line), r.Version), r.Digest[:]...)
}

func appendBallot(b []byte, l Ballot) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, l.Round), l.Node)
}
