package seal

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
)

// TagLen is the length of a tag in bytes: HMAC-SHA256 truncated to 128 bits (RFC 2104 section 5, as keepalived's auth_hmac).
const TagLen = 16

// Errors of Verify.
var (
	ErrUnknownKey = errors.New("unknown key id")
	ErrForged     = errors.New("authentication tag is wrong")
)

// Ring holds the keys of one protocol on one group, derived from the key file. It is not safe for concurrent use, as the hash
// states are reused so that signing does not allocate: give each goroutine its Clone.
type Ring struct {
	signer uint8
	keys   [256][]byte // derived; nil: unknown
	macs   [256]hash.Hash
	sum    [sha256.Size]byte
}

// NewRing derives the keys for a protocol ("syncd", "saru") on a group ("224.0.0.81:8848"), so that a datagram of one protocol or
// farm is never valid in another that shares the key file. keys[0] signs.
func NewRing(keys []Key, protocol, group string) (*Ring, error) {
	if len(keys) == 0 {
		return nil, fmt.Errorf("derive keys: %w: no key", ErrKeyFile)
	}
	r := &Ring{signer: keys[0].ID}
	for _, k := range keys {
		info := fmt.Sprintf("saru 1 %s %s key %d", protocol, group, k.ID)
		d, err := hkdf.Key(sha256.New, k.Secret, nil, info, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("derive key %d: %w", k.ID, err)
		}
		r.keys[k.ID] = d
	}
	return r, nil
}

// Clone returns a ring with the same keys for another goroutine.
func (r *Ring) Clone() *Ring { return &Ring{signer: r.signer, keys: r.keys} }

// Signer returns the id of the key that signs.
func (r *Ring) Signer() uint8 { return r.signer }

func (r *Ring) mac(id uint8, b []byte) ([]byte, bool) {
	if r.keys[id] == nil {
		return nil, false
	}
	h := r.macs[id]
	if h == nil {
		h = hmac.New(sha256.New, r.keys[id])
		r.macs[id] = h
	}
	h.Reset()
	h.Write(b)
	return h.Sum(r.sum[:0])[:TagLen], true
}

// Sign writes the tag over b, without its last TagLen bytes, into these bytes. The message must name Signer as its key id.
func (r *Ring) Sign(b []byte) {
	body, tag := b[:len(b)-TagLen], b[len(b)-TagLen:]
	sum, _ := r.mac(r.signer, body)
	copy(tag, sum)
}

// Verify checks the tag in the last TagLen bytes of b under the key with this id. It returns nil, ErrUnknownKey or ErrForged.
func (r *Ring) Verify(id uint8, b []byte) error {
	if len(b) < TagLen {
		return ErrForged
	}
	sum, ok := r.mac(id, b[:len(b)-TagLen])
	if !ok {
		return ErrUnknownKey
	}
	if !hmac.Equal(sum, b[len(b)-TagLen:]) {
		return ErrForged
	}
	return nil
}
