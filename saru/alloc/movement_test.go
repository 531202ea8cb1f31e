package alloc

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// sizes are the farms that are compared.
var sizes = []int{2, 3, 4, 8, 16, 32, 64}

// movement is what a history of changes did to a farm of N: one leaves at random, another one joins, and so on.
type movement struct {
	leaves, joins           int
	movedLeave, movedJoin   int     // buckets that another director than before owns
	beyondLeave, beyondJoin int     // of them, those of others than the leaver; those that others than the newcomer got
	worst                   int     // the largest of these in one change
	deviation, percent      float64 // largest deviation from an exact share, in buckets, and in percent of that share
}

// rounds is how many leave, and how many join, in a history.
const rounds = 25

// replay plays a history with a fixed seed.
func replay(s scheme, n int, weighted bool) movement {
	rnd := rand.New(rand.NewPCG(uint64(n), 4))
	id := 0
	newcomer := func() director {
		d := director{uint8(id), unit}
		if weighted {
			d.weight = unit * uint32(1+rnd.IntN(4))
		}
		id++
		return d
	}
	var directors []director
	for range n {
		directors = append(directors, newcomer())
	}
	var m movement
	owner := s.assign(slices.Repeat([]uint8{None}, buckets), directors)
	m.measure(owner, directors)
	for range rounds {
		out := rnd.IntN(len(directors))
		left := directors[out].id
		directors = slices.Delete(slices.Clone(directors), out, out+1)
		was := owner
		owner = s.assign(was, directors)
		m.leaves++
		beyond := 0
		for b := range owner {
			if owner[b] != was[b] {
				m.movedLeave++
				if was[b] != left {
					beyond++
				}
			}
		}
		m.beyondLeave += beyond
		m.worst = max(m.worst, beyond)
		m.measure(owner, directors)

		in := newcomer()
		directors = append(directors, in)
		was = owner
		owner = s.assign(was, directors)
		m.joins++
		beyond = 0
		for b := range owner {
			if owner[b] != was[b] {
				m.movedJoin++
				if owner[b] != in.id {
					beyond++
				}
			}
		}
		m.beyondJoin += beyond
		m.worst = max(m.worst, beyond)
		m.measure(owner, directors)
	}
	return m
}

func (m *movement) measure(owner []uint8, directors []director) {
	var have [None + 1]int
	for _, o := range owner {
		have[o]++
	}
	total := uint32(0)
	for _, d := range directors {
		total += d.weight
	}
	for _, d := range directors {
		exact := float64(buckets) * float64(d.weight) / float64(total)
		off := math.Abs(float64(have[d.id]) - exact)
		m.deviation = max(m.deviation, off)
		m.percent = max(m.percent, 100*off/exact)
	}
}

// The bar of issue 4: what moves is the leaver's share, and shares deviate by one bucket at most. With different weights rounding could move a
// bucket more (TestRoundingMoves); in these histories it does not.
func TestMovement(t *testing.T) {
	for _, n := range sizes {
		for _, weighted := range []bool{false, true} {
			t.Run(fmt.Sprintf("directors=%d/weighted=%t", n, weighted), func(t *testing.T) {
				m := replay(&ours{}, n, weighted)
				t.Logf("%+v", m)
				if m.deviation >= 1 {
					t.Errorf("deviation of %.2f buckets", m.deviation)
				}
				if beyond := m.beyondLeave + m.beyondJoin; beyond > 0 {
					t.Errorf("%d buckets moved beyond those of leavers and newcomers, at most %d at once", beyond, m.worst)
				}
			})
		}
	}
}

// Where a bucket of a survivor must move: 0 has been rounded up, 1 down, and without 2, who owned nothing, 1 would be more than one bucket short.
func TestRoundingMoves(t *testing.T) {
	before := &farm{
		owner:   []uint8{0, 0, 0, 0, 1, 1, 1, 3},
		next:    []uint8{1, 1, 1, 3, 0, 0, 0, 0},
		weights: []uint32{35, 39, 3, 3}, // exact shares 3.5, 3.9, 0.3, 0.3
	}
	before.leave(2) // 3.64, 4.05, 0.31
	f := before.clone()
	if c := f.settle(); c.Moved != 1 || c.Filled != 0 {
		t.Errorf("%+v: one bucket must move", c)
	}
	if err := f.check(before); err != nil {
		t.Error(err)
	}
}

// Where a bucket of a survivor would move too (from 1 here), the others lack more than the leaver has: who is next owner stays it.
func TestHeirsExcess(t *testing.T) {
	have, weights := []int{2, 2, 1, 1, 1}, []uint32{150, 140, 205, 205, 40} // without 4: exact shares 1.5, 1.4, 2.05, 2.05
	for _, kept := range [][]int{{0, 0, 1, 0, 0}, {0, 0, 0, 1, 0}} {
		if got := heirs(4, 7, have, kept, weights); !slices.Equal(got, kept) {
			t.Errorf("%v, want %v", got, kept)
		}
	}
}
