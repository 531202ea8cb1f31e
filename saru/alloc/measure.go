package alloc

import "math"

// Change says what differs between two allocations.
type Change struct {
	Moved  int // buckets that had an owner and have another one, or none
	Filled int // buckets that had no owner and have one
	ToNext int // of both, those that went to their next owner
	Next   int // buckets that had a next owner and have another one, or none
}

// Compare counts what changed from an allocation to another of the same members. Who calls it after somebody has left compares either with
// None in place of the leaver (its buckets are Filled), or with an index that nobody else has (Moved).
func Compare(owner, next, newOwner, newNext []uint8) Change {
	var c Change
	for b := range owner {
		if newOwner[b] != owner[b] {
			if owner[b] == None {
				c.Filled++
			} else {
				c.Moved++
			}
			if newOwner[b] != None && newOwner[b] == next[b] {
				c.ToNext++
			}
		}
		if next[b] != None && newNext[b] != next[b] {
			c.Next++
		}
	}
	return c
}

// Balance says how an allocation lies on its directors.
type Balance struct {
	Owned, Next []int // buckets that each director owns, and of which it is next owner
	Unowned     int   // buckets without an owner
	// Deviation is the largest difference, in buckets, between what a director owns and its exact share. Less than 1 after Allocate, unless all
	// directors are drained: then the exact share is an equal one, and what Allocate leaves where it was may lie anyhow.
	Deviation float64
}

// Measure counts what each director owns.
func Measure(owner, next []uint8, weights []uint32) Balance {
	n := len(weights)
	b := Balance{Owned: make([]int, n), Next: make([]int, n)}
	for i, o := range owner {
		if int(o) < n {
			b.Owned[o]++
		} else {
			b.Unowned++
		}
		if int(next[i]) < n {
			b.Next[next[i]]++
		}
	}
	if allDrained(weights) {
		weights = equal(n, n)
	}
	total := 0.0
	for _, w := range weights {
		total += float64(w)
	}
	for i, w := range weights {
		b.Deviation = max(b.Deviation, math.Abs(float64(b.Owned[i])-float64(len(owner))*float64(w)/total))
	}
	return b
}
