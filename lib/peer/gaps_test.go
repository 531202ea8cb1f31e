package peer

import (
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// fate is what became of a number.
type fate uint8

const (
	open fate = iota
	arrived
	givenUp
	settled
)

// model is what a stream's window does, told number by number. fates[i] is that of number floor+1+i, for all numbers that are known to
// have been used.
type model struct {
	size, floor               uint64
	newest, announced, oldest uint64
	fates                     []fate
}

// grow makes sure that the numbers up to n have a fate.
func (m *model) grow(n uint64) {
	for m.floor+uint64(len(m.fates)) < n {
		m.fates = append(m.fates, open)
	}
}

func (m *model) number(i int) uint64 { return m.floor + 1 + uint64(i) }

func (m *model) add(n uint64) Arrival {
	if n <= m.floor || n <= m.newest && m.newest-n >= m.size {
		return Old
	}
	m.grow(n)
	f := &m.fates[n-m.floor-1]
	switch *f {
	case arrived:
		return Duplicate
	case settled:
		return Old
	}
	*f = arrived
	m.newest = max(m.newest, n)
	for i := range m.fates {
		if n := m.number(i); m.fates[i] == open && n <= m.newest && m.newest-n >= m.size {
			m.fates[i] = givenUp
		}
	}
	return New
}

func (m *model) giveUp(before uint64) {
	for i := range m.fates {
		if m.fates[i] == open && m.number(i) < before {
			m.fates[i] = givenUp
		}
	}
}

func (m *model) heartbeat(stream, oldest uint64) {
	m.announced = max(m.announced, stream)
	m.grow(m.announced)
	if oldest > m.announced && oldest-1 > m.announced {
		oldest = m.announced + 1
	}
	m.oldest = max(m.oldest, oldest)
	m.giveUp(m.oldest)
}

func (m *model) settle(n uint64) {
	for i := range m.fates {
		if m.fates[i] == givenUp && n > 0 {
			m.fates[i] = settled
			n--
		}
	}
}

type gap struct {
	First uint64
	Count uint32
}

// summary is all that a Peer tells of its stream's numbers.
type summary struct {
	Newest, Announced, Oldest, Missing, GivenUp, Complete uint64
	Gaps                                                  []gap
}

func (m *model) summary() summary {
	s := summary{Newest: m.newest, Announced: m.announced, Oldest: m.oldest, Complete: m.floor + uint64(len(m.fates))}
	for i, f := range slices.Backward(m.fates) {
		if f == open {
			s.Complete = m.number(i) - 1
		}
	}
	for i, f := range m.fates {
		if f == givenUp {
			s.GivenUp++
		}
		if f != open {
			continue
		}
		s.Missing++
		if i > 0 && m.fates[i-1] == open {
			s.Gaps[len(s.Gaps)-1].Count++
		} else {
			s.Gaps = append(s.Gaps, gap{m.number(i), 1})
		}
	}
	s.Missing += s.GivenUp
	return s
}

// sound returns up to which number every one has arrived or is settled, and whether a window of this size can know it.
func (m *model) sound() (last uint64, known bool) {
	last, known = m.floor+uint64(len(m.fates)), true
	for i, f := range slices.Backward(m.fates) {
		if f == open || f == givenUp {
			last = m.number(i) - 1
		}
		if f == givenUp && m.number(i) <= m.newest && m.newest-m.number(i) >= m.size {
			known = false
		}
	}
	return last, known
}

func (p *Peer) summary() summary {
	s := summary{
		Newest: p.Stream.Newest(), Announced: p.Announced, Oldest: p.Oldest, Missing: p.Missing(), GivenUp: p.GivenUp(), Complete: p.Complete(),
	}
	for first, count := range p.Gaps {
		s.Gaps = append(s.Gaps, gap{first, count})
	}
	return s
}

// newStream returns a peer whose stream's window has another size.
func newStream(size int, floor uint64) *Peer {
	p := &Peer{Announced: floor, Stream: NewWindow(size)}
	p.Stream.Reset(floor)
	return p
}

// Whatever arrives in whatever order, is announced, is given up and settled: the window agrees with a list of all numbers.
func TestStreamAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{64, 128, 320}).Draw(t, "size")
		// The last of the floors lets the numbers come to their highest value.
		floor := rapid.SampledFrom([]uint64{0, 1, 63, 64, 1000, 1<<40 + 17, math.MaxUint64 - 700}).Draw(t, "floor")
		p := newStream(size, floor)
		m := &model{size: uint64(size), floor: floor, newest: floor, announced: floor}
		highest := floor + min(1200, math.MaxUint64-floor) // as far as the model goes
		// near draws a number around what is known, mostly within the window and a few beyond.
		near := func(name string) uint64 {
			at := rapid.SampledFrom([]uint64{m.newest, m.announced, p.Complete()}).Draw(t, "near")
			reach := rapid.SampledFrom([]uint64{1, 3, 70, uint64(size), 2 * uint64(size)}).Draw(t, "reach")
			return rapid.Uint64Range(at-min(at, reach), at+min(reach, highest-at)).Draw(t, name)
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				stream := near("announced")
				oldest := near("oldest")
				p.told(t0, Heartbeat{Control: p.beat + 1, Stream: stream, Oldest: oldest})
				m.heartbeat(stream, oldest)
			case 1:
				before := near("before")
				p.GiveUp(before)
				m.giveUp(before)
			case 2:
				n := rapid.Uint64Range(0, p.GivenUp()+1).Draw(t, "settle")
				p.Settle(n)
				m.settle(n)
			case 3: // a run, as streams come
				for n := m.newest; n < highest && rapid.IntRange(0, 30).Draw(t, "run") != 0; {
					n++
					if got, want := p.Stream.Add(n), m.add(n); got != want {
						t.Fatalf("Add(%d): %v, want %v", n, got, want)
					}
				}
			default:
				n := near("number")
				before := p.Stream.Check(n)
				if got, want := p.Stream.Add(n), m.add(n); got != want || before != want {
					t.Fatalf("Add(%d): %v, Check before: %v, want %v", n, got, before, want)
				}
			}
			if diff := cmp.Diff(m.summary(), p.summary()); diff != "" {
				t.Fatalf("(-model +window):\n%s", diff)
			}
			if want, known := m.sound(); p.Sound() > want || known && p.Sound() != want {
				t.Fatalf("sound up to %d, want %d (%v)", p.Sound(), want, known)
			}
		}
	})
}

