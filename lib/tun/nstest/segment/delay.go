package segment

import (
	"container/heap"
	"slices"
	"sync"
	"time"
)

// delay holds frames back until their time.
type delay struct {
	mu   sync.Mutex
	held held
	wake chan struct{} // an earlier one was added
	stop chan struct{}
}

type heldFrame struct {
	due   time.Time
	to    *port
	frame []byte
}

// held is a heap, the earliest first.
type held []heldFrame

func (h held) Len() int           { return len(h) }
func (h held) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h held) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is heap.Interface's.
func (h *held) Push(x any) { *h = append(*h, x.(heldFrame)) }

// Pop is heap.Interface's.
func (h *held) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = heldFrame{}
	*h = old[:len(old)-1]
	return last
}

// add keeps a copy of the frame.
func (d *delay) add(to *port, frame []byte, due time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	heap.Push(&d.held, heldFrame{due, to, slices.Clone(frame)})
	if d.held[0].due.Equal(due) {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// next returns the frame whose time has come, or how long to wait for it.
func (d *delay) next() (heldFrame, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.held) == 0 {
		return heldFrame{}, time.Hour
	}
	if left := time.Until(d.held[0].due); left > 0 {
		return heldFrame{}, left
	}
	return heap.Pop(&d.held).(heldFrame), 0
}

// run delivers until stop is closed; what is held then is forgotten.
func (d *delay) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f, left := d.next()
		if f.to != nil {
			f.to.write(f.frame)
			continue
		}
		timer.Reset(left)
		select {
		case <-d.stop:
			return
		case <-d.wake:
		case <-timer.C:
		}
	}
}
