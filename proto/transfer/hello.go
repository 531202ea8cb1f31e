package transfer

import (
	"encoding/binary"
	"errors"
)

// Sizes of a hello.
const (
	HelloLen = 64
	NonceLen = 32
)

// FormatVersion is the version of the format that this package reads and writes.
const FormatVersion = 1

var magic = [4]byte{'S', 'A', 'R', 'J'}

// Role says which side sends a hello.
type Role uint8

// Roles.
const (
	RoleClient  Role = 1
	RoleTeacher Role = 2
)

// Hello is what each side sends first.
type Hello struct {
	KeyID       uint8 // of the frames that its sender will send; 0: unsigned
	Role        Role
	Node        uint64
	Incarnation uint64
	Group       uint64 // digest of protocol and group
	Nonce       [NonceLen]byte
}

// Errors of hellos.
var (
	ErrMagic   = errors.New("hello of another protocol")
	ErrVersion = errors.New("hello of an unknown format version")
	ErrHello   = errors.New("hello malformed")
)

// AppendHello appends the encoded hello.
func AppendHello(b []byte, h *Hello) []byte {
	b = append(b, magic[:]...)
	b = append(b, FormatVersion, h.KeyID, uint8(h.Role), 0)
	b = binary.BigEndian.AppendUint64(b, h.Node)
	b = binary.BigEndian.AppendUint64(b, h.Incarnation)
	b = binary.BigEndian.AppendUint64(b, h.Group)
	return append(b, h.Nonce[:]...)
}

// ParseHello reads the hello that fills b.
func ParseHello(b []byte) (Hello, error) {
	if len(b) != HelloLen || [4]byte(b[:4]) != magic {
		return Hello{}, ErrMagic
	}
	if b[4] != FormatVersion {
		return Hello{}, ErrVersion
	}
	h := Hello{
		KeyID:       b[5],
		Role:        Role(b[6]),
		Node:        binary.BigEndian.Uint64(b[8:]),
		Incarnation: binary.BigEndian.Uint64(b[16:]),
		Group:       binary.BigEndian.Uint64(b[24:]),
		Nonce:       [NonceLen]byte(b[32:]),
	}
	if h.Role != RoleClient && h.Role != RoleTeacher || b[7] != 0 || h.Incarnation == 0 {
		return Hello{}, ErrHello
	}
	return h, nil
}
