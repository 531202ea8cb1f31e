package saru

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"saru/lib/mcast"
	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/coord"
	"saru/saru/core"
)

// coordinator is the loop around the step function: links, clock, log. What it decides for the filter goes to the worker.
type coordinator struct {
	log    *slog.Logger
	conn   *mcast.Conn
	worker *worker

	mu      sync.Mutex
	core    *core.Core
	ring    *seal.Ring // nil: unsigned
	history history
	drops   drops
	armed   time.Time     // when the timer goes off
	wake    chan struct{} // it must go off sooner
	changed chan struct{} // closed and made anew whenever something has changed
	failed  chan error    // why the director must not go on
}

// drops counts datagrams that changed nothing, by reason.
type drops struct {
	Forged, Replayed, Truncated, UnknownKey, Incarnation, Unsigned, Own uint64
}

func newCoordinator(cfg core.Config, ring *seal.Ring, conn *mcast.Conn, w *worker, log *slog.Logger) *coordinator {
	return &coordinator{
		log: log, conn: conn, worker: w, core: core.New(cfg, time.Now()), ring: ring,
		wake: make(chan struct{}, 1), changed: make(chan struct{}), failed: make(chan error, 1),
	}
}

// step lets the coordinator decide, and does what it says.
func (c *coordinator) step(f func(now time.Time, k *core.Core)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, incarnation := c.core.Self()
	f(time.Now(), c.core)
	if err := c.core.Failure(); err != nil {
		select {
		case c.failed <- err:
		default:
		}
	}
	out := c.core.Take()
	if _, now := c.core.Self(); now != incarnation && c.worker.syncd != nil {
		c.worker.syncd.began() // this director begins anew
	}
	if out.Filter != nil {
		c.worker.want(*out.Filter)
	}
	if out.Flush != nil {
		c.worker.flush(*out.Flush)
	}
	for _, m := range out.Send {
		c.send(m)
	}
	if len(out.Events) > 0 {
		c.note(out.Events)
	}
	if len(out.Events) > 0 || out.Filter != nil {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	if next := c.core.Next(); next.Before(c.armed) {
		c.armed = next
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// send signs a message and sends it on every link. A link that is down keeps no other from being used.
func (c *coordinator) send(m coord.Message) {
	if c.ring != nil {
		m.Head().Key = c.ring.Signer()
	}
	b, err := m.AppendBinary(nil)
	if err != nil {
		c.log.Error("internal error: a message cannot be encoded", "kind", m.Kind(), "error", err)
		return
	}
	if c.ring != nil {
		c.ring.Sign(b)
	}
	for _, l := range c.conn.Links() {
		if _, err := l.WriteBatch([][]byte{b}); err != nil && !errors.Is(err, net.ErrClosed) {
			c.log.Debug("not sent", "interface", l.Interface(), "error", err)
		}
	}
}

// note keeps events and logs them.
func (c *coordinator) note(events []core.Event) {
	r := c.core.Report(time.Now())
	for _, e := range events {
		c.history.add(e, r.Table)
		level := slog.LevelInfo
		if e.Alarm {
			level = slog.LevelError
		}
		args := []any{"event", e.Name}
		if r.Table != nil {
			args = append(args, "term", r.Table.Term, "version", r.Table.Version)
		}
		c.log.Log(context.Background(), level, e.Text, args...)
	}
}

// run ticks until ctx ends or the director must not go on.
func (c *coordinator) run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-c.failed:
			return err
		case <-t.C:
			c.step(func(now time.Time, k *core.Core) { k.Tick(now) })
		case <-c.wake:
		}
		c.mu.Lock()
		next := c.core.Next()
		c.armed = next
		c.mu.Unlock()
		t.Reset(max(time.Until(next), 0))
	}
}

// writeWait is for how long a link whose buffer is full holds up the coordinator: that holds minutes of heartbeats, so it is stuck.
const writeWait = 10 * time.Millisecond

// batch is how many datagrams are read at once: a table in parts and a heartbeat of each of 64 directors.
const batch = 64

// readLink takes in what a link brings.
func (c *coordinator) readLink(ctx context.Context, index int, l *mcast.Link) error {
	msgs := make([]mcast.Message, batch)
	for i := range msgs {
		msgs[i].Buf = make([]byte, coord.MaxDatagram+1)
	}
	c.mu.Lock()
	ring := c.ring
	c.mu.Unlock()
	verify := clone(ring)
	for {
		n, err := l.ReadBatch(msgs)
		if ended(ctx, err) {
			return nil
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			// The link is gone or broken: the others go on, and look joins it again.
			c.log.Debug("not received", "interface", l.Interface(), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		c.mu.Lock()
		if c.ring != ring { // the keys were read again
			ring = c.ring
			verify = clone(ring)
		}
		c.mu.Unlock()
		for i := range n {
			if m, why := open(verify, msgs[i].Buf[:msgs[i].N], msgs[i].Truncated); m != nil {
				c.step(func(now time.Time, k *core.Core) { c.drops.count(k.Hear(now, index, m)) })
			} else {
				c.mu.Lock()
				c.drops.refused(why)
				c.mu.Unlock()
			}
		}
	}
}

// ended reports whether a link was closed because the daemon stops.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, net.ErrClosed)
}

func clone(r *seal.Ring) *seal.Ring {
	if r == nil {
		return nil
	}
	return r.Clone()
}

// errUnsigned is for a datagram without a tag where there are keys.
var errUnsigned = errors.New("unsigned")

// open authenticates a datagram and reads it.
func open(ring *seal.Ring, b []byte, truncated bool) (coord.Message, error) {
	if truncated {
		return nil, coord.ErrTruncated
	}
	_, h, err := coord.ParseHeader(b)
	if err != nil {
		return nil, err
	}
	switch {
	case ring == nil && h.Key != 0:
		return nil, seal.ErrUnknownKey
	case ring != nil && h.Key == 0:
		return nil, errUnsigned
	case ring != nil:
		if err := ring.Verify(h.Key, b); err != nil {
			return nil, err
		}
	}
	return coord.Parse(b)
}

func (d *drops) refused(err error) {
	switch {
	case errors.Is(err, seal.ErrForged):
		d.Forged++
	case errors.Is(err, seal.ErrUnknownKey):
		d.UnknownKey++
	case errors.Is(err, errUnsigned):
		d.Unsigned++
	default:
		d.Truncated++
	}
}

func (d *drops) count(v peer.Verdict) {
	switch v {
	case peer.Replayed:
		d.Replayed++
	case peer.WrongIncarnation, peer.Overflow:
		d.Incarnation++
	case peer.Own:
		d.Own++
	}
}

// wait returns when check holds, or ctx ends.
func (c *coordinator) wait(ctx context.Context, check func(*core.Core) bool) error {
	for {
		c.mu.Lock()
		ok, changed := check(c.core), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(50 * time.Millisecond): // what others say is no event here
		}
	}
}
