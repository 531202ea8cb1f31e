package syncd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/lib/mcast"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
	"saru/syncd/transfer"
)

const (
	// TickInterval is how often the kernel is made to give out what it holds back. It adds at most this to the mirror's lag.
	TickInterval = engine.TickInterval
	// batch is how many messages or datagrams are taken with one system call, or one turn of the engine.
	batch = 64
	// outLimit is how many datagrams may wait for the links before the tap is no longer read (1.5 MB).
	outLimit = 1024
	// injectLimit is how many messages may wait for the kernel before the network is no longer read; each has up to 255 records.
	injectLimit = 64
	// writeWait is for how long a link whose buffer is full holds up the others: a wire of 100 Mbit/s takes the whole of it meanwhile.
	writeWait = 200 * time.Millisecond
	// drainTime is how long an orderly stop waits for what the kernel still holds back: two ticks and the kernel's 20 ms.
	drainTime = 100 * time.Millisecond
)

// Mirrorer connects an engine with a tap and with the network. It is syncd without the process around it.
type Mirrorer struct {
	tap   tap.Tap
	conn  *mcast.Conn
	group string // as sessions are bound to it
	log   *slog.Logger
	start time.Time

	mu         sync.Mutex // guards engine and reinjected
	engine     *engine.Engine
	reinjected time.Time // when everything was injected again

	out    *queue // datagrams for the links
	inject *queue // messages for the kernel

	recMu   sync.Mutex // guards records and recBuf
	records ipvssync.Builder
	recBuf  [tap.MaxInject]byte

	lag     lag
	dropped dropCount
	stall   stall
	barrier barrier
	intake  intake
	pulled  transfer.Counters
	dial    func(ctx context.Context, network, address string) (net.Conn, error) // to teachers
}

// NewMirrorer returns a mirrorer; it fills in Output, OnTick, Log and Now of the engine's configuration. conn's links must be in
// the order of cfg.Links, and group is the one that the keys are derived for.
func NewMirrorer(cfg engine.Config, t tap.Tap, conn *mcast.Conn, group netip.AddrPort, log *slog.Logger) *Mirrorer {
	m := &Mirrorer{tap: t, conn: conn, group: group.String(), log: log, start: time.Now(), out: newQueue(), inject: newQueue()}
	m.records.Reset(m.recBuf[:0], 0, tap.MaxInject)
	cfg.Output, cfg.OnTick, cfg.Log, cfg.Now = output{m}, m.ticked, log, m.start
	m.stall.start(m.start)
	m.dial = (&net.Dialer{Timeout: dialTime}).DialContext
	m.engine = engine.New(cfg)
	return m
}

// Run mirrors until ctx ends, which is no error. Then what the kernel has reported is still sent. The tap and the links are closed.
func (m *Mirrorer) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, inner := errgroup.WithContext(inner)
	g.Go(func() error { return m.readTap(inner) })
	for i, l := range m.conn.Links() {
		g.Go(func() error { return m.readLink(inner, i, l) })
	}
	g.Go(func() error { m.out.drain(inner, m.sendAll); return nil })
	g.Go(func() error { m.drainInjections(inner); return nil })
	g.Go(func() error {
		defer func() {
			cancel()
			m.tap.Close()
			m.conn.Close()
		}()
		return m.ticks(ctx, inner, g)
	})
	return g.Wait()
}

// ended reports whether a read failed, or might as well have, because Run is over.
func ended(ctx context.Context, err, closed error) bool {
	return ctx.Err() != nil || errors.Is(err, closed)
}

// readTap gives the kernel's messages to the engine.
func (m *Mirrorer) readTap(ctx context.Context) error {
	msgs := make([]tap.Message, batch)
	for i := range msgs {
		msgs[i].Buf = make([]byte, tap.MaxPacket)
	}
	for {
		n, err := m.tap.Read(msgs)
		if ended(ctx, err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from the kernel: %w", err)
		}
		now := time.Now()
		m.mu.Lock()
		for first := 0; first < n; {
			last := first
			for more := true; more && last < n; last++ {
				more = m.engine.Expect(msgs[last].Data)
			}
			for ; first < last; first++ {
				m.engine.FromTap(now, msgs[first].Data)
			}
		}
		if n < len(msgs) { // nothing is left: what was gathered need not wait
			m.engine.Flush()
		}
		m.mu.Unlock()
		m.out.wait(ctx, outLimit)
	}
}

// readLink gives the datagrams of a link to the engine.
func (m *Mirrorer) readLink(ctx context.Context, index int, l *mcast.Link) error {
	msgs := make([]mcast.Message, batch)
	for i := range msgs {
		msgs[i].Buf = make([]byte, tap.MaxPacket) // a stock kernel may send more than 1,472 bytes
	}
	for {
		n, err := l.ReadBatch(msgs)
		if ended(ctx, err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// The link is gone or broken: the others go on, and Watch joins it again.
			m.dropped.note(m.log, "receive", l.Interface(), err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		m.stall.wait(ctx)
		now := time.Now()
		m.mu.Lock()
		for i := range n {
			m.engine.FromNetwork(now, index, netip.AddrPortFrom(msgs[i].Src.Addr().Unmap(), msgs[i].Src.Port()), msgs[i].Buf[:msgs[i].N])
		}
		m.mu.Unlock()
		m.inject.wait(ctx, injectLimit)
	}
}

// sendAll sends datagrams on every link.
func (m *Mirrorer) sendAll(items [][]byte) {
	for _, l := range m.conn.Links() {
		for left := items; len(left) > 0; {
			n, err := l.WriteBatch(left)
			left = left[n:]
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					break
				}
				m.dropped.note(m.log, "send", l.Interface(), err)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break // it does not send: the others are not to wait for it
				}
				left = left[min(1, len(left)):] // the refused one is lost on this link
			}
		}
	}
}

// ticks does what time asks for, until ctx ends and what the kernel then held back has been sent.
func (m *Mirrorer) ticks(ctx, inner context.Context, g *errgroup.Group) error {
	t := time.NewTicker(TickInterval)
	defer t.Stop()
	var stop <-chan time.Time
	done := ctx.Done()
	for n := uint16(0); ; n++ {
		select {
		case <-inner.Done(): // another goroutine has failed
			return nil
		case <-done:
			done, stop = nil, time.After(drainTime)
		case <-stop:
			return nil
		case <-t.C:
		}
		now := time.Now()
		m.lag.sent(n, now)
		sent := m.barrier.tick()
		if err := m.tap.Tick(n); err != nil {
			m.dropped.note(m.log, "tick", "the tap", err)
		}
		if m.stall.tick(now, sent) {
			g.Go(func() error { m.afterStall(inner, sent); return nil })
		}
		m.mu.Lock()
		m.engine.Tick(now)
		err := m.engine.Failure()
		pull, begin := m.engine.NextPull(now)
		if m.engine.Unconfirmed() {
			poke(m.inject.wake)
		}
		m.mu.Unlock()
		if err != nil {
			return err
		}
		if begin {
			g.Go(func() error { m.hold(inner, pull); return nil })
		}
	}
}

// With calls fn with the engine, which nothing else uses meanwhile. fn must be quick.
func (m *Mirrorer) With(fn func(*engine.Engine)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m.engine)
}
