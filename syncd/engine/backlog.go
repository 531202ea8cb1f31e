package engine

import "time"

// DefaultBacklog is how many bytes of datagrams a director keeps for repair: at a million records a second, 25,000 full datagrams,
// it reaches back for 0.4 s, and at 20,000 records of their own datagrams for 4 s. Repair takes a round trip and a tick or two.
const DefaultBacklog = 16 << 20

// keepTime is how long a datagram can be repeated: those who ask for it take its records as of now, so they count as that much younger than
// they are. Half of the kernel's shortest timeout of a state that is told (ip_vs_proto_tcp.c, tcp_timeouts: CLOSE).
const keepTime = 5 * time.Second

// firstBacklog is how much memory a backlog begins with.
const firstBacklog = 256 << 10

// backlog keeps the newest datagrams of a stream, by number, in a ring of bytes without pointers. It grows to its limit and no
// further; the oldest make room.
type backlog struct {
	limit int
	buf   []byte
	head  int // where the next datagram goes
	items []kept
	first int // index of the oldest item
	count int
	from  uint64 // number of the oldest datagram
	bytes int    // of datagrams
}

// kept is one datagram.
type kept struct {
	off, n int32
	sent   int64 // Unix nanoseconds
	again  int64 // when it was last repeated
}

func (b *backlog) item(i int) *kept { return &b.items[(b.first+i)%len(b.items)] }

// add keeps a datagram; numbers follow one another.
func (b *backlog) add(now time.Time, number uint64, data []byte) {
	off := b.place(len(data))
	if off < 0 { // longer than the whole limit
		b.first, b.count, b.bytes = 0, 0, 0
		return
	}
	if b.count == len(b.items) {
		items := make([]kept, max(64, 2*len(b.items)))
		for i := range b.count {
			items[i] = *b.item(i)
		}
		b.items, b.first = items, 0
	}
	if b.count == 0 {
		b.from = number
	}
	copy(b.buf[off:], data)
	b.head = off + len(data)
	b.count++
	b.bytes += len(data)
	*b.item(b.count - 1) = kept{off: int32(off), n: int32(len(data)), sent: now.UnixNano()}
}

// place returns where n bytes fit, or -1: it makes room by growing, then by dropping the oldest.
func (b *backlog) place(n int) int {
	if n > b.limit {
		return -1
	}
	for {
		if b.count == 0 {
			if len(b.buf) < n {
				b.buf = make([]byte, min(max(firstBacklog, n), b.limit))
			}
			b.head = 0
			return 0
		}
		tail := int(b.item(0).off)
		switch {
		case b.head > tail && len(b.buf)-b.head >= n:
			return b.head
		case b.head > tail && tail >= n:
			return 0
		case b.head <= tail && tail-b.head >= n:
			return b.head
		case len(b.buf) < b.limit:
			b.resize(min(2*len(b.buf), b.limit))
		default:
			b.drop()
		}
	}
}

// resize moves everything into memory of another size, which must be enough.
func (b *backlog) resize(size int) {
	buf, off := make([]byte, size), 0
	for i := range b.count {
		it := b.item(i)
		copy(buf[off:], b.buf[it.off:it.off+it.n])
		it.off = int32(off)
		off += int(it.n)
	}
	b.buf, b.head = buf, off
}

// expire drops what is older than keepTime.
func (b *backlog) expire(now time.Time) {
	for b.count > 0 && now.UnixNano()-b.item(0).sent > int64(keepTime) {
		b.drop()
	}
}

func (b *backlog) drop() {
	b.bytes -= int(b.item(0).n)
	b.first = (b.first + 1) % len(b.items)
	b.count--
	b.from++
}

// setLimit changes the limit; what is beyond it is dropped.
func (b *backlog) setLimit(limit int) {
	b.limit = limit
	if len(b.buf) > limit {
		for b.bytes > limit {
			b.drop()
		}
		b.resize(limit)
	}
}

// get returns a datagram and its account, or nil. Both are valid until the next add.
func (b *backlog) get(number uint64) ([]byte, *kept) {
	if b.count == 0 || number < b.from || number-b.from >= uint64(b.count) {
		return nil, nil
	}
	it := b.item(int(number - b.from))
	return b.buf[it.off : it.off+it.n], it
}

// oldest returns the oldest number that get knows, or the one after newest when there is none.
func (b *backlog) oldest(newest uint64) uint64 {
	if b.count == 0 {
		return newest + 1
	}
	return b.from
}

// reach returns how long ago the oldest datagram was sent.
func (b *backlog) reach(now time.Time) time.Duration {
	if b.count == 0 {
		return 0
	}
	return time.Duration(now.UnixNano() - b.item(0).sent)
}
