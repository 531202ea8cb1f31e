package seal

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
)

// Stream authenticates what goes in one direction over one connection. Each message is bound to its number, so that none can be left out,
// repeated or moved. It is not safe for concurrent use.
type Stream struct {
	mac  hash.Hash
	next uint64 // number of the next message, from 0
	head [8]byte
	sum  [sha256.Size]byte
}

// Stream derives the key of one direction from the ring's key id: salt is what both sides contributed at random, info says which
// direction of which connection. It leaves the ring as it is and may be called concurrently with anything. It fails with ErrUnknownKey.
func (r *Ring) Stream(id uint8, salt []byte, info string) (*Stream, error) {
	if r.keys[id] == nil {
		return nil, ErrUnknownKey
	}
	key, err := hkdf.Key(sha256.New, r.keys[id], salt, info, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive key of a connection: %w", err)
	}
	return &Stream{mac: hmac.New(sha256.New, key)}, nil
}

// tag returns the tag of b as the next message.
func (s *Stream) tag(b []byte) []byte {
	binary.BigEndian.PutUint64(s.head[:], s.next)
	s.next++
	s.mac.Reset()
	s.mac.Write(s.head[:])
	s.mac.Write(b)
	return s.mac.Sum(s.sum[:0])[:TagLen]
}

// Seal writes the tag of the next message into the last TagLen bytes of b.
func (s *Stream) Seal(b []byte) {
	body := len(b) - TagLen
	copy(b[body:], s.tag(b[:body]))
}

// Open checks the tag in the last TagLen bytes of the next message. After ErrForged nothing of the connection can be believed any more.
func (s *Stream) Open(b []byte) error {
	if len(b) < TagLen {
		return ErrForged
	}
	body := len(b) - TagLen
	if !hmac.Equal(s.tag(b[:body]), b[body:]) {
		return ErrForged
	}
	return nil
}
