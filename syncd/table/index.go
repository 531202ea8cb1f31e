package table

// index finds the entries of one family by the hash of their key: extendible hashing (Fagin, Nievergelt, Pippenger and Strong 1979), with
// open addressing in each segment. It grows by one segment at a time, which reads what lies side by side in memory and never an entry: a table
// that grows with every record that comes must not wait for a record of long ago each time.
type index struct {
	depth    uint // a hash's upper bits that choose a segment
	segments []*segment
}

// Sizes of a segment in places: 2 KiB of memory, of which an eighth at least stays free, so that a probe soon meets with a free place.
const (
	segmentPlaces = 255
	segmentFull   = segmentPlaces * 7 / 8

	// maxDepth bounds the index to 4 Mi segments, enough for 450 million entries at the worst filling.
	maxDepth = 22
)

// segment has the places of the hashes that share depth upper bits.
type segment struct {
	depth  uint32
	count  uint32
	places [segmentPlaces]place
}

// place says where the entry of a hash lies; free if i is none.
type place struct{ hash, i uint32 }

func newIndex() index { return index{segments: []*segment{{}}} }

// of returns the segment of a hash.
func (x *index) of(h uint32) *segment { return x.segments[h>>(32-x.depth)] }

// home returns the first place to look for a hash: of its lower bits, as all hashes of a segment share the upper ones.
func home(h uint32) uint32 { return h & 0xffff * segmentPlaces >> 16 }

// after returns the place that is tried after place p.
func after(p uint32) uint32 {
	if p++; p == segmentPlaces {
		return 0
	}
	return p
}

// first returns the first entry that may have a hash, or none.
func (x *index) first(h uint32) uint32 {
	s := x.of(h)
	for p := home(h); ; p = after(p) {
		if at := s.places[p]; at.i == none || at.hash == h {
			return at.i
		}
	}
}

// next returns the entry that may have a hash behind entry i, or none. Seldom is there one: hashes have 32 bits.
func (x *index) next(h, i uint32) uint32 {
	s := x.of(h)
	p, found := home(h), false
	for ; ; p = after(p) {
		switch at := s.places[p]; {
		case at.i == none:
			return none
		case at.i == i:
			found = true
		case found && at.hash == h:
			return at.i
		}
	}
}

// add enters entry i, which is not there. It fails if too many hashes have the same maxDepth upper bits: that does not happen by chance before the table
// is full, and nobody can bring it about without its seed.
func (x *index) add(h, i uint32) bool {
	s := x.of(h)
	for ; s.count == segmentFull; s = x.of(h) {
		if s.depth == maxDepth {
			return false
		}
		x.split(s, h)
	}
	s.add(h, i)
	return true
}

func (s *segment) add(h, i uint32) {
	p := home(h)
	for s.places[p].i != none {
		p = after(p)
	}
	s.places[p] = place{h, i}
	s.count++
}

// split makes two segments of s, to which h belongs.
func (x *index) split(s *segment, h uint32) {
	if s.depth == uint32(x.depth) {
		wider := make([]*segment, 2*len(x.segments))
		for i, s := range x.segments {
			wider[2*i], wider[2*i+1] = s, s
		}
		x.segments, x.depth = wider, x.depth+1
	}
	n := uint32(1) << (uint32(x.depth) - s.depth) // neighbours in segments that are s
	begin := h >> (32 - x.depth) &^ (n - 1)
	upper := uint32(1) << (31 - s.depth)
	places := s.places
	*s = segment{depth: s.depth + 1} // of the hashes without that bit
	high := &segment{depth: s.depth}
	for _, at := range places {
		switch {
		case at.i == none:
		case at.hash&upper == 0:
			s.add(at.hash, at.i)
		default:
			high.add(at.hash, at.i)
		}
	}
	for i := begin + n/2; i < begin+n; i++ {
		x.segments[i] = high
	}
}

// remove takes entry i out. What was probed past it moves up, so that nothing lies behind a free place.
func (x *index) remove(h, i uint32) {
	s := x.of(h)
	p := home(h)
	for s.places[p].i != i {
		p = after(p)
	}
	for q := after(p); s.places[q].i != none; q = after(q) {
		// It may move to p unless its home lies behind p, up to q, in the order of probing.
		if way := (q + segmentPlaces - home(s.places[q].hash)) % segmentPlaces; way >= (q+segmentPlaces-p)%segmentPlaces {
			s.places[p] = s.places[q]
			p = q
		}
	}
	s.places[p] = place{}
	s.count--
}
