package peer

import (
	"math"
	"math/bits"
)

// What a Window knows of the numbers that have not arrived. Each is open, then given up (it cannot be repeated any more), then
// settled (made good by other means). Given up is whatever is missing up to one number, done; a number that was given up and comes
// all the same counts as arrived, as long as it is neither settled nor behind the window. Settled numbers never count any more: a
// datagram that somebody held back is no news once its contents came by another way.

// giveUp gives up the open numbers up to last.
func (w *Window) giveUp(last uint64) {
	if last <= w.done {
		return
	}
	arrived := w.arrived(w.done+1, last)
	w.given += last - w.done - arrived
	w.ahead -= arrived
	w.done = last
	w.advance()
}

// open returns how many numbers are open, when all up to announced are known to be used.
func (w *Window) open(announced uint64) uint64 {
	end := max(w.newest, announced)
	if end <= w.done {
		return 0
	}
	return end - w.done - w.ahead
}

// missing iterates over the runs of numbers that have not arrived from first to end; first must not be behind the window.
func (w *Window) missing(first, end uint64, yield func(first, last uint64) bool) {
	for first <= end {
		gap, found := w.next(first, true)
		if !found {
			if end > w.newest { // nothing above the newest has arrived
				yield(max(first, w.newest+1), end)
			}
			return
		}
		if gap > end {
			return
		}
		last := end
		if next, found := w.next(gap, false); found {
			last = min(end, next-1)
		}
		if !yield(gap, last) || last == end {
			return
		}
		first = last + 1
	}
}

// next returns the first number from first to the newest that has arrived, or with missing that has not. It passes over whole words.
func (w *Window) next(first uint64, missing bool) (uint64, bool) {
	for first <= w.newest {
		word := *w.word(first)
		if missing {
			word = ^word
		}
		if word >>= first % 64; word != 0 {
			number := first + uint64(bits.TrailingZeros64(word))
			return number, number <= w.newest
		}
		if first/64 == w.newest/64 {
			break
		}
		first = (first/64 + 1) * 64
	}
	return 0, false
}

// settle makes the n lowest of the numbers that were given up settled.
func (w *Window) settle(n uint64) {
	if n >= w.given {
		w.given, w.settled = 0, w.done
		return
	}
	// Of those behind the window there is only the count left; they cannot come any more.
	low := w.settled
	if size := w.size(); w.newest > size {
		low = max(low, w.newest-size)
	}
	within := w.done - low - w.arrived(low+1, w.done)
	behind := w.given - within
	w.given -= n
	if n <= behind {
		return
	}
	n -= behind
	w.missing(low+1, w.done, func(first, last uint64) bool {
		if run := last - first + 1; n > run {
			n -= run
			return true
		}
		w.settled = first + n - 1
		return false
	})
}

// sound returns the highest number up to which every one has arrived or is settled, as far as is still known.
func (w *Window) sound() uint64 {
	if w.given == 0 {
		return w.done
	}
	low := w.settled
	if size := w.size(); w.newest > size && w.newest-size > low {
		low = w.newest - size
		if w.done-low-w.arrived(low+1, w.done) < w.given {
			return w.settled // some are behind the window: nobody knows which
		}
	}
	if first, found := w.next(low+1, true); found {
		return first - 1
	}
	return max(low, w.newest) // nothing above the newest has arrived
}

// Missing returns how many datagrams of the peer's stream have not arrived, the tail included: those that may still come and those
// that were given up and are not settled.
func (p *Peer) Missing() uint64 { return p.Stream.open(p.Announced) + p.Stream.given }

// GivenUp returns how many of the missing ones cannot be repeated any more: they are older than the peer's backlog, or too far behind
// the newest one.
func (p *Peer) GivenUp() uint64 { return p.Stream.given }

// Settle says that n of those given up, the lowest, were made good by other means. They are not missing any more, and are refused
// when they come.
func (p *Peer) Settle(n uint64) { p.Stream.settle(n) }

// Complete returns the highest number up to which every number of the stream has arrived or was given up.
func (p *Peer) Complete() uint64 { return p.Stream.done }

// Sound returns the highest number up to which every number of the stream has arrived or, after it was given up, was made good. While some
// that were given up are behind the window it is lower than it could be: it does not rise.
func (p *Peer) Sound() uint64 { return p.Stream.sound() }

// GiveUp says that open numbers below before will not come any more. A heartbeat that says what can be repeated does so by itself.
func (p *Peer) GiveUp(before uint64) {
	if before > 0 {
		p.Stream.giveUp(min(before-1, max(p.Stream.newest, p.Announced)))
	}
}

// Gaps iterates over the open numbers in order, in as few ranges as possible: those between what has arrived, and the tail up to
// Announced. A range too long for its count is cut, and is the last.
func (p *Peer) Gaps(yield func(first uint64, count uint32) bool) {
	w := &p.Stream
	if w.open(p.Announced) == 0 {
		return
	}
	w.missing(w.done+1, max(w.newest, p.Announced), func(first, last uint64) bool {
		if last-first >= math.MaxUint32 {
			yield(first, math.MaxUint32)
			return false
		}
		return yield(first, uint32(last-first+1))
	})
}