// What Settle means for each number, where the count alone would not tell.
func TestSettle(t *testing.T) {
	p := newStream(64, 0)
	p.Stream.Add(10)
	p.GiveUp(10) // 1 to 9
	p.Stream.Add(2)
	if got := p.GivenUp(); got != 8 || p.Complete() != 10 {
		t.Fatalf("%d given up after one of them came, complete up to %d", got, p.Complete())
	}
	p.Settle(3) // 1, 3, 4
	for n, want := range map[uint64]Arrival{1: Old, 2: Duplicate, 3: Old, 4: Old, 5: New, 9: New, 10: Duplicate} {
		if got := p.Stream.Check(n); got != want {
			t.Errorf("number %d after three were settled: %v, want %v", n, got, want)
		}
	}
	p.Stream.Add(73) // 1 to 9 fall behind the window; 11 to 72 are open
	if p.GivenUp() != 5 || p.Missing() != 5+62 || p.Complete() != 10 {
		t.Errorf("%d given up, %d missing, complete up to %d", p.GivenUp(), p.Missing(), p.Complete())
	}
	p.GiveUp(13) // 11, 12
	p.Settle(6)  // 5 to 9 and 11
	if a, b := p.Stream.Check(11), p.Stream.Check(12); a != Old || b != New || p.GivenUp() != 1 {
		t.Errorf("11 is %v, 12 is %v, %d given up", a, b, p.GivenUp())
	}
	p.Settle(100)
	if p.GivenUp() != 0 || p.Missing() != 60 || p.Stream.Check(12) != Old || p.Stream.Check(13) != New {
		t.Errorf("all settled: %d given up, %d missing", p.GivenUp(), p.Missing())
	}
}

