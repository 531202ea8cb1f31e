package tap

import (
	"net/netip"
	"os"
	"slices"
	"sync"

	"saru/proto/ipvssync"
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

// memoryLocal is the address of a Memory's tick service, the default of a Kernel's.
var memoryLocal = netip.MustParseAddr("169.254.81.1")

// Tick is Tap.Tick: the two records come back at once, unless nobody reads.
func (m *Memory) Tick(n uint16) error {
	if m.ticked != nil {
		m.ticked(n)
	}
	var b ipvssync.Builder
	b.Reset(nil, 0, 0)
	for _, state := range []uint16{ipvssync.TCPTimeWait, ipvssync.TCPClose} {
		err := b.Add(&ipvssync.Record{
			Protocol: protoTCP, State: state, Timeout: 10, Flags: ipvssync.FlagInactive,
			Client:  netip.AddrPortFrom(memoryLocal.Next(), tickClientPort+n%TickPorts),
			Virtual: netip.AddrPortFrom(memoryLocal, port), Real: netip.AddrPortFrom(memoryLocal.Next(), port),
		})
		if err != nil {
			return err
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return err
	}
	select {
	case m.reports <- msg:
	default:
	}
	return nil
}

// Close is Tap.Close.
func (m *Memory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

var _ Tap = (*Memory)(nil)
