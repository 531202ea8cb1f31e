package alloc

import "slices"

// None is the owner or next owner of a bucket that has none. So there can be 255 directors.
const None = 255

// Allocate gives each bucket an owner and a next owner.
//
// owner and next are the present allocation, one element a bucket, as indexes into weights; None, or an index beyond weights, is nobody, or
// somebody who has left. weights has an element for each director; 0 means that it is drained: it owns nothing, and is a next owner only where
// nobody else is left. The results are new slices.
//
// If every director is drained, the farm must go on: what has an owner stays there, what has none is divided among all in equal numbers. The caller
// raises the alarm. Without directors the results hold nothing but None.
func Allocate(owner, next []uint8, weights []uint32) (newOwner, newNext []uint8) {
	weights = weights[:min(len(weights), None)]
	n := len(weights)
	drained := allDrained(weights)
	owner, next = indexed(owner, len(owner), n), indexed(next, len(owner), n)
	for b, o := range owner {
		if int(o) < n && weights[o] == 0 && !drained {
			owner[b] = uint8(n)
		}
	}
	newOwner = place(owner, next, weights)
	newNext = follow(owner, newOwner, next, weights)
	for b := range newOwner {
		newOwner[b], newNext[b] = orNone(newOwner[b], n), orNone(newNext[b], n)
	}
	return newOwner, newNext
}

// indexed copies size elements, with n for nobody, so that it can be the last row or column of a matrix.
func indexed(a []uint8, size, n int) []uint8 {
	out := make([]uint8, size)
	for b := range out {
		out[b] = uint8(n)
		if b < len(a) {
			out[b] = min(a[b], uint8(n))
		}
	}
	return out
}

func orNone(director uint8, n int) uint8 {
	if int(director) < n {
		return director
	}
	return None
}

func allDrained(weights []uint32) bool {
	return !slices.ContainsFunc(weights, func(w uint32) bool { return w > 0 })
}

// equal gives all the same weight, except one (n: no exception).
func equal(n, except int) []uint32 {
	weights := make([]uint32, n)
	for i := range weights {
		if i != except {
			weights[i] = 1
		}
	}
	return weights
}

// cells counts buckets by owner (rows) and next owner (columns). The last row and the last column are nobody's.
type cells struct {
	n     int // directors
	count []int
}

func newCells(n int) cells { return cells{n, make([]int, (n+1)*(n+1))} }

func (c cells) row(owner int) []int { return c.count[owner*(c.n+1) : (owner+1)*(c.n+1)] }

func countCells(owner, next []uint8, n int) cells {
	c := newCells(n)
	for b, o := range owner {
		c.count[int(o)*(n+1)+int(next[b])]++
	}
	return c
}

// owned counts the buckets of each director.
func owned(owner []uint8, n int) []int {
	have := make([]int, n+1)
	for _, o := range owner {
		have[o]++
	}
	return have[:n]
}

// shares divides buckets in proportion to weights: each director gets the integer below its exact share or the one above. Rounded up are,
// in this order: who has more than the integer below already; who has it with what it claims (buckets to be given away whose next owner it is);
// the largest remainder; who comes first, counted from the index first on.
func shares(buckets int, weights []uint32, have, claims []int, first int) []int {
	want := make([]int, len(weights))
	total, left := uint64(0), buckets
	for _, w := range weights {
		total += uint64(w)
	}
	if total == 0 {
		return want
	}
	// A key holds the order above: 2 bits, the remainder (less than 255 * 2^32: 40 bits), the index (8 bits).
	keys := make([]uint64, 0, len(weights))
	for i, w := range weights {
		product := uint64(buckets) * uint64(w)
		floor := product / total
		want[i] = int(floor)
		left -= want[i]
		remainder := product - floor*total
		if remainder == 0 {
			continue
		}
		place := i - first
		if place < 0 {
			place += len(weights)
		}
		key := remainder<<8 | uint64(None-place)
		switch {
		case have[i] > want[i]:
			key |= 2 << 60
		case have[i]+claims[i] > want[i]:
			key |= 1 << 60
		}
		keys = append(keys, key)
	}
	// The remainders add up to left * total and each is less than total, so there are more keys than left.
	slices.Sort(keys)
	for _, key := range keys[len(keys)-left:] {
		place := None - int(key&0xff)
		want[(place+first)%len(weights)]++
	}
	return want
}

