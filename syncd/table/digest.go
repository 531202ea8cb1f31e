package table

import (
	"encoding/binary"

	"saru/lib/peer"
	"saru/proto/ipvssync"
)

// digestMargin is how long before its end an entry ceases to count for digests, in microseconds. A cut lies 2 s in the past, which leaves
// 2 s between the end of the counting and the first time at which a director may drop the entry.
const digestMargin = 4e6

// digestAlive is how many seconds an entry must have left here to count although, by its stamp, it has ended. Stamps age all at once
// when a director joins whose clock is hours ahead: the hybrid clock leaps. Replicas agree on what is left to a second or two.
const digestAlive = 30

// Digest returns the sum over the entries of a bucket that count at a time of the hybrid clock, in microseconds, and their number. An
// entry's part in it, and as a rule whether it has one, follows from what its origin said alone: replicas that hold the same have the same
// digest, in whatever order and at whatever time of their own clocks they learned it, on every kind of machine. A later update of a connection
// does take its earlier state out of the sum of an earlier cut: two directors of which only one knows of it yet differ. The exception is what
// a leap of the hybrid clock has aged (digestAlive): near that bound replicas differ for a second or two.
func (t *Table) Digest(bucket uint16, cut uint64) (sum uint64, count uint32) {
	if bucket >= Buckets {
		return 0, 0
	}
	sum4, count4 := digest(t, t.v4, bucket, cut)
	sum6, count6 := digest(t, t.v6, bucket, cut)
	return sum4 + sum6, count4 + count6
}

func digest[A address](t *Table, s *store[A], bucket uint16, cut uint64) (sum uint64, count uint32) {
	for i := s.buckets[bucket]; i != none; i = s.at(i).after {
		if part, ok := digestOf(t, s, i, cut); ok {
			sum += part
			count++
		}
	}
	return sum, count
}

// digestOf returns the part of entry i, if it counts.
func digestOf[A address](t *Table, s *store[A], i uint32, cut uint64) (part uint64, ok bool) {
	e := s.at(i)
	if !counts(e.clock, e.timeout, cut) && (e.clock > cut || e.expires <= s.swept+digestAlive) {
		return 0, false
	}
	var x *extra
	if e.extras {
		v := t.extras[extraKey{len(e.real) == 16, i}]
		x = &v
	}
	return e.digest(t.origins[e.origin].id, x), true
}

// DigestStep is Digest of a bucket with too many entries to be gone through at once. It looks at up to limit places from the cursor on; the steps of a whole
// walk add up to what Digest returns, but for what changes meanwhile.
func (t *Table) DigestStep(c Cursor, limit int, bucket uint16, cut uint64) (sum uint64, count uint32, next Cursor) {
	if !c.v6 {
		var more bool
		if sum, count, c.next, limit, more = digestStep(t, t.v4, c.next, limit, bucket, cut); more {
			return sum, count, c
		}
		c = Cursor{v6: true}
	}
	sum6, count6, at, _, more := digestStep(t, t.v6, c.next, limit, bucket, cut)
	return sum + sum6, count + count6, Cursor{v6: true, next: at, Done: !more}
}

func digestStep[A address](t *Table, s *store[A], i uint32, limit int, bucket uint16, cut uint64) (sum uint64, count, next uint32, left int, more bool) {
	for i = max(i, 1); i < s.used; i++ {
		if limit--; limit < 0 {
			return sum, count, i, 0, true
		}
		e := s.at(i)
		if e.clock == 0 || e.bucket() != bucket { // unused, see walk; or another one's
			continue
		}
		if part, ok := digestOf(t, s, i, cut); ok {
			sum += part
			count++
		}
	}
	return sum, count, i, limit, false
}

// counts is clock <= cut and clock + timeout > cut + digestMargin, without overflow.
func counts(clock uint64, timeout uint32, cut uint64) bool {
	life := uint64(timeout) * 1e6
	return clock <= cut && life > digestMargin && cut-clock < life-digestMargin
}

// digest returns the entry's part of the sum. All directors of a farm must compute the same: a change of this is a change of the protocol.
func (e *entry[A]) digest(origin peer.ID, x *extra) uint64 {
	state := uint16(e.state)
	if x != nil {
		state = x.state
	}
	h := stir(digestSeed, uint64(len(e.real))<<56|uint64(e.protocol)<<48|uint64(state)<<16|uint64(e.realPort))
	h = stir(h, uint64(e.clientPort)<<48|uint64(e.virtualPort)<<32|uint64(e.flags)) // whether it is a template is one of the flags
	h = stir(h, uint64(e.fwmark)<<32|uint64(e.timeout))
	h = stir(h, e.grant)
	h = stir(h, e.clock)
	h = stir(h, uint64(origin))
	if len(e.real) == 4 {
		h = stir(h, uint64(half(e.client, 0))<<32|uint64(half(e.virtual, 0)))
		h = stir(h, uint64(half(e.real, 0)))
	} else {
		for _, a := range [...]A{e.client, e.virtual, e.real} {
			h = stir(h, uint64(half(a, 0))<<32|uint64(half(a, 4)))
			h = stir(h, uint64(half(a, 8))<<32|uint64(half(a, 12)))
		}
	}
	if x != nil {
		h = x.digest(h)
	}
	return h
}

// half returns 4 bytes of an address as half a word.
func half[A address](a A, at int) uint32 {
	return uint32(a[at])<<24 | uint32(a[at+1])<<16 | uint32(a[at+2])<<8 | uint32(a[at+3])
}

// digest stirs in what few entries have.
func (x *extra) digest(h uint64) uint64 {
	what := uint64(len(x.peName))<<32 | uint64(len(x.peData))
	if x.seq {
		what |= 1 << 63
	}
	h = stir(h, what)
	if x.seq {
		for _, q := range [...]*ipvssync.Seq{&x.in, &x.out} {
			h = stir(h, uint64(q.Init)<<32|uint64(q.Delta))
			h = stir(h, uint64(q.PrevDelta))
		}
	}
	for _, s := range [...]string{x.peName, x.peData} {
		for len(s) > 0 {
			var word [8]byte
			s = s[copy(word[:], s):]
			h = stir(h, binary.BigEndian.Uint64(word[:]))
		}
	}
	return h
}

// digestSeed is where an entry's digest begins: the fraction of the golden ratio, anything but 0.
const digestSeed = 0x9e3779b97f4a7c15

// stir takes a word into a digest. For a given h it is a permutation of the words, and the other way round, so that entries that differ in one
// word only never have the same digest; each bit of either changes about half of the result's (Stafford's variant 13 of MurmurHash3's finalizer).
func stir(h, word uint64) uint64 {
	h ^= word
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
