package alloc

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// handToNext keeps the limits, and gives as much as a plain matching of single buckets does.
func TestHandToNext(t *testing.T) {
	const most = 5
	for seed := range uint64(5000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		n := 2 + rnd.IntN(6)
		present, give := newCells(n), newCells(n)
		surplus, lack := make([]int, n), make([]int, n)
		for s := range n {
			// A director has a surplus, or lacks some.
			if rnd.IntN(2) == 0 {
				surplus[s] = rnd.IntN(most + 1)
			} else {
				lack[s] = rnd.IntN(most + 1)
			}
			for i := range n {
				present.row(s)[i] = max(0, rnd.IntN(2*most)-most)
			}
		}
		want := match(surplus, lack, present)
		surplusLeft, lackLeft := slices.Clone(surplus), slices.Clone(lack)
		handToNext(surplusLeft, lackLeft, present, give)
		got := 0
		for s := range n {
			out, in := 0, 0
			for i := range n {
				g := give.row(s)[i]
				if g < 0 || g > present.row(s)[i] {
					t.Fatalf("seed %d: %d of %d go from %d to %d", seed, g, present.row(s)[i], s, i)
				}
				out += g
				in += give.row(i)[s]
			}
			got += out
			if surplusLeft[s] < 0 || surplus[s]-surplusLeft[s] != out || lackLeft[s] < 0 || lack[s]-lackLeft[s] != in {
				t.Fatalf("seed %d: %d gives %d and gets %d: surplus %d, then %d; lack %d, then %d", seed, s, out, in, surplus[s], surplusLeft[s], lack[s], lackLeft[s])
			}
		}
		if got != want {
			t.Fatalf("seed %d: %d buckets go to their next owners, %d can", seed, got, want)
		}
	}
}

// match is the number of buckets that can go to their next owners, bucket by bucket (Kuhn's algorithm): each unit of a surplus looks for a bucket
// whose destination lacks one, or for one whose place another surplus can vacate.
func match(surplus, lack []int, present cells) int {
	type bucket struct{ from, to int }
	var list []bucket
	for s := range surplus {
		for i := range lack {
			for range min(present.row(s)[i], surplus[s], lack[i]) {
				list = append(list, bucket{s, i})
			}
		}
	}
	in := slices.Clone(lack)
	chosen := make([]bool, len(list))
	total := 0
	var grow func(s int, seen []bool) bool
	grow = func(s int, seen []bool) bool { // finds one more bucket for s to give
		for k, x := range list {
			if chosen[k] || x.from != s || seen[x.to] {
				continue
			}
			seen[x.to] = true
			if in[x.to] > 0 {
				in[x.to]--
				chosen[k] = true
				return true
			}
			for j, y := range list {
				if !chosen[j] || y.to != x.to {
					continue
				}
				chosen[j] = false
				if grow(y.from, seen) {
					chosen[k] = true
					return true
				}
				chosen[j] = true
			}
		}
		return false
	}
	for s, units := range surplus {
		for range units {
			if grow(s, make([]bool, len(lack))) {
				total++
			}
		}
	}
	return total
}