// Numbers from a peer that is signed but out of its mind cost neither time nor memory, and no sum overflows.
func TestHostileNumbers(t *testing.T) {
	const top = math.MaxUint64
	for _, tt := range []struct {
		name string
		do   func(*Peer)
		want summary
	}{
		{"number 0", func(p *Peer) { p.Stream.Add(0) }, summary{}},
		{
			"the highest number at once", func(p *Peer) { p.Stream.Add(top) },
			summary{Newest: top, Missing: top - 1, GivenUp: top - streamWindow, Complete: top - streamWindow, Gaps: []gap{{top - streamWindow + 1, streamWindow - 1}}},
		},
		{
			"and then the first", func(p *Peer) { p.Stream.Add(top); p.Stream.Add(1); p.Stream.Add(top); p.Settle(top) },
			summary{Newest: top, Missing: streamWindow - 1, Complete: top - streamWindow, Gaps: []gap{{top - streamWindow + 1, streamWindow - 1}}},
		},
		{
			"the highest number announced", func(p *Peer) { p.told(t0, Heartbeat{Control: 1, Stream: top, Oldest: 1}) },
			summary{Announced: top, Oldest: 1, Missing: top, Gaps: []gap{{1, math.MaxUint32}}},
		},
		{
			"a gap too long for its count", func(p *Peer) { p.told(t0, Heartbeat{Control: 1, Stream: 1 << 32, Oldest: 1}) },
			summary{Announced: 1 << 32, Oldest: 1, Missing: 1 << 32, Gaps: []gap{{1, math.MaxUint32}}},
		},
		{
			"nothing of it can be repeated",
			func(p *Peer) { p.told(t0, Heartbeat{Control: 1, Stream: top, Oldest: top}); p.Settle(top / 2) },
			summary{Announced: top, Oldest: top, Missing: top - top/2, GivenUp: top - 1 - top/2, Complete: top - 1, Gaps: []gap{{top, 1}}},
		},
		{
			"the oldest is beyond the newest", func(p *Peer) { p.told(t0, Heartbeat{Control: 1, Stream: 5, Oldest: top}) },
			summary{Announced: 5, Oldest: 6, Missing: 5, GivenUp: 5, Complete: 5},
		},
		{
			"the oldest goes back", func(p *Peer) {
				p.told(t0, Heartbeat{Control: 1, Stream: 9, Oldest: 4})
				p.told(t0, Heartbeat{Control: 2, Stream: 7, Oldest: 2})
				p.told(t0, Heartbeat{Control: 3})
			},
			summary{Announced: 9, Oldest: 4, Missing: 9, GivenUp: 3, Complete: 3, Gaps: []gap{{4, 6}}},
		},
		{
			"given up beyond what there is", func(p *Peer) { p.Stream.Add(2); p.GiveUp(top); p.GiveUp(0) },
			summary{Newest: 2, Missing: 1, GivenUp: 1, Complete: 2},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newStream(streamWindow, 0)
			tt.do(p)
			if diff := cmp.Diff(tt.want, p.summary()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A whole window of gaps, with every other number missing.
func comb() *Peer {
	p := newStream(streamWindow, 0)
	for n := uint64(2); n <= streamWindow; n += 2 {
		p.Stream.Add(n)
	}
	return p
}

func TestStreamAllocatesNothing(t *testing.T) {
	p, n := comb(), uint64(streamWindow)
	if a := testing.AllocsPerRun(100, func() {
		n += 3
		p.Stream.Add(n)
		p.told(t0, Heartbeat{Control: p.beat + 1, Stream: n + 5, Oldest: n - 500})
		p.Settle(p.GivenUp() / 2)
		for range p.Gaps {
			continue
		}
		if p.Missing() < p.GivenUp() {
			t.Fatal("more given up than missing")
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkWindow(b *testing.B) {
	b.Run("in order", func(b *testing.B) {
		p := newStream(streamWindow, 0)
		for n := uint64(1); b.Loop(); n++ {
			p.Stream.Add(n)
		}
	})
	b.Run("every other", func(b *testing.B) { // so that each Add gives one up
		p := newStream(streamWindow, 0)
		for n := uint64(1); b.Loop(); n += 2 {
			p.Stream.Add(n)
		}
	})
	b.Run("jump", func(b *testing.B) {
		p := newStream(streamWindow, 0)
		for n := uint64(1); b.Loop(); n += 2 * streamWindow {
			p.Stream.Add(n)
		}
	})
}

func BenchmarkGaps(b *testing.B) {
	one := newStream(streamWindow, 0)
	one.Stream.Add(1)
	one.Stream.Add(streamWindow)
	none := newStream(streamWindow, 0)
	none.Stream.Add(1)
	for _, bb := range []struct {
		name string
		p    *Peer
	}{{"none", none}, {"one of a whole window", one}, {"every other number", comb()}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				for range bb.p.Gaps {
					continue
				}
			}
		})
	}
}
