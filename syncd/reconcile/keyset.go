package reconcile

import "math/bits"

// keySet is a set of hashes of 64 bits. It is made of shards, each a table of open addressing that grows by a quarter at a time, so
// that a million hashes take about 12 bytes each and growing needs no room to speak of. Two keys with one hash are taken for one:
// for a million keys that happens once in tens of millions of passes.
type keySet struct {
	shards [256]shard
	count  int
}

type shard struct {
	slots []uint64 // 0: free
	used  int
}

// firstSlots is how many slots a shard begins with.
const firstSlots = 16

// add puts a hash in and reports whether it was not there.
func (s *keySet) add(h uint64) bool {
	h = nonzero(h)
	sh := &s.shards[h>>56]
	if sh.used*5 >= len(sh.slots)*4 { // at most four fifths are in use
		sh.grow()
	}
	i := sh.find(h)
	if sh.slots[i] == h {
		return false
	}
	sh.slots[i] = h
	sh.used++
	s.count++
	return true
}

// has reports whether a hash is there.
func (s *keySet) has(h uint64) bool {
	h = nonzero(h)
	sh := &s.shards[h>>56]
	return len(sh.slots) > 0 && sh.slots[sh.find(h)] == h
}

func nonzero(h uint64) uint64 { return max(h, 1) }

// find returns the slot that has the hash, or the one that it belongs into.
func (sh *shard) find(h uint64) int {
	n := uint64(len(sh.slots))
	at, _ := bits.Mul64(h<<8, n) // the low 56 bits, scaled to the number of slots
	for sh.slots[at] != 0 && sh.slots[at] != h {
		if at++; at == n {
			at = 0
		}
	}
	return int(at)
}

func (sh *shard) grow() {
	old := sh.slots
	sh.slots = make([]uint64, max(firstSlots, len(old)+len(old)/4))
	for _, h := range old {
		if h != 0 {
			sh.slots[sh.find(h)] = h
		}
	}
}