// place finds the new owners.
func place(owner, next []uint8, weights []uint32) []uint8 {
	n := len(weights)
	present := countCells(owner, next, n)
	have := owned(owner, n)
	claims := present.row(n)[:n]
	lack, surplus := make([]int, n), make([]int, n)
	if allDrained(weights) {
		lack = shares(len(owner)-sum(have), equal(n, n), make([]int, n), claims, 0)
	} else {
		for i, want := range shares(len(owner), weights, have, claims, 0) {
			lack[i], surplus[i] = max(0, want-have[i]), max(0, have[i]-want)
		}
	}

	give := newCells(n) // how many of a cell go to the cell's next owner
	for i, claim := range claims {
		x := min(claim, lack[i])
		give.row(n)[i], lack[i] = x, lack[i]-x
	}
	handToNext(surplus, lack, present, give)
	spare := newCells(n) // how many of a cell go to anybody
	copy(spare.row(n), present.row(n))
	for s := range n {
		takeEvenly(surplus[s], present.row(s), give.row(s), spare.row(s), weights)
	}

	out := slices.Clone(owner)
	to := 0
	for b, o := range owner {
		i := next[b]
		switch {
		case give.row(int(o))[i] > 0:
			give.row(int(o))[i]--
			out[b] = i
		case spare.row(int(o))[i] > 0:
			spare.row(int(o))[i]--
			for to < n && lack[to] == 0 {
				to++
			}
			if to < n {
				lack[to]--
			}
			out[b] = uint8(to)
		}
	}
	return out
}

func sum(a []int) int {
	total := 0
	for _, x := range a {
		total += x
	}
	return total
}

// takeEvenly adds k buckets of an owner's row to spare, from where most are left in proportion to the weight of the next owner: so what
// stays, and what goes, still has next owners in proportion, and few of them change.
func takeEvenly(k int, present, give, spare []int, weights []uint32) {
	left := make([]int, len(present))
	for i := range present {
		left[i] = present[i] - give[i]
	}
	weight := func(i int) uint64 {
		if i < len(weights) {
			return uint64(weights[i])
		}
		return 0
	}
	for range k {
		best := -1
		for i, l := range left {
			// Without weight: the next owner must change anyway, so these go first.
			if l > 0 && (best < 0 || uint64(l)*weight(best) > uint64(left[best])*weight(i)) {
				best = i
			}
		}
		left[best]--
		spare[best]++
	}
}

// follow finds the new next owners. former are the owners before.
func follow(former, owner, next []uint8, weights []uint32) []uint8 {
	n := len(weights)
	present := countCells(owner, next, n)
	have := owned(owner, n)
	room := newCells(n)
	for o := range n {
		if have[o] > 0 {
			copy(room.row(o), heirs(o, len(owner), have, present.row(o)[:n], weights))
		}
	}

	out := make([]uint8, len(owner))
	for b, o := range owner { // who still fits stays
		out[b] = uint8(n)
		if i := next[b]; room.row(int(o))[i] > 0 {
			room.row(int(o))[i]--
			out[b] = i
		}
	}
	for b, o := range owner { // the former owner has the state too
		if i := former[b]; int(out[b]) == n && room.row(int(o))[i] > 0 {
			room.row(int(o))[i]--
			out[b] = i
		}
	}
	to := make([]int, n+1)
	for b, o := range owner {
		row := room.row(int(o))
		if int(out[b]) < n {
			continue
		}
		for to[o] < n && row[to[o]] == 0 {
			to[o]++
		}
		if to[o] < n {
			row[to[o]]--
		}
		out[b] = uint8(to[o])
	}
	return out
}

// heirs says of how many of o's buckets each director is to be next owner: what it would lack if o left. have is what everybody owns, kept
// of how many of o's it is next owner now.
func heirs(o, buckets int, have, kept []int, weights []uint32) []int {
	n := len(weights)
	others := slices.Clone(weights)
	others[o] = 0
	if allDrained(others) {
		return shares(have[o], equal(n, o), make([]int, n), kept, o+1)
	}
	need := shares(buckets, others, have, kept, o+1)
	excess := -have[o]
	for i := range need {
		need[i] = max(0, need[i]-have[i])
		excess += need[i]
	}
	// Where rounding would take a bucket from a survivor too (package comment), the others lack more than o has.
	for excess > 0 {
		for i := range need {
			if excess > 0 && need[i] > kept[i] {
				need[i]--
				excess--
			}
		}
	}
	return need
}
