package mirror

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of the trailer in bytes.
const (
	// FixedLen is the length of the fixed fields, without the tag.
	FixedLen = 64
	// TagLen is the length of the authentication tag.
	TagLen = 16
	// MinLen is the length of a trailer without a body.
	MinLen = FixedLen + TagLen
	// MaxDatagram is the largest datagram: an Ethernet frame of 1,500 bytes less the IPv4 and UDP headers.
	MaxDatagram = 1472

	// FormatVersion is the version of the format that this package reads and writes.
	FormatVersion = 1

	headerLen = 8 // of the sync message, ipvssync.HeaderLenV1
)

var magic = [4]byte{'S', 'A', 'R', 'U'}

// Kind says what a datagram is for.
type Kind uint8

// Kinds. Those below 64 are numbered by the stream's sequence (a receiver must know when it missed one), the others by the
// control sequence.
const (
	KindRecords   Kind = 1  // live updates: every record has the message's grant and clock
	KindHeartbeat Kind = 64 // liveness, newest stream number, echoes
	KindRequest   Kind = 65 // asks for datagrams of a stream again
)

// Stream reports whether datagrams of this kind are numbered by the stream's sequence.
func (k Kind) Stream() bool { return k < 64 }

// String returns the kind's name as logs and saructl print it.
func (k Kind) String() string {
	switch k {
	case KindRecords:
		return "records"
	case KindHeartbeat:
		return "heartbeat"
	case KindRequest:
		return "request"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Flags of a trailer.
const (
	FlagSynced  = 0x01 // the sender's own table is complete as far as it knows
	FlagRepeat  = 0x02 // stream kinds: sent again because somebody asked for it
	FlagConfirm = 0x04 // KindHeartbeat: the sender waits until its stream is confirmed; a heartbeat that does so should follow at once
)

// Grant orders updates of one connection before the clock does: the term and version of the table under which the origin held
// the connection's bucket; without saru, the number of times the connection was taken over.
type Grant uint64

// NewGrant returns the grant of version in term.
func NewGrant(term, version uint32) Grant { return Grant(uint64(term)<<32 | uint64(version)) }

// Term returns the term of saru's table.
func (g Grant) Term() uint32 { return uint32(g >> 32) }

// Version returns the version within the term.
func (g Grant) Version() uint32 { return uint32(g) }

// Trailer holds the fields of a trailer. Body aliases the datagram that it was parsed from.
type Trailer struct {
	KeyID       uint8
	Kind        Kind
	Flags       uint8
	Sender      uint64
	Incarnation uint64
	Sequence    uint64
	Origin      uint64
	Grant       Grant
	Clock       uint64 // microseconds
	Body        []byte
}

// Errors of ParseTrailer. They separate what a stock kernel sends (ErrNoTrailer) from what is broken.
var (
	ErrNoTrailer = errors.New("no trailer")
	ErrTruncated = errors.New("trailer truncated")
	ErrVersion   = errors.New("trailer of an unknown format version")
	ErrReserved  = errors.New("reserved trailer field not zero")
	ErrBody      = errors.New("trailer body malformed")
)

// AppendTrailer appends the trailer to the datagram b, whose records are complete, with a tag of zeros, and returns the
// datagram. The caller must finish the message (ipvssync.FinishV1) and then sign it: the tag's place is the last TagLen
// bytes. b must begin with the message's first byte; zero bytes are added so that the trailer stands at a multiple of 4.
// On an error b is returned unchanged.
func AppendTrailer(b []byte, t *Trailer) ([]byte, error) {
	if len(t.Body)%4 != 0 || len(t.Body) > 0xffff {
		return b, fmt.Errorf("append trailer with a body of %d bytes: %w", len(t.Body), ErrBody)
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = append(b, t.Body...)
	b = append(b, magic[:]...)
	b = append(b, FormatVersion, t.KeyID, uint8(t.Kind), t.Flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Body)))
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint64(b, t.Sender)
	b = binary.BigEndian.AppendUint64(b, t.Incarnation)
	b = binary.BigEndian.AppendUint64(b, t.Sequence)
	b = binary.BigEndian.AppendUint64(b, t.Origin)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Grant))
	b = binary.BigEndian.AppendUint64(b, t.Clock)
	return append(b, make([]byte, 4+TagLen)...), nil
}

// MarkRepeat makes the finished datagram b, which has been sent before, a repetition of itself: it sets FlagRepeat and the key id, and
// clears the tag. The caller signs it anew, unless the key id is 0.
func MarkRepeat(b []byte, keyID uint8) {
	f := b[len(b)-MinLen:]
	f[5] = keyID
	f[7] |= FlagRepeat
	clear(f[FixedLen:])
}

// Length returns how many bytes a trailer with a body of n bytes takes.
func Length(n int) int { return n + MinLen }

// ParseTrailer reads the trailer at the end of the datagram b, a whole sync message. start is the offset at which it begins:
// the records must end there, which the caller checks (they may be followed by at most 3 zero bytes). The tag, the last
// TagLen bytes of b, covers everything before it. ErrNoTrailer: b is no message of this suite, a stock kernel's perhaps.
func ParseTrailer(b []byte) (t Trailer, start int, err error) {
	if len(b) < headerLen+MinLen {
		return t, 0, ErrNoTrailer
	}
	f := b[len(b)-MinLen:]
	if [4]byte(f[:4]) != magic {
		return t, 0, ErrNoTrailer
	}
	if f[4] != FormatVersion {
		return t, 0, ErrVersion
	}
	body := int(binary.BigEndian.Uint16(f[8:]))
	start = len(b) - MinLen - body
	if start < headerLen {
		return t, 0, ErrTruncated
	}
	if body%4 != 0 {
		return t, 0, ErrBody
	}
	if f[10]|f[11] != 0 || binary.BigEndian.Uint32(f[60:]) != 0 {
		return t, 0, ErrReserved
	}
	return Trailer{
		KeyID:       f[5],
		Kind:        Kind(f[6]),
		Flags:       f[7],
		Sender:      binary.BigEndian.Uint64(f[12:]),
		Incarnation: binary.BigEndian.Uint64(f[20:]),
		Sequence:    binary.BigEndian.Uint64(f[28:]),
		Origin:      binary.BigEndian.Uint64(f[36:]),
		Grant:       Grant(binary.BigEndian.Uint64(f[44:])),
		Clock:       binary.BigEndian.Uint64(f[52:]),
		Body:        b[start : len(b)-MinLen],
	}, start, nil
}
