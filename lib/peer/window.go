package peer

import "math/bits"

// Sizes of windows: how many sequence numbers behind the newest one are still told apart.
const (
	// streamWindow is 2.6 s at 25,000 datagrams a second, a million records: more than the senders' backlogs reach back, so that whatever
	// can still be repeated has its place here.
	streamWindow = 65536
	// controlWindow is several seconds of heartbeats and requests.
	controlWindow = 4096
)

// Arrival says what a sequence number is to a Window.
type Arrival uint8

// Arrivals.
const (
	New       Arrival = iota // first time: use the datagram
	Duplicate                // already seen
	Old                      // too far behind the newest to tell, or settled (so are those up to the floor): treat as replayed
)

// Window remembers which sequence numbers of one series have arrived, and which will not come any more: gaps.go. The zero value is of
// no use, see NewWindow. It is not safe for concurrent use.
type Window struct {
	newest uint64 // highest number that arrived, or the floor
	// Numbers up to done have arrived or are given up, done+1 has not; all of newest-size and below are among them.
	done    uint64
	ahead   uint64 // how many above done have arrived
	given   uint64 // how many up to done have not arrived and are not settled
	settled uint64 // of the numbers up to here, those that have not arrived count no more; at first the floor
	// Bit n%64 of word n/64%len says whether number n has arrived. There is one word more than the window has: the numbers of the
	// newest one's word that are still to come need their place too.
	bits []uint64
}

// NewWindow returns a window of size numbers, a multiple of 64, that accepts every number from 1.
func NewWindow(size int) Window { return Window{bits: make([]uint64, size/64+1)} }

// Reset forgets everything; only numbers above floor count from now on.
func (w *Window) Reset(floor uint64) {
	clear(w.bits)
	*w = Window{newest: floor, done: floor, settled: floor, bits: w.bits}
}

// Newest returns the highest number that arrived, or the floor.
func (w *Window) Newest() uint64 { return w.newest }

func (w *Window) size() uint64 { return uint64(len(w.bits)-1) * 64 }

func (w *Window) word(number uint64) *uint64 { return &w.bits[number/64%uint64(len(w.bits))] }

// Check says what seq is, and remembers nothing.
func (w *Window) Check(seq uint64) Arrival {
	switch {
	case seq <= w.newest && w.newest-seq >= w.size():
		return Old
	case seq <= w.newest && *w.word(seq)>>(seq%64)&1 != 0:
		return Duplicate
	case seq <= w.settled:
		return Old
	}
	return New
}

// Add says what seq is, and remembers that it arrived.
func (w *Window) Add(seq uint64) Arrival {
	a := w.Check(seq)
	if a != New {
		return a
	}
	if seq > w.newest {
		w.slide(seq)
	}
	*w.word(seq) |= 1 << (seq % 64)
	if seq <= w.done {
		w.given-- // it was given up, and is here all the same
		return New
	}
	w.ahead++
	w.advance()
	return New
}

// slide moves the window so that seq is the newest number. What falls out of it without having arrived is given up.
func (w *Window) slide(seq uint64) {
	if size := w.size(); seq > size {
		w.giveUp(seq - size)
	}
	// Clear the words that now stand for higher numbers.
	from, to := w.newest/64+1, seq/64
	if to >= from && to-from >= uint64(len(w.bits)) {
		clear(w.bits)
	} else {
		for i := from; i <= to; i++ {
			w.bits[i%uint64(len(w.bits))] = 0
		}
	}
	w.newest = seq
}

// advance moves done over the numbers behind it that have arrived.
func (w *Window) advance() {
	for w.ahead > 0 {
		next := w.done + 1
		run := uint64(bits.TrailingZeros64(^(*w.word(next) >> (next % 64)))) // ends at the word's end at the latest
		w.done += run
		w.ahead -= run
		if run == 0 {
			return
		}
	}
}

// arrived returns how many of the numbers from first to last, of which none is behind the window, have arrived.
func (w *Window) arrived(first, last uint64) uint64 {
	last = min(last, w.newest)
	n := 0
	for i := first / 64; first <= last && i <= last/64; i++ {
		word := w.bits[i%uint64(len(w.bits))]
		if i == first/64 {
			word &= ^uint64(0) << (first % 64)
		}
		if i == last/64 {
			word &= ^uint64(0) >> (63 - last%64)
		}
		n += bits.OnesCount64(word)
	}
	return uint64(n)
}
