package table

import "saru/proto/ipvssync"

// aheadMost is how many records are looked ahead at once. Their entries, two cache lines each and the same again for their neighbours, are
// to stay in a cache of 512 KiB until their turn comes.
const aheadMost = 512

// ahead is the records that will be looked up next. A replica is much larger than the processor's caches, so that a look-up waits for
// memory twice or three times in a row, which is most of what a record costs. The waits of many records at the same time cost little more
// than those of one: a short loop of loads that do not depend on one another keeps many of them under way.
type ahead struct {
	hash [aheadMost]uint32
	at   [aheadMost]uint32 // indexes of entries
	n    int
	sum  uint32 // of what was loaded, so that the loads are not optimised away

	next, fetched int // of what is noted above: which one comes next, of how many
}

// Expect notes that the entry with the key of r will be looked up or put soon, and reports whether there is room for more such notes.
// That is a hint: nothing depends on it.
func (t *Table) Expect(r *ipvssync.Record) bool {
	if r.Client.Addr().Is4() {
		k := keyOf4(r)
		return t.v4.expect(&k)
	}
	k := keyOf6(r)
	return t.v6.expect(&k)
}

// Fetch has the processor load what was noted by Expect, and forgets it.
func (t *Table) Fetch() {
	t.v4.fetch()
	t.v6.fetch()
}

func (s *store[A]) expect(k *key[A]) bool {
	a := &s.ahead
	a.fetched = 0
	if a.n < aheadMost {
		a.hash[a.n] = s.hash(k)
		a.n++
	}
	return a.n < aheadMost
}

func (s *store[A]) fetch() {
	a := &s.ahead
	n := a.n
	a.n, a.next, a.fetched = 0, 0, n
	if n < 2 {
		a.fetched = 0
		return
	}
	sum := a.sum
	for _, h := range a.hash[:n] {
		sum += s.index.of(h).places[home(h)].hash
	}
	for i, h := range a.hash[:n] {
		a.at[i] = s.index.first(h)
	}
	for _, at := range a.at[:n] {
		if at != none {
			e := s.at(at)
			sum += uint32(e.protocol) + uint32(e.clock) // of both lines
		}
	}
	for _, at := range a.at[:n] {
		if at != none {
			e := s.at(at)
			sum += s.at(e.next).next + s.at(e.prev).next // it may move to another slot of the wheel
		}
	}
	a.sum = sum
}

// look returns the index of the entry with this key, or none and the key's hash. What was fetched comes in the order in which it was
// noted, now and then several times or not at all; there the entry is known without its hash, which is a tenth of what a record costs.
func (s *store[A]) look(k *key[A]) (i, h uint32) {
	a := &s.ahead
	for n := a.next; n < min(a.next+2, a.fetched); n++ {
		if i := a.at[n]; i != none {
			if e := s.at(i); e.key == *k && e.clock != 0 { // not one that has been freed meanwhile
				a.next = n
				return i, 0
			}
		}
	}
	h = s.hash(k)
	for n := a.next; n < min(a.next+4, a.fetched); n++ {
		if a.hash[n] == h {
			a.next = n
			break
		}
	}
	return s.find(k, h), h
}
