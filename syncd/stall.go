package syncd

import (
	"context"
	"sync"
	"time"

	"saru/proto/ipvssync"
	"saru/syncd/tap"
)

const (
	// stallTime is how long nothing of this process may have run for its view of the farm to be trusted at once.
	stallTime = 10 * TickInterval
	// barrierTime is how long it may take for a tick to come back out of the kernel: 20 to 40 ms, more on a busy machine.
	barrierTime = 500 * time.Millisecond
)

// stall notices that this process has not run for a while: it was stopped, or its machine was. What its kernel reported before that is
// old by now, and what others have told meanwhile is newer. If the two were read in any order, an old report could look like a
// take-over; so the kernel is read to the end first.
type stall struct {
	mu     sync.Mutex
	last   time.Time     // when ticks last ran
	closed chan struct{} // not nil while the network must not be read; closed when it may be
	awaits uint64        // number of the first tick after the latest stall: what the kernel had reported before must be read first
}

func (s *stall) start(now time.Time) { s.last = now }

// tick says that ticks runs and is about to wait for tick number sent. It reports whether a stall has been found that nobody handles yet;
// who handles one handles another that is found meanwhile.
func (s *stall) tick(now time.Time, sent uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := now.Sub(s.last) > stallTime
	s.last = now
	if !late {
		return false
	}
	s.awaits = sent
	if s.closed != nil {
		return false
	}
	s.closed = make(chan struct{})
	return true
}

// over lets the network be read again if tick number seen is the one that is awaited. Otherwise it returns which is.
func (s *stall) over(seen uint64) (awaits uint64, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen < s.awaits {
		return s.awaits, false
	}
	close(s.closed)
	s.closed = nil
	return seen, true
}

// state returns what to wait for before the network may be read, and whether ticks has yet to find out that there was a stall.
func (s *stall) state() (closed chan struct{}, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed, time.Since(s.last) > stallTime
}

// wait returns when the network may be read, or ctx has ended.
func (s *stall) wait(ctx context.Context) {
	for {
		closed, late := s.state()
		if closed == nil && !late {
			return
		}
		if closed == nil {
			tick := time.NewTimer(time.Millisecond)
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-closed:
		}
	}
}

// afterStall opens the network again when everything has been read that the kernel had reported before tick number sent, and before those
// after further stalls meanwhile.
func (m *Mirrorer) afterStall(ctx context.Context, sent uint64) {
	for over := false; !over; {
		timed, cancel := context.WithTimeout(ctx, barrierTime)
		m.barrier.wait(timed, sent)
		cancel()
		sent, over = m.stall.over(sent)
	}
}

// barrier knows which ticks have come back out of the kernel: everything that it had reported before has come, too.
type barrier struct {
	mu   sync.Mutex
	sent uint64
	seen uint64
	more chan struct{} // closed at the next tick that is seen
}

// tick counts a tick that is being sent and returns its number, from 1.
func (b *barrier) tick() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent++
	return b.sent
}

// newest returns the number of the latest tick.
func (b *barrier) newest() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent
}

// back says that a tick has come out again: number n, modulo tap.TickPorts, counted from 0.
func (b *barrier) back(n uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	number := b.sent - (b.sent-1-uint64(n))%tap.TickPorts // the latest of that remainder
	if number > b.sent || number <= b.seen {
		return
	}
	b.seen = number
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
}

// wait waits until tick number n has come back and reports whether it has.
func (b *barrier) wait(ctx context.Context, n uint64) bool {
	for {
		b.mu.Lock()
		if b.seen >= n {
			b.mu.Unlock()
			return true
		}
		if b.more == nil {
			b.more = make(chan struct{})
		}
		more := b.more
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return false
		case <-more:
		}
	}
}

// ticked is told of each record of the tap's own connections.
func (m *Mirrorer) ticked(now time.Time, r *ipvssync.Record) {
	m.lag.seen(now, r)
	if n := tap.TickNumber(r.Client.Port()); n < tap.TickPorts {
		m.barrier.back(n)
	}
}
