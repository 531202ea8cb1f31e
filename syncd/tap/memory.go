package tap

import (
	"os"
	"slices"
	"sync"
)

// Memory is a tap without a kernel. Messages come from Report and go to a function.
type Memory struct {
	reports  chan []byte
	closed   chan struct{}
	once     sync.Once
	injected func(msg []byte)
	ticked   func(n uint16)
}

// NewMemory returns a tap that calls injected for each message that is injected, and ticked (which may be nil) for each tick. Both
// must not keep what they are given.
func NewMemory(injected func(msg []byte), ticked func(n uint16)) *Memory {
	return &Memory{reports: make(chan []byte, 1024), closed: make(chan struct{}), injected: injected, ticked: ticked}
}

// Report makes the tap deliver a message, as the kernel's master thread does. It waits while 1,024 messages have not been read,
// and returns os.ErrClosed after Close.
func (m *Memory) Report(msg []byte) error {
	select {
	case <-m.closed:
		return os.ErrClosed
	case m.reports <- slices.Clone(msg):
		return nil
	}
}

// Read is Tap.Read.
func (m *Memory) Read(msgs []Message) (int, error) {
	n := 0
	take := func(b []byte) {
		msgs[n].Data = msgs[n].Buf[:copy(msgs[n].Buf, b)]
		n++
	}
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	case b := <-m.reports:
		take(b)
	}
	for n < len(msgs) {
		select {
		case b := <-m.reports:
			take(b)
		default:
			return n, nil
		}
	}
	return n, nil
}

// Inject is Tap.Inject.
func (m *Memory) Inject(msg []byte) error { m.injected(msg); return nil }

// Queued is Tap.Queued: whatever is injected has been taken.
func (m *Memory) Queued() (uint64, uint64, error) { return 0, 0, nil }

// Tick is Tap.Tick.
func (m *Memory) Tick(n uint16) error {
	if m.ticked != nil {
		m.ticked(n)
	}
	return nil
}

// Close is Tap.Close.
func (m *Memory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

var _ Tap = (*Memory)(nil)
