package flow

import (
	"encoding/binary"
	"math/bits"
)

// jhashStart is JHASH_INITVAL of include/linux/jhash.h.
const jhashStart = 0xdeadbeef

// block is how many bytes jhash takes in at once.
const block = 12

// jhash is the kernel's function of that name: lookup3 by Bob Jenkins (2006), with a seed. All but the last 1 to 12 bytes are read as words
// of the machine's byte order, the last ones as little-endian words on every machine.
func jhash(k []byte, seed uint32) uint32 {
	a := jhashStart + uint32(len(k)) + seed
	b, c := a, a
	for len(k) > block {
		a += binary.NativeEndian.Uint32(k)
		b += binary.NativeEndian.Uint32(k[4:])
		c += binary.NativeEndian.Uint32(k[8:])
		a, b, c = mix(a, b, c)
		k = k[block:]
	}
	if len(k) == 0 {
		return c
	}
	var last [block]byte
	copy(last[:], k)
	a += binary.LittleEndian.Uint32(last[0:])
	b += binary.LittleEndian.Uint32(last[4:])
	c += binary.LittleEndian.Uint32(last[8:])
	return final(a, b, c)
}

// mix stirs three words reversibly between two blocks.
func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a -= c
	a ^= bits.RotateLeft32(c, 4)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 6)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 8)
	b += a
	a -= c
	a ^= bits.RotateLeft32(c, 16)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 19)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

// final makes the hash of what the last block left.
func final(a, b, c uint32) uint32 {
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c
}
