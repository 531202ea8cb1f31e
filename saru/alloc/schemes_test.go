package alloc

import (
	"cmp"
	"math"
	"slices"
)

// director is a member of a farm that schemes distribute buckets to. Its id is never used again.
type director struct {
	id     uint8
	weight uint32
}

// unit is the weight of one slot of the schemes that know no weights: a director counts there as often as it has units.
const unit = 100

// A scheme gives each of the buckets to one of the directors, by id, in ascending order. was is who has them, None where nobody had.
type scheme interface {
	assign(was []uint8, directors []director) []uint8
}

// ours is Allocate. It keeps next owners by id.
type ours struct{ next []uint8 }

func (s *ours) assign(was []uint8, directors []director) []uint8 {
	if s.next == nil {
		s.next = slices.Repeat([]uint8{None}, len(was))
	}
	index := slices.Repeat([]uint8{None}, None+1) // by id
	var weights []uint32
	for i, d := range directors {
		index[d.id] = uint8(i)
		weights = append(weights, d.weight)
	}
	owner, next := make([]uint8, len(was)), make([]uint8, len(was))
	for b := range was {
		owner[b], next[b] = index[was[b]], index[s.next[b]]
	}
	owner, next = Allocate(owner, next, weights)
	for b := range owner {
		owner[b] = directors[owner[b]].id
		if s.next[b] = None; next[b] != None {
			s.next[b] = directors[next[b]].id
		}
	}
	return owner
}

// slots lists the directors' ids, as often as each has units.
func slots(directors []director) []uint8 {
	var out []uint8
	for _, d := range directors {
		out = append(out, slices.Repeat([]uint8{d.id}, int(d.weight/unit))...)
	}
	return out
}

// modulo is bucket mod slots.
type modulo struct{}

func (modulo) assign(was []uint8, directors []director) []uint8 {
	ids, out := slots(directors), make([]uint8, len(was))
	for b := range out {
		out[b] = ids[b%len(ids)]
	}
	return out
}

// ranges is what xt_cluster does, renumbered at each change: node = reciprocal_scale(jhash(source address), total nodes), the (hash * total) >> 32
// of net/netfilter/xt_cluster.c, with bucket / buckets for hash / 2^32. (xt_cluster itself ends at 32 nodes: XT_CLUSTER_NODES_MAX.)
type ranges struct{}

func (ranges) assign(was []uint8, directors []director) []uint8 {
	ids, out := slots(directors), make([]uint8, len(was))
	for b := range out {
		out[b] = ids[b*len(ids)/len(out)]
	}
	return out
}

// adopted is xt_cluster as its manual page has it: the number of nodes stays, and the numbers of a director that dies are added to the masks of
// survivors (echo +N); here of those with the fewest for their weights. A newcomer gets as many as it has units, from whoever has most: never more
// than there are, for the total cannot grow.
type adopted struct{ slots []uint8 }

func (s *adopted) assign(was []uint8, directors []director) []uint8 {
	if s.slots == nil {
		s.slots = slots(directors)
	}
	held := make(map[uint8]int)
	for _, id := range s.slots {
		held[id]++
	}
	load := func(d director) float64 { return float64(held[d.id]) / float64(d.weight) }
	byLoad := func(a, b director) int { return cmp.Compare(load(a), load(b)) }
	for id := range held {
		if slices.ContainsFunc(directors, func(d director) bool { return d.id == id }) {
			continue
		}
		for i := range s.slots {
			if s.slots[i] == id {
				s.slots[i] = slices.MinFunc(directors, byLoad).id // the first of equals
				held[s.slots[i]]++
			}
		}
		delete(held, id)
	}
	for _, d := range directors {
		if held[d.id] > 0 {
			continue
		}
		for range d.weight / unit {
			from := slices.MaxFunc(directors, byLoad)
			if i := slices.Index(s.slots, from.id); held[from.id] > 1 {
				s.slots[i] = d.id
				held[from.id]--
				held[d.id]++
			}
		}
	}
	out := make([]uint8, len(was))
	for b := range out {
		out[b] = s.slots[b*len(s.slots)/len(out)]
	}
	return out
}

// rendezvous gives a bucket to the director with the highest score for it, -weight / ln(hash) (Schindelhauer and Schomaker, "Weighted distributed
// hash tables", 2005). Per flow instead of per bucket its shares would be exact, but then each packet costs a hash for each director.
type rendezvous struct{}

func (rendezvous) assign(was []uint8, directors []director) []uint8 {
	out := make([]uint8, len(was))
	for b := range out {
		best := math.Inf(-1)
		for _, d := range directors {
			hash := mix(uint64(b)<<8 | uint64(d.id))
			if score := -float64(d.weight) / math.Log((float64(hash>>11)+0.5)/(1<<53)); score > best {
				best, out[b] = score, d.id
			}
		}
	}
	return out
}

// mix is a good hash of 64 bits (splitmix64, Steele, Lea, Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
