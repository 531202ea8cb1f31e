package transfer

import (
	"encoding/binary"
	"fmt"
)

// Buckets is the number of buckets that digests are kept for; those of package flow's default function.
const Buckets = 4096

// Purpose says what a client pulls for.
type Purpose uint8

// Purposes.
const (
	Join    Purpose = 1 // the whole table
	Audit   Purpose = 2 // what differs, to be entered
	Compare Purpose = 3 // what differs, to be looked at
)

// String returns the purpose as logs and JSON print it.
func (p Purpose) String() string {
	switch p {
	case Join:
		return "join"
	case Audit:
		return "audit"
	case Compare:
		return "compare"
	}
	return fmt.Sprintf("purpose-%d", uint8(p))
}

// Lengths of payloads and their items in bytes.
const (
	RequestLen = 20
	startLen   = 12
	cutLen     = 8
	digestLen  = 14
	bucketLen  = 2
	codeLen    = 4
	// MaxPage is the number of digests in a page.
	MaxPage = 128
	// MaxClientPayload is the longest payload of a client's frame: a Want of all buckets.
	MaxClientPayload = Buckets * bucketLen
)

// Request is the payload of TypeRequest.
type Request struct {
	Purpose     Purpose
	Node        uint64 // the teacher that is meant
	Incarnation uint64
}

// AppendRequest appends the payload.
func AppendRequest(b []byte, r *Request) []byte {
	b = append(b, uint8(r.Purpose), 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, r.Node)
	return binary.BigEndian.AppendUint64(b, r.Incarnation)
}

// ParseRequest reads the payload. The purpose may be one that is not known.
func ParseRequest(b []byte) (Request, error) {
	if len(b) != RequestLen || b[1]|b[2]|b[3] != 0 {
		return Request{}, ErrPayload
	}
	return Request{Purpose: Purpose(b[0]), Node: binary.BigEndian.Uint64(b[4:]), Incarnation: binary.BigEndian.Uint64(b[12:])}, nil
}

// flagComplete is the only flag of Summary.
const flagComplete = 0x01

// Summary is the payload of TypeStart, about the teacher's table, and of TypeFinish, about what was sent.
type Summary struct {
	Entries  uint64
	Complete bool
}

// AppendSummary appends the payload.
func AppendSummary(b []byte, s Summary) []byte {
	b = binary.BigEndian.AppendUint64(b, s.Entries)
	var flags uint8
	if s.Complete {
		flags = flagComplete
	}
	return append(b, flags, 0, 0, 0)
}

// ParseSummary reads the payload.
func ParseSummary(b []byte) (Summary, error) {
	if len(b) != startLen || b[8]&^flagComplete|b[9]|b[10]|b[11] != 0 {
		return Summary{}, ErrPayload
	}
	return Summary{Entries: binary.BigEndian.Uint64(b), Complete: b[8]&flagComplete != 0}, nil
}

// Digest tells what a bucket holds.
type Digest struct {
	Bucket uint16
	Count  uint32 // entries
	Sum    uint64
}

// AppendDigests appends the items of TypeDigests (behind AppendCut) and TypeDiffer.
func AppendDigests(b []byte, digests []Digest) []byte {
	for i := range digests {
		d := &digests[i]
		b = binary.BigEndian.AppendUint16(b, d.Bucket)
		b = binary.BigEndian.AppendUint32(b, d.Count)
		b = binary.BigEndian.AppendUint64(b, d.Sum)
	}
	return b
}

// AppendPage appends the payload of TypeDigests.
func AppendPage(b []byte, cut uint64, digests []Digest) []byte {
	return AppendDigests(binary.BigEndian.AppendUint64(b, cut), digests)
}

// ParsePage reads the payload of TypeDigests and appends its digests to dst: at least one.
func ParsePage(b []byte, dst []Digest) (cut uint64, digests []Digest, err error) {
	if len(b) < cutLen+digestLen {
		return 0, dst, ErrPayload
	}
	digests, err = ParseDigests(b[cutLen:], dst)
	return binary.BigEndian.Uint64(b), digests, err
}

// ParseDigests reads the payload of TypeDiffer and appends its digests to dst: at most MaxPage, in ascending order of buckets. On an error
// dst is returned unchanged.
func ParseDigests(b []byte, dst []Digest) ([]Digest, error) {
	if len(b)%digestLen != 0 || len(b) > MaxPage*digestLen {
		return dst, ErrPayload
	}
	out, last := dst, -1
	for ; len(b) > 0; b = b[digestLen:] {
		d := Digest{Bucket: binary.BigEndian.Uint16(b), Count: binary.BigEndian.Uint32(b[2:]), Sum: binary.BigEndian.Uint64(b[6:])}
		if int(d.Bucket) <= last || d.Bucket >= Buckets {
			return dst, ErrPayload
		}
		last = int(d.Bucket)
		out = append(out, d)
	}
	return out, nil
}

// AppendWant appends the payload of TypeWant.
func AppendWant(b []byte, buckets []uint16) []byte {
	for _, n := range buckets {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

// ParseWant reads the payload of TypeWant and appends its buckets, ascending, to dst. On an error dst is returned unchanged.
func ParseWant(b []byte, dst []uint16) ([]uint16, error) {
	if len(b)%bucketLen != 0 || len(b) > MaxClientPayload {
		return dst, ErrPayload
	}
	out, last := dst, -1
	for ; len(b) > 0; b = b[bucketLen:] {
		n := binary.BigEndian.Uint16(b)
		if int(n) <= last || n >= Buckets {
			return dst, ErrPayload
		}
		last = int(n)
		out = append(out, n)
	}
	return out, nil
}

// Code says why a teacher ends a session.
type Code uint16

// Codes.
const (
	CodeBusy     Code = 1 // it teaches as many as it can
	CodeRefused  Code = 2 // it is not the incarnation that is meant, or does not know the purpose
	CodeStopping Code = 3
)

// AppendError appends the payload of TypeError.
func AppendError(b []byte, c Code) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(c)), 0, 0)
}

// ParseError reads the payload of TypeError. The code may be one that is not known.
func ParseError(b []byte) (Code, error) {
	if len(b) != codeLen || b[2]|b[3] != 0 {
		return 0, ErrPayload
	}
	return Code(binary.BigEndian.Uint16(b)), nil
}
