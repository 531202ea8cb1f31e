package syncd

import (
	"context"
	"sync"
)

// queue hands byte strings from one side to another in batches, and its buffers back. The zero value is not ready: use newQueue.
type queue struct {
	mu    sync.Mutex
	items [][]byte
	free  [][]byte
	wake  chan struct{} // something was put
	room  chan struct{} // something was taken
	most  int           // the most that ever waited
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put copies b into the queue.
func (q *queue) put(b []byte) {
	q.mu.Lock()
	var buf []byte
	if n := len(q.free); n > 0 {
		buf, q.free = q.free[n-1], q.free[:n-1]
	}
	q.items = append(q.items, append(buf[:0], b...))
	q.most = max(q.most, len(q.items))
	q.mu.Unlock()
	poke(q.wake)
}

// swap takes everything and gives the buffers of an earlier swap back.
func (q *queue) swap(done [][]byte) [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free = append(q.free, done...)
	items := q.items
	q.items = done[:0]
	poke(q.room)
	return items
}

// length returns how many items wait.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// wait returns when no more than limit items wait, or ctx has ended.
func (q *queue) wait(ctx context.Context, limit int) {
	for q.length() > limit {
		select {
		case <-ctx.Done():
			return
		case <-q.room:
		}
	}
	poke(q.room) // for whoever else waits
}

// drain calls fn with what is put, batch by batch, until ctx has ended.
func (q *queue) drain(ctx context.Context, fn func(items [][]byte)) {
	var items [][]byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for {
			items = q.swap(items)
			if len(items) == 0 {
				break
			}
			fn(items)
		}
	}
}

// poke wakes whoever waits for ch, now or later; more signals than one are one.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
