package engine

import (
	"math"
	"sort"
	"time"
)

// DefaultBacklog is how many bytes of datagrams a director keeps for repair: at a million records a second, 25,000 full datagrams,
// it reaches back for 0.4 s, and at 20,000 records of their own datagrams for 4 s. Repair takes a round trip and a tick or two.
const DefaultBacklog = 16 << 20

// keepTime is how long a datagram can be repeated: those who ask for it take its records as of now, so they count as that much younger than
// they are. Half of the kernel's shortest timeout of a state that is told (ip_vs_proto_tcp.c, tcp_timeouts: CLOSE).
const keepTime = 5 * time.Second

// backlogPage is how much memory a backlog takes at a time; a datagram (65,507 bytes at most) fits. It was one ring of bytes that doubled, which
// stopped the engine for the copy: 20 ms and more where the page faults of fresh memory are dear, as in virtual machines.
const backlogPage = 64 << 10

// backlog keeps the newest datagrams of a stream, by number, in pages without pointers. It grows to its limit and no further; the oldest
// make room, a page at a time.
type backlog struct {
	limit int
	pages []page // the oldest first; none is empty
	spare []page // empty ones
	taken int    // bytes of memory in pages and spare
	count int    // datagrams
	bytes int    // of datagrams
	epoch time.Time
}

// page has consecutive datagrams.
type page struct {
	from  uint64 // number of items[0]
	gone  int    // how many of items have been dropped
	items []kept
	buf   []byte // its capacity is what it has room for
}

// kept is one datagram.
type kept struct {
	off, n int32
	sent   time.Duration // since the epoch, by the clock that nobody sets
	again  time.Duration // when it was last repeated
}

// never is when a datagram was last repeated that was not.
const never = time.Duration(math.MinInt64 / 2)

// clock is the time since the first datagram.
func (b *backlog) clock(now time.Time) time.Duration { return now.Sub(b.epoch) }

// add keeps a datagram; numbers follow one another.
func (b *backlog) add(now time.Time, number uint64, data []byte) {
	if b.epoch.IsZero() {
		b.epoch = now
	}
	if len(b.pages) == 0 || room(&b.pages[len(b.pages)-1]) < len(data) {
		if !b.turn(number, len(data)) {
			return
		}
	}
	p := &b.pages[len(b.pages)-1]
	p.items = append(p.items, kept{off: int32(len(p.buf)), n: int32(len(data)), sent: b.clock(now), again: never})
	p.buf = append(p.buf, data...)
	b.count++
	b.bytes += len(data)
}

func room(p *page) int { return cap(p.buf) - len(p.buf) }

// turn begins a page that has room for n bytes. A datagram above the whole limit is not kept, and none before it: false.
func (b *backlog) turn(number uint64, n int) bool {
	size := max(n, min(backlogPage, b.limit/16))
	for {
		if last := len(b.spare) - 1; last >= 0 {
			p := b.spare[last]
			b.spare = b.spare[:last]
			if cap(p.buf) >= n {
				b.pages = append(b.pages, page{from: number, items: p.items[:0], buf: p.buf[:0]})
				return true
			}
			b.taken -= cap(p.buf)
			continue
		}
		if b.taken+size <= b.limit {
			b.taken += size
			b.pages = append(b.pages, page{from: number, buf: make([]byte, 0, size)})
			return true
		}
		if len(b.pages) == 0 {
			return false
		}
		b.dropPage()
	}
}

// expire drops what is older than keepTime.
func (b *backlog) expire(now time.Time) {
	for len(b.pages) > 0 {
		p := &b.pages[0]
		for ; p.gone < len(p.items) && b.clock(now)-p.items[p.gone].sent > keepTime; p.gone++ {
			b.count--
			b.bytes -= int(p.items[p.gone].n)
		}
		if p.gone < len(p.items) {
			return
		}
		b.dropPage()
	}
}

// dropPage drops what the oldest page still has; the page is spare then.
func (b *backlog) dropPage() {
	p := b.pages[0]
	for _, it := range p.items[p.gone:] {
		b.count--
		b.bytes -= int(it.n)
	}
	b.spare = append(b.spare, p)
	b.pages = b.pages[:copy(b.pages, b.pages[1:])]
}

// setLimit changes the limit; what is beyond it is dropped.
func (b *backlog) setLimit(limit int) {
	b.limit = limit
	for b.taken > limit {
		if len(b.spare) == 0 {
			b.dropPage()
		}
		last := len(b.spare) - 1
		b.taken -= cap(b.spare[last].buf)
		b.spare = b.spare[:last]
	}
}

// get returns a datagram and its account, or nil. Both are valid until the next add.
func (b *backlog) get(number uint64) ([]byte, *kept) {
	i := sort.Search(len(b.pages), func(i int) bool { return b.pages[i].from > number }) - 1
	if i < 0 {
		return nil, nil
	}
	p := &b.pages[i]
	at := number - p.from
	if at < uint64(p.gone) || at >= uint64(len(p.items)) {
		return nil, nil
	}
	it := &p.items[at]
	return p.buf[it.off : it.off+it.n], it
}

// oldest returns the oldest number that get knows, or the one after newest when there is none.
func (b *backlog) oldest(newest uint64) uint64 {
	if b.count == 0 {
		return newest + 1
	}
	return b.pages[0].from + uint64(b.pages[0].gone)
}

// reach returns how long ago the oldest datagram was sent.
func (b *backlog) reach(now time.Time) time.Duration {
	if b.count == 0 {
		return 0
	}
	return b.clock(now) - b.pages[0].items[b.pages[0].gone].sent
}
