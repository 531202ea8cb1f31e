package alloc

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// buckets is how many saru has (DESIGN 4.2).
const buckets = 4096

// farm is an allocation whose members come and go.
type farm struct {
	owner, next []uint8
	weights     []uint32
}

func newFarm(size int, weights ...uint32) *farm {
	f := &farm{owner: slices.Repeat([]uint8{None}, size), next: slices.Repeat([]uint8{None}, size), weights: weights}
	f.owner, f.next = Allocate(f.owner, f.next, weights)
	return f
}

// leave takes a member out: who comes behind it moves up.
func (f *farm) leave(who int) {
	for _, a := range [][]uint8{f.owner, f.next} {
		for b, d := range a {
			switch {
			case int(d) == who:
				a[b] = None
			case d != None && int(d) > who:
				a[b]--
			}
		}
	}
	f.weights = slices.Delete(slices.Clone(f.weights), who, who+1)
}

// join puts a member in at an index: who stands there and behind moves down.
func (f *farm) join(at int, weight uint32) {
	for _, a := range [][]uint8{f.owner, f.next} {
		for b, d := range a {
			if d != None && int(d) >= at {
				a[b]++
			}
		}
	}
	f.weights = slices.Insert(slices.Clone(f.weights), at, weight)
}

// settle allocates and returns what changed.
func (f *farm) settle() Change {
	owner, next := Allocate(f.owner, f.next, f.weights)
	c := Compare(f.owner, f.next, owner, next)
	f.owner, f.next = owner, next
	return c
}

func (f *farm) clone() *farm {
	return &farm{slices.Clone(f.owner), slices.Clone(f.next), slices.Clone(f.weights)}
}

func (f *farm) counts() []int { return Measure(f.owner, f.next, f.weights).Owned }

// leastMoved is the theory: the smallest number of buckets that must get another owner so that each share is one of the two integers beside the
// exact one. Each director that is below the lower integer gets what is missing; roundings that nobody has yet must be got too.
func leastMoved(size int, have []int, weights []uint32) int {
	total, floors, missing, rounded := uint64(0), 0, 0, 0
	for _, w := range weights {
		total += uint64(w)
	}
	for i, w := range weights {
		exact := uint64(size) * uint64(w)
		floor := int(exact / total)
		floors += floor
		missing += max(0, floor-have[i])
		if exact%total > 0 && have[i] > floor {
			rounded++
		}
	}
	return missing + max(0, size-floors-rounded)
}

// check says what is wrong with an allocation that settle made of before; nil if it keeps the rules of the package comment.
func (f *farm) check(before *farm) error {
	n, size := len(f.weights), len(f.owner)
	if size != len(before.owner) || len(f.next) != size {
		return fmt.Errorf("%d owners and %d next owners of %d buckets", size, len(f.next), len(before.owner))
	}
	owner, next := Allocate(before.owner, before.next, before.weights)
	if !slices.Equal(owner, f.owner) || !slices.Equal(next, f.next) {
		return fmt.Errorf("the same inputs give another result")
	}
	owner, next = Allocate(f.owner, f.next, f.weights)
	if !slices.Equal(owner, f.owner) || !slices.Equal(next, f.next) {
		return fmt.Errorf("its own result is changed: %+v", Compare(f.owner, f.next, owner, next))
	}
	balance := Measure(f.owner, f.next, f.weights)
	if balance.Unowned > 0 && n > 0 {
		return fmt.Errorf("%d buckets without an owner", balance.Unowned)
	}
	if allDrained(f.weights) {
		for b, o := range before.owner {
			if o != None && f.owner[b] != o {
				return fmt.Errorf("bucket %d moved from %d to %d though all are drained", b, o, f.owner[b])
			}
		}
	} else {
		if balance.Deviation >= 1 {
			return fmt.Errorf("a share is %.2f off: %v of weights %v", balance.Deviation, balance.Owned, f.weights)
		}
		c := Compare(before.owner, before.next, f.owner, f.next)
		if least := leastMoved(size, before.counts(), f.weights); c.Moved+c.Filled != least {
			return fmt.Errorf("%+v: %d need to move", c, least)
		}
	}
	return f.checkNext(before)
}

// checkNext checks the next owners.
func (f *farm) checkNext(before *farm) error {
	n := len(f.weights)
	was, is := make([][None + 1]int, n), make([][None + 1]int, n) // by owner and next owner
	changed := make([]int, n)
	for b, o := range f.owner {
		i := f.next[b]
		if i == o && o != None || (i == None) != (n < 2) {
			return fmt.Errorf("bucket %d of %d: next owner %d", b, o, i)
		}
		if i == None {
			continue
		}
		if f.weights[i] == 0 && slices.ContainsFunc(slices.Concat(f.weights[:o], f.weights[o+1:]), func(w uint32) bool { return w > 0 }) {
			return fmt.Errorf("bucket %d: next owner %d is drained, and others are not", b, i)
		}
		was[o][before.next[b]]++
		is[o][i]++
		if before.next[b] != i {
			changed[o]++
		}
	}
	for o := range n {
		least := 0
		for i := range n {
			least += max(0, is[o][i]-was[o][i])
		}
		if changed[o] != least {
			return fmt.Errorf("%d next owners of %d's buckets changed: %d need to", changed[o], o, least)
		}
		if n < 2 {
			continue
		}
		// If o leaves, each bucket goes where next says.
		after := f.clone()
		after.leave(o)
		next := slices.Clone(after.next)
		after.settle()
		for b := range f.owner {
			if int(f.owner[b]) == o && after.owner[b] != next[b] {
				return fmt.Errorf("%d leaves: bucket %d goes to %d, not to its next owner %d", o, b, after.owner[b], next[b])
			}
		}
	}
	return nil
}

