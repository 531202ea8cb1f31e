package table

import (
	"hash/maphash"
)

// Chunk sizes, in elements: 64 Ki heads are 256 KiB, 4 Ki IPv4 entries 320 KiB.
const (
	headChunk  = 1 << 16
	entryChunk = 1 << 12
	wheelSlots = 1024 // seconds per turn; what expires later stays in its slot for another turn
	none       = 0    // index 0 is no entry
)

// address is the form in which a family's addresses are kept.
type address interface{ ~[4]byte | ~[16]byte }

// key is what the kernel looks a connection up by. It has no padding (maphash.Comparable would hash it field by field anyway).
type key[A address] struct {
	client, virtual         A
	clientPort, virtualPort uint16
	protocol                uint8
	template                bool
}

// entry is one connection. No pointers; 80 bytes for IPv4. What a look-up reads comes first, so that it mostly lies in one cache line.
type entry[A address] struct {
	key[A]
	origin      uint16 // index into Table.origins
	hash        uint32 // low half, so that the index grows without reading keys
	chain       uint32 // next entry of the same head; next free one while unused
	real        A
	realPort    uint16
	state       uint8 // the low half; an entry whose state needs more has extras
	extras      bool  // Table.extras has more of it
	flags       uint32
	fwmark      uint32
	timeout     uint32 // seconds, of the record
	expires     uint32 // seconds since Table.epoch
	next, prev  uint32 // in the wheel's slot
	after, fore uint32 // in the bucket's list
	grant       uint64
	clock       uint64
}

// store holds the entries of one family.
type store[A address] struct {
	seed    maphash.Seed
	entries [][]entry[A]
	free    uint32
	used    uint32 // entries ever handed out, entry 0 included
	count   int

	// Linear hashing (Litwin 1980): 1<<level heads and split more. Head i below split has been split into i and i + 1<<level.
	heads [][]uint32
	level uint
	split uint32

	wheel [wheelSlots]uint32
	swept uint32 // the second up to which the wheel has been swept

	buckets [Buckets]uint32 // the first entry of each bucket's list

	ahead ahead
}

func newStore[A address](now uint32) *store[A] {
	return &store[A]{seed: maphash.MakeSeed(), heads: [][]uint32{make([]uint32, headChunk)}, level: 10, used: 1, swept: now}
}

func (s *store[A]) at(i uint32) *entry[A] { return &s.entries[i/entryChunk][i%entryChunk] }

func (s *store[A]) head(i uint32) *uint32 { return &s.heads[i/headChunk][i%headChunk] }

func (s *store[A]) hash(k *key[A]) uint32 { return uint32(maphash.Comparable(s.seed, *k)) }

// slot returns the head that a hash belongs to.
func (s *store[A]) slot(h uint32) uint32 {
	i := h & (2<<s.level - 1)
	if i >= 1<<s.level+s.split {
		i = h & (1<<s.level - 1)
	}
	return i
}

// find returns the index of the entry with this key, or none.
func (s *store[A]) find(k *key[A], h uint32) uint32 {
	for i := *s.head(s.slot(h)); i != none; {
		e := s.at(i)
		if e.hash == h && e.key == *k {
			return i
		}
		i = e.chain
	}
	return none
}

// insert adds an entry for a key that is not there to index and bucket and returns its own index. The caller fills it and puts it into the
// wheel.
func (s *store[A]) insert(k *key[A], h uint32, bucket uint16) uint32 {
	i := s.free
	if i != none {
		s.free = s.at(i).chain
	} else {
		i = s.used
		s.used++
		if int(i/entryChunk) >= len(s.entries) {
			s.entries = append(s.entries, make([]entry[A], entryChunk))
		}
	}
	head := s.head(s.slot(h))
	first := &s.buckets[bucket]
	*s.at(i) = entry[A]{key: *k, hash: h, chain: *head, after: *first}
	if *first != none {
		s.at(*first).fore = i
	}
	*head, *first = i, i
	if s.count++; uint32(s.count) > 1<<s.level+s.split {
		s.grow()
	}
	return i
}

// grow splits one head.
func (s *store[A]) grow() {
	high := 1<<s.level + s.split
	if int(high/headChunk) >= len(s.heads) {
		s.heads = append(s.heads, make([]uint32, headChunk))
	}
	low, lowHead, highHead := s.split, uint32(none), uint32(none)
	for i := *s.head(low); i != none; {
		e := s.at(i)
		i2 := e.chain
		if e.hash&(1<<s.level) != 0 {
			e.chain, highHead = highHead, i
		} else {
			e.chain, lowHead = lowHead, i
		}
		i = i2
	}
	*s.head(low), *s.head(high) = lowHead, highHead
	if s.split++; s.split == 1<<s.level {
		s.split = 0
		s.level++
	}
}

// remove takes entry i out of index, wheel and bucket and frees it.
func (s *store[A]) remove(i uint32) {
	e := s.at(i)
	p := s.head(s.slot(e.hash))
	for *p != i {
		p = &s.at(*p).chain
	}
	*p = e.chain
	s.unlink(i)
	if e.fore != none {
		s.at(e.fore).after = e.after
	} else {
		s.buckets[e.bucket()] = e.after
	}
	if e.after != none {
		s.at(e.after).fore = e.fore
	}
	*e = entry[A]{chain: s.free}
	s.free = i
	s.count--
}

// link puts entry i into the slot of its expiry.
func (s *store[A]) link(i uint32) {
	e := s.at(i)
	slot := &s.wheel[e.expires%wheelSlots]
	e.next, e.prev = *slot, none
	if *slot != none {
		s.at(*slot).prev = i
	}
	*slot = i
}

func (s *store[A]) unlink(i uint32) {
	e := s.at(i)
	if e.prev != none {
		s.at(e.prev).next = e.next
	} else {
		s.wheel[e.expires%wheelSlots] = e.next
	}
	if e.next != none {
		s.at(e.next).prev = e.prev
	}
	e.next, e.prev = none, none
}

// sweep removes what has expired until second now, and calls gone for each index before it is freed.
func (s *store[A]) sweep(now uint32, gone func(i uint32, e *entry[A])) {
	from := s.swept
	if now-from > wheelSlots {
		from = now - wheelSlots
	}
	for ; from <= now; from++ {
		for i := s.wheel[from%wheelSlots]; i != none; {
			e := s.at(i)
			next := e.next
			if e.expires <= now {
				gone(i, e)
				s.remove(i)
			}
			i = next
		}
	}
	s.swept = now
}
