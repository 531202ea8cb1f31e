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
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/lib/mcast"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

const (
	// TickInterval is how often the kernel is made to give out what it holds back. It adds at most this to the mirror's lag.
	TickInterval = 20 * time.Millisecond
	// batch is how many messages or datagrams are taken with one system call, or one turn of the engine.
	batch = 64
	// outLimit is how many datagrams may wait for the links before the tap is no longer read (1.5 MB).
	outLimit = 1024
	// injectLimit is how many messages may wait for the kernel before the network is no longer read; each has up to 255 records.
	injectLimit = 64
	// injectWindow is how many bytes are injected before it is looked at whether the kernel keeps up, and queuedLimit how many it may
	// have left then, as it counts them. Its receive buffer has 208 KiB at the least (net.core.rmem_default).
	injectWindow = 48 << 10
	queuedLimit  = 32 << 10
	// drainTime is how long an orderly stop waits for what the kernel still holds back: two ticks and the kernel's 20 ms.
	drainTime = 100 * time.Millisecond
)

// Mirrorer connects an engine with a tap and with the network. It is syncd without the process around it.
type Mirrorer struct {
	tap   tap.Tap
	conn  *mcast.Conn
	log   *slog.Logger
	start time.Time

	mu     sync.Mutex // guards engine
	engine *engine.Engine

	out    *queue // datagrams for the links
	inject *queue // messages for the kernel

	recMu   sync.Mutex // guards records and recBuf
	records ipvssync.Builder
	recBuf  [tap.MaxInject]byte

	lag     lag
	dropped dropCount
	blocked atomic.Bool // what is injected does not reach the kernel
}

// NewMirrorer returns a mirrorer; it fills in Output, OnTick, Log and Now of the engine's configuration. conn's links must be in
// the order of cfg.Links.
func NewMirrorer(cfg engine.Config, t tap.Tap, conn *mcast.Conn, log *slog.Logger) *Mirrorer {
	m := &Mirrorer{tap: t, conn: conn, log: log, start: time.Now(), out: newQueue(), inject: newQueue()}
	m.records.Reset(m.recBuf[:0], 0, tap.MaxInject)
	cfg.Output, cfg.OnTick, cfg.Log, cfg.Now = output{m}, m.lag.seen, log, m.start
	m.engine = engine.New(cfg)
	return m
}

// output is what the engine writes to. It is called with Mirrorer.mu held.
type output struct{ m *Mirrorer }

func (o output) Send(b []byte) { o.m.out.put(b) }

func (o output) Inject(r *ipvssync.Record) {
	m := o.m
	m.recMu.Lock()
	err := m.records.Add(r)
	if errors.Is(err, ipvssync.ErrFull) {
		m.finishRecords()
		err = m.records.Add(r)
	}
	m.recMu.Unlock()
	if err != nil {
		m.log.Debug("record not injected", "client", r.Client, "virtual", r.Virtual, "error", err)
		return
	}
	poke(m.inject.wake)
}

// finishRecords hands the message that is being filled to the injector. recMu is held.
func (m *Mirrorer) finishRecords() {
	if m.records.Count() > 0 {
		if b, err := m.records.Finish(); err == nil {
			m.inject.put(b)
		}
	}
	m.records.Reset(m.recBuf[:0], 0, tap.MaxInject)
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
		return m.ticks(ctx, inner)
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
		for i := range n {
			m.engine.FromTap(now, msgs[i].Data)
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
				left = left[min(1, len(left)):] // the refused one is lost on this link
			}
		}
	}
}

// drainInjections gives the kernel what the engine injects, no faster than it takes it.
func (m *Mirrorer) drainInjections(ctx context.Context) {
	sent := 0
	var items [][]byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.inject.wake:
		}
		for {
			items = m.inject.swap(items)
			if len(items) == 0 {
				m.recMu.Lock()
				m.finishRecords()
				m.recMu.Unlock()
				if items = m.inject.swap(items); len(items) == 0 {
					break
				}
			}
			for _, b := range items {
				if sent += len(b); sent > injectWindow {
					m.pace(ctx)
					sent = len(b)
				}
				if err := m.tap.Inject(b); err != nil {
					m.dropped.note(m.log, "inject", "the tap", err)
				}
			}
		}
	}
}

// pace waits until the kernel has little left of what was injected.
func (m *Mirrorer) pace(ctx context.Context) {
	for {
		queued, _, err := m.tap.Queued()
		if err != nil || queued < queuedLimit {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// ticks does what time asks for, until ctx ends and what the kernel then held back has been sent.
func (m *Mirrorer) ticks(ctx, inner context.Context) error {
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
		if err := m.tap.Tick(n); err != nil {
			m.dropped.note(m.log, "tick", "the tap", err)
		}
		m.mu.Lock()
		m.engine.Tick(now)
		err := m.engine.Failure()
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// With calls fn with the engine, which nothing else uses meanwhile. fn must be quick.
func (m *Mirrorer) With(fn func(*engine.Engine)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m.engine)
}
