package coord

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of a datagram in bytes.
const (
	// HeaderLen is the length of what all kinds begin with.
	HeaderLen = 32
	// TagLen is the length of the authentication tag at the end.
	TagLen = 16
	// MinLen is the length of a datagram without a body.
	MinLen = HeaderLen + TagLen
	// MaxDatagram is the largest datagram: an Ethernet frame of 1,500 bytes less the IPv4 and UDP headers.
	MaxDatagram = 1472

	// FormatVersion is the version of the format that this package reads and writes.
	FormatVersion = 1

	flagPaged = 0x01
)

var magic = [4]byte{'S', 'A', 'R', 'C'}

// Errors of parsing and appending.
var (
	ErrMagic     = errors.New("not of a coordinator")
	ErrTruncated = errors.New("truncated")
	ErrVersion   = errors.New("unknown format version")
	ErrKind      = errors.New("unknown kind of message")
	ErrMalformed = errors.New("malformed")
)

// Message is a message of any kind: a pointer to Heartbeat, Prepare, Accept, Part, Fetch or Command.
type Message interface {
	// Head returns the header of the message, to be read and filled in.
	Head() *Header
	// Kind returns what the message is for.
	Kind() Kind
	// AppendBinary appends the datagram, with a tag of zeros in its last TagLen bytes: whoever has named a key in the header signs it. On an error b is
	// returned unchanged.
	AppendBinary(b []byte) ([]byte, error)
	// check says what of the message no datagram may carry.
	check() error
}

// Head returns the header.
func (h *Header) Head() *Header { return h }

// check is the first part of every message's check.
func (h *Header) check() error {
	if h.Sender == 0 || h.Incarnation == 0 || h.Sequence == 0 {
		return fmt.Errorf("sender %#x, incarnation %#x, sequence %d: %w", h.Sender, h.Incarnation, h.Sequence, ErrMalformed)
	}
	return nil
}

func (h *Header) appendHeader(b []byte, kind Kind, flags uint8) []byte {
	b = append(b, magic[:]...)
	b = append(b, FormatVersion, h.Key, uint8(kind), flags)
	b = binary.BigEndian.AppendUint64(b, h.Sender)
	b = binary.BigEndian.AppendUint64(b, h.Incarnation)
	return binary.BigEndian.AppendUint64(b, h.Sequence)
}

func appendTag(b []byte) []byte {
	var tag [TagLen]byte
	return append(b, tag[:]...)
}

// ParseHeader reads the header of the datagram b and looks no further: who authenticates must know the key before anything else of it is believed.
// The kind may be unknown.
func ParseHeader(b []byte) (Kind, Header, error) {
	if len(b) < MinLen {
		return 0, Header{}, fmt.Errorf("datagram of %d bytes: %w", len(b), ErrTruncated)
	}
	if [4]byte(b[:4]) != magic {
		return 0, Header{}, ErrMagic
	}
	if b[4] != FormatVersion {
		return 0, Header{}, ErrVersion
	}
	return Kind(b[6]), Header{
		Key:         b[5],
		Sender:      binary.BigEndian.Uint64(b[8:]),
		Incarnation: binary.BigEndian.Uint64(b[16:]),
		Sequence:    binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// Parse reads the whole datagram b. It does not check the tag, but the tag of what names no key must be zero. Nothing of the message aliases b.
func Parse(b []byte) (Message, error) {
	kind, h, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxDatagram {
		return nil, fmt.Errorf("%s of %d bytes: %w", kind, len(b), ErrMalformed)
	}
	flags, tag := b[7], b[len(b)-TagLen:]
	r := reader{b: b[HeaderLen : len(b)-TagLen]}
	var m Message
	switch kind {
	case KindHeartbeat:
		m, err = parseHeartbeat(h, flags, &r)
		flags &^= flagPaged
	case KindPrepare:
		m = &Prepare{Header: h, Parent: r.ref(), Ballot: r.ballot()}
	case KindAccept:
		m = &Accept{Header: h, Parent: r.ref(), Ballot: r.ballot(), Table: r.ref()}
	case KindPart:
		m = parsePart(h, &r)
	case KindFetch:
		m = &Fetch{Header: h, Digest: r.digest(), Node: r.uint64()}
	case KindCommand:
		m = &Command{Header: h, Target: r.uint64(), Nonce: r.uint64(), Verb: Verb(r.uint8())}
	default:
		return nil, ErrKind
	}
	if err == nil {
		err = r.end()
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s of %d bytes: %w", kind, len(b), err)
	}
	if flags != 0 || h.Key == 0 && [TagLen]byte(tag) != [TagLen]byte{} {
		return nil, fmt.Errorf("%s with flags %#x, key %d and tag %x: %w", kind, b[7], h.Key, tag, ErrMalformed)
	}
	return m, nil
}

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindHeartbeat:
		return "heartbeat"
	case KindPrepare:
		return "prepare"
	case KindAccept:
		return "accept"
	case KindPart:
		return "part"
	case KindFetch:
		return "fetch"
	case KindCommand:
		return "command"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// String returns the verb as an operator says it.
func (v Verb) String() string {
	switch v {
	case VerbDrain:
		return "drain"
	case VerbUndrain:
		return "undrain"
	}
	return fmt.Sprintf("verb-%d", uint8(v))
}

// String returns the policy as --partition has it.
func (p Policy) String() string {
	switch p {
	case Quorum:
		return "quorum"
	case Available:
		return "available"
	}
	return fmt.Sprintf("policy-%d", uint8(p))
}