func TestAllocate(t *testing.T) {
	const x = None
	for _, tc := range []struct {
		name        string
		owner, next []uint8
		weights     []uint32
		wantOwner   []uint8
		wantNext    []uint8
	}{
		{"no buckets", nil, nil, []uint32{1, 1}, []uint8{}, []uint8{}},
		{"nobody", []uint8{0, x}, []uint8{1, x}, nil, []uint8{x, x}, []uint8{x, x}},
		{"one", []uint8{x, 3}, []uint8{0, 0}, []uint32{7}, []uint8{0, 0}, []uint8{x, x}},
		{"one, drained", []uint8{x, 3}, []uint8{0, 0}, []uint32{0}, []uint8{0, 0}, []uint8{x, x}},
		{"start", []uint8{x, x, x, x}, []uint8{x, x, x, x}, []uint32{1, 1}, []uint8{0, 0, 1, 1}, []uint8{1, 1, 0, 0}},
		{"no next owners known", []uint8{0, 0, 1, 1}, nil, []uint32{1, 1}, []uint8{0, 0, 1, 1}, []uint8{1, 1, 0, 0}},
		{"start, weights", []uint8{x, x, x, x}, []uint8{x, x, x, x}, []uint32{1, 3}, []uint8{0, 1, 1, 1}, []uint8{1, 0, 0, 0}},
		{"the last leaves", []uint8{0, 0, 1, 1, x, x}, []uint8{1, x, 0, x, 1, 0}, []uint32{1, 1}, []uint8{0, 0, 1, 1, 1, 0}, []uint8{1, 1, 0, 0, 0, 1}},
		{"who has more keeps it", []uint8{0, 1, 1}, []uint8{1, 0, 0}, []uint32{1, 1}, []uint8{0, 1, 1}, []uint8{1, 0, 0}},
		{"drain", []uint8{0, 0, 1, 1}, []uint8{1, 1, 0, 0}, []uint32{1, 0}, []uint8{0, 0, 0, 0}, []uint8{1, 1, 1, 1}},
		{"undrain: the next owner gets it", []uint8{0, 0, 0, 0}, []uint8{2, 2, 1, 1}, []uint32{1, 1, 0}, []uint8{0, 0, 1, 1}, []uint8{1, 1, 0, 0}},
		{"the former owner follows", []uint8{2, 2, 2, 0, 0, 0}, []uint8{1, 0, 0, 1, 2, 2}, []uint32{1, 1, 1}, []uint8{1, 2, 2, 1, 0, 0}, []uint8{2, 0, 1, 0, 2, 1}},
		{"next owners as a matching", []uint8{0, 0, 0, 1, 1, 1, 2, 3}, []uint8{2, 3, 1, 2, 0, 0, 0, 1}, []uint32{1, 1, 1, 1}, []uint8{0, 3, 0, 2, 1, 1, 2, 3}, []uint8{2, 0, 1, 3, 0, 2, 0, 1}},
		{"all drained", []uint8{0, 0, 0, x, x}, []uint8{1, 2, 1, 2, 2}, []uint32{0, 0, 0}, []uint8{0, 0, 0, 2, 0}, []uint8{1, 2, 1, 0, 2}},
		{"its own next owner", []uint8{0, 1}, []uint8{0, 1}, []uint32{5, 5}, []uint8{0, 1}, []uint8{1, 0}},
		{"largest weights", []uint8{x, x, x}, []uint8{x, x, x}, []uint32{1<<32 - 1, 1<<32 - 1, 1<<32 - 1}, []uint8{0, 1, 2}, []uint8{1, 2, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			owner, next := Allocate(tc.owner, tc.next, tc.weights)
			if diff := cmp.Diff([][]uint8{tc.wantOwner, tc.wantNext}, [][]uint8{owner, next}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Nobody can have more members than a byte tells apart; what is beyond is left out.
func TestAllocateTooMany(t *testing.T) {
	f := newFarm(1024, slices.Repeat([]uint32{1}, 300)...)
	if b := Measure(f.owner, f.next, f.weights[:None]); b.Deviation >= 1 || b.Unowned > 0 {
		t.Errorf("%d directors: %+v", None, b)
	}
}

func TestCompare(t *testing.T) {
	const x = None
	got := Compare([]uint8{0, 0, 1, x, x, 2}, []uint8{1, 1, 0, 2, 0, x}, []uint8{0, 1, 2, 2, 1, x}, []uint8{1, 0, 0, x, 0, 1})
	if want := (Change{Moved: 3, Filled: 2, ToNext: 2, Next: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestMeasure(t *testing.T) {
	const x = None
	owner, next := []uint8{0, 0, 1, x}, []uint8{1, 1, 0, 0}
	for _, tc := range []struct {
		weights   []uint32
		deviation float64
	}{
		{[]uint32{1, 1}, 1},
		{[]uint32{3, 1}, 1},
		{[]uint32{1, 0}, 2},
		{[]uint32{0, 0}, 1},
	} {
		want := Balance{Owned: []int{2, 1}, Next: []int{2, 2}, Unowned: 1, Deviation: tc.deviation}
		if diff := cmp.Diff(want, Measure(owner, next, tc.weights)); diff != "" {
			t.Errorf("weights %v (-want +got):\n%s", tc.weights, diff)
		}
	}
}
