package table

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// all returns the entries that the index has for a hash.
func (x *index) all(h uint32) []uint32 {
	var out []uint32
	for i := x.first(h); i != none; i = x.next(h, i) {
		out = append(out, i)
	}
	return out
}

// check fails the test unless the index has exactly the entries of a model, each segment counts its places, and lies under all hashes that share
// its bits and no others.
func (x *index) check(t rapid.TB, model map[uint32]uint32) {
	t.Helper()
	want := map[uint32][]uint32{}
	for i, h := range model {
		want[h] = append(want[h], i)
	}
	for h, entries := range want {
		got := x.all(h)
		slices.Sort(got)
		slices.Sort(entries)
		if !slices.Equal(got, entries) {
			t.Fatalf("hash %08x: entries %v, want %v", h, got, entries)
		}
	}
	total := uint32(0)
	for i := 0; i < len(x.segments); {
		s := x.segments[i]
		used := uint32(0)
		for _, p := range s.places {
			if p.i != none {
				used++
				if x.of(p.hash) != s {
					t.Fatalf("hash %08x lies in another's segment", p.hash)
				}
			}
		}
		if s.count != used || used > segmentFull {
			t.Fatalf("segment %d counts %d of %d", i, s.count, used)
		}
		total += used
		for range 1 << (uint32(x.depth) - s.depth) {
			if x.segments[i] != s {
				t.Fatalf("segment %d is not where its depth says", i)
			}
			i++
		}
	}
	if total != uint32(len(model)) {
		t.Fatalf("%d places are used, want %d", total, len(model))
	}
}

// The index is what a map would be, whatever hashes come: some many times, some that differ in few bits.
func TestIndexModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, model, next := newIndex(), map[uint32]uint32{}, uint32(1)
		masks := []uint32{0xffffffff, 0xff0000ff, 0x8000ffff, 0xfffff000, 0x00000007 | 0xff<<20}
		mask := rapid.SampledFrom(masks).Draw(t, "mask")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range rapid.IntRange(1, 8).Draw(t, "phases") {
			for range rapid.IntRange(0, 600).Draw(t, "adds") {
				h := r.Uint32() & mask
				x.add(h, next)
				model[next] = h
				next++
			}
			gone := rapid.IntRange(0, 500).Draw(t, "removals")
			for _, i := range slices.Sorted(maps.Keys(model)) {
				if gone--; gone < 0 {
					break
				}
				if r.IntN(2) == 0 {
					x.remove(model[i], i)
					delete(model, i)
				}
			}
			x.check(t, model)
		}
	})
}

// Hashes that share many bits make the index deep; too many of the same find no room, and leave what is there as it is.
func TestIndexDeep(t *testing.T) {
	x, model := newIndex(), map[uint32]uint32{}
	const same, other = 0xabcd0000, 0xabcd0000 | 1<<12 // the 20th bit
	next := uint32(1)
	fill := func(h uint32, n int) {
		for range n {
			if !x.add(h, next) {
				t.Fatalf("no room for entry %d", next)
			}
			model[next] = h
			next++
		}
	}
	fill(same, segmentFull-1)
	fill(other, 2)
	if x.depth != 20 {
		t.Errorf("depth %d", x.depth)
	}
	x.check(t, model)
	fill(same, 1)
	if x.add(same, next) {
		t.Error("one more finds room")
	}
	x.check(t, model)
	x.remove(same, 1)
	delete(model, 1)
	fill(same, 1)
	x.check(t, model)
}

func TestIndexNoEntry(t *testing.T) {
	x := newIndex()
	if i := x.first(7); i != none {
		t.Errorf("entry %d in an empty index", i)
	}
	x.add(7, 1)
	if i := x.next(7, 1); i != none {
		t.Errorf("entry %d behind the only one", i)
	}
	if i := x.next(7, 2); i != none {
		t.Errorf("entry %d behind one that is not there", i)
	}
	x.remove(7, 1)
	x.check(t, map[uint32]uint32{})
}
