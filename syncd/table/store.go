package table

import "hash/maphash"

const (
	entryChunk = 1 << 12 // entries; of IPv4 288 KiB
	wheelSlots = 1024    // seconds per turn; what expires later stays in its slot for another turn
	none       = 0       // index 0 is no entry
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

// entry is one connection. No pointers; 72 bytes for IPv4. What a look-up reads comes first, so that it mostly lies in one cache line.
type entry[A address] struct {
	key[A]
	origin      uint16 // index into Table.origins
	real        A
	realPort    uint16
	state       uint8 // the low half; an entry whose state needs more has extras
	extras      bool  // Table.extras has more of it
	flags       uint32
	fwmark      uint32
	timeout     uint32 // seconds, of the record
	expires     uint32 // seconds since Table.epoch
	next, prev  uint32 // in the wheel's slot
	after, fore uint32 // in the bucket's list; after is the next free entry while unused
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

	index index

	wheel [wheelSlots]uint32
	swept uint32 // the second up to which the wheel has been swept

	buckets [Buckets]uint32 // the first entry of each bucket's list
	sizes   [Buckets]uint32 // how many it has

	ahead ahead
}

func newStore[A address](now uint32) *store[A] {
	return &store[A]{seed: maphash.MakeSeed(), index: newIndex(), used: 1, swept: now}
}

func (s *store[A]) at(i uint32) *entry[A] { return &s.entries[i/entryChunk][i%entryChunk] }

func (s *store[A]) hash(k *key[A]) uint32 { return uint32(maphash.Comparable(s.seed, *k)) }

// find returns the index of the entry with this key, or none.
func (s *store[A]) find(k *key[A], h uint32) uint32 {
	i := s.index.first(h)
	for i != none && s.at(i).key != *k {
		i = s.index.next(h, i)
	}
	return i
}

// insert adds an entry for a key that is not there to index and bucket and returns its own index, or none if there is no room. The caller fills it and
// puts it into the wheel.
func (s *store[A]) insert(k *key[A], h uint32, bucket uint16) uint32 {
	i := s.free
	if i != none {
		s.free = s.at(i).after
	} else {
		i = s.used
		s.used++
		if int(i/entryChunk) >= len(s.entries) {
			s.entries = append(s.entries, make([]entry[A], entryChunk))
		}
	}
	if !s.index.add(h, i) {
		s.at(i).after, s.free = s.free, i
		return none
	}
	first := &s.buckets[bucket]
	*s.at(i) = entry[A]{key: *k, after: *first}
	if *first != none {
		s.at(*first).fore = i
	}
	*first = i
	s.sizes[bucket]++
	s.count++
	return i
}

// remove takes entry i out of index, wheel and bucket and frees it.
func (s *store[A]) remove(i uint32) {
	e := s.at(i)
	s.index.remove(s.hash(&e.key), i)
	s.unlink(i)
	bucket := e.bucket()
	s.sizes[bucket]--
	if e.fore != none {
		s.at(e.fore).after = e.after
	} else {
		s.buckets[bucket] = e.after
	}
	if e.after != none {
		s.at(e.after).fore = e.fore
	}
	*e = entry[A]{after: s.free}
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
