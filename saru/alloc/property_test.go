package alloc

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Any history of joins, leaves, weights and drains, of 2 to 64 directors and none, keeps the rules of the package comment at each step.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 7, 64, 256, 4096}).Draw(t, "buckets")
		most := 64
		if size > 256 {
			most = 8 // checkNext lets everybody leave in turn
		}
		weight := rapid.SampledFrom([]uint32{100, 100, 100, 100, 50, 200, 1, 333, 100000, 1<<32 - 1})
		if rapid.Bool().Draw(t, "equal") {
			weight = rapid.Just(uint32(100))
		}
		f := newFarm(size, rapid.SliceOfN(weight, 2, most).Draw(t, "weights")...)
		if err := f.check(&farm{slices.Repeat([]uint8{None}, size), slices.Repeat([]uint8{None}, size), f.weights}); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			// One, or a few at once.
			for range rapid.SampledFrom([]int{1, 1, 2, 5}).Draw(t, "at once") {
				n := len(f.weights)
				op := rapid.SampledFrom([]string{"join", "leave", "weight", "drain"}).Draw(t, "change")
				switch who := rapid.IntRange(0, max(0, n-1)).Draw(t, "who"); {
				case op == "join" && n < 64:
					f.join(who, weight.Draw(t, "weight"))
				case n == 0:
				case op == "leave":
					f.leave(who)
				case op == "weight":
					f.weights[who] = weight.Draw(t, "weight")
				case op == "drain":
					f.weights[who] = 0
				}
			}
			before := f.clone()
			f.settle()
			if err := f.check(before); err != nil {
				t.Fatalf("weights %v: %v", f.weights, err)
			}
		}
	})
}

// With equal weights, only buckets of a leaver move and a newcomer alone gets any.
func TestEqualWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{16, 100, 1024, buckets}).Draw(t, "buckets")
		f := newFarm(size, slices.Repeat([]uint32{100}, rapid.IntRange(2, 63).Draw(t, "directors"))...)
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			n := len(f.weights)
			who := rapid.IntRange(0, n-1).Draw(t, "who")
			if n < 3 || n < 64 && rapid.Bool().Draw(t, "join") {
				f.join(who, 100)
				c := f.settle()
				if got := f.counts()[who]; c.Filled != 0 || c.Moved != got || got > (size+n)/(n+1) {
					t.Fatalf("%d directors and a newcomer, that gets %d: %+v", n, got, c)
				}
				// The newcomer must become the next owner of about as many; for each pair of directors, a bucket more for rounding.
				if c.Next > size/(n+1)+n*n {
					t.Fatalf("%d directors and a newcomer: %d next owners changed", n, c.Next)
				}
				continue
			}
			share := f.counts()[who]
			f.leave(who)
			if c := f.settle(); c.Moved != 0 || c.Filled != share || c.ToNext != share {
				t.Fatalf("one of %d leaves, that had %d: %+v", n, share, c)
			}
		}
	})
}

// Any input at all, as a foreign or old table may be, gives a good allocation.
func TestArbitrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(0, 80).Draw(t, "buckets")
		n := rapid.IntRange(0, 9).Draw(t, "directors")
		index := rapid.SampledFrom([]uint8{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, None})
		owner := rapid.SliceOfN(index, size, size).Draw(t, "owner")
		next := rapid.SliceOfN(index, size, size).Draw(t, "next")
		weights := rapid.SliceOfN(rapid.SampledFrom([]uint32{0, 1, 2, 3, 1<<32 - 1}), n, n).Draw(t, "weights")
		ownerWas, nextWas, weightsWas := slices.Clone(owner), slices.Clone(next), slices.Clone(weights)
		f := &farm{weights: weights}
		f.owner, f.next = Allocate(owner, next, weights)
		if !slices.Equal(owner, ownerWas) || !slices.Equal(next, nextWas) || !slices.Equal(weights, weightsWas) {
			t.Fatal("inputs changed")
		}
		// For the checks, who has left is nobody.
		for b := range owner {
			if int(owner[b]) >= n {
				owner[b] = None
			}
			if int(next[b]) >= n {
				next[b] = None
			}
		}
		if err := f.check(&farm{owner, next, weights}); err != nil {
			t.Fatal(err)
		}
	})
}

// No allocation at all that is exact moves less, and none with the same shares that moves as little lets more go to their next owners.
func TestBruteForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 6).Draw(t, "buckets")
		n := rapid.IntRange(1, 4).Draw(t, "directors")
		index := rapid.SampledFrom([]uint8{None, 0, 1, 2, 3}[:n+1])
		owner := rapid.SliceOfN(index, size, size).Draw(t, "owner")
		next := rapid.SliceOfN(index, size, size).Draw(t, "next")
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 5), n, n).Draw(t, "weights")
		weights[0]++
		gotOwner, gotNext := Allocate(owner, next, weights)
		got := Compare(owner, next, gotOwner, gotNext)
		shares := Measure(gotOwner, gotNext, weights).Owned

		try := make([]uint8, size)
		for {
			c, balance := Compare(owner, next, try, gotNext), Measure(try, gotNext, weights)
			if balance.Deviation < 1 {
				if c.Moved+c.Filled < got.Moved+got.Filled {
					t.Fatalf("%v moves %+v, ours %v %+v", try, c, gotOwner, got)
				}
				if c.Moved == got.Moved && c.Filled == got.Filled && c.ToNext > got.ToNext && slices.Equal(shares, balance.Owned) {
					t.Fatalf("%v lets %d go to their next owners, ours %v %d", try, c.ToNext, gotOwner, got.ToNext)
				}
			}
			b := 0
			for ; b < size; b++ {
				if try[b]++; int(try[b]) < n {
					break
				}
				try[b] = 0
			}
			if b == size {
				return
			}
		}
	})
}
