package peer

// windowSize is how many sequence numbers behind the newest one a Window still tells apart. At 25,000 datagrams a second, a million
// records, it is 160 ms: more than links reorder by, and more than the 100 ms within which gaps are found.
const windowSize = 4096

// Arrival says what a sequence number is to a Window.
type Arrival uint8

// Arrivals.
const (
	New       Arrival = iota // first time: use the datagram
	Duplicate                // already seen
	Old                      // too far behind the newest to tell, or not above the floor: treat as replayed
)

// Window remembers which sequence numbers of one series have arrived. The zero value accepts every number from 1. It is not
// safe for concurrent use.
type Window struct {
	floor    uint64 // numbers up to here never count
	newest   uint64
	received uint64 // numbers above floor
	// One word more than the window: those of the newest number's word that are still to come are cleared with it.
	bits [windowSize/64 + 1]uint64
}

// Reset forgets everything; only numbers above floor count from now on.
func (w *Window) Reset(floor uint64) { *w = Window{floor: floor, newest: floor} }

// Newest returns the highest number that arrived, or the floor.
func (w *Window) Newest() uint64 { return w.newest }

// Missing returns how many numbers between the floor and the newest did not arrive.
func (w *Window) Missing() uint64 { return w.newest - w.floor - w.received }

// Check says what seq is, and remembers nothing.
func (w *Window) Check(seq uint64) Arrival {
	switch {
	case seq > w.newest:
		return New
	case seq <= w.floor || w.newest-seq >= windowSize:
		return Old
	case w.bits[seq/64%uint64(len(w.bits))]&(1<<(seq%64)) != 0:
		return Duplicate
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
		// Clear the words that now stand for higher numbers.
		from, to := w.newest/64+1, seq/64
		if to-from >= uint64(len(w.bits)) && to >= from {
			clear(w.bits[:])
		} else {
			for i := from; i <= to; i++ {
				w.bits[i%uint64(len(w.bits))] = 0
			}
		}
		w.newest = seq
	}
	w.bits[seq/64%uint64(len(w.bits))] |= 1 << (seq % 64)
	w.received++
	return New
}
