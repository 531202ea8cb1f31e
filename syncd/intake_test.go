package syncd

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// brokenTap is a tap on a kernel that does not always take what is injected.
type brokenTap struct {
	closed chan struct{}

	mu      sync.Mutex
	refuse  bool // injections of records fail
	swallow bool // the receive buffer has no room for records, and the kernel counts that
	absent  bool // there is no thread
	filter  bool // a firewall drops them
	records int  // that were taken
	dropped uint64
}

func newBrokenTap() *brokenTap { return &brokenTap{closed: make(chan struct{})} }

func (b *brokenTap) Read([]tap.Message) (int, error) { <-b.closed; return 0, os.ErrClosed }
func (b *brokenTap) Tick(uint16) error               { return nil }
func (b *brokenTap) Close() error                    { close(b.closed); return nil }

func (b *brokenTap) Queued() (uint64, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.absent {
		return 0, 0, tap.ErrNoThread
	}
	return 0, b.dropped, nil
}

func (b *brokenTap) Inject(msg []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, err := ipvssync.Parse(msg)
	if err != nil || m.Count == 0 {
		return err
	}
	switch {
	case b.refuse:
		return errors.New("no buffer space available")
	case b.swallow:
		b.dropped++
	case b.absent, b.filter:
	default:
		b.records += int(m.Count)
	}
	return nil
}

func (b *brokenTap) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// loneMirrorer returns a mirrorer without sockets; what it sends stays in its queue. It says that it teaches, for exchange.
func loneMirrorer(t *testing.T, node string, tp tap.Tap) *Mirrorer {
	return NewMirrorer(engine.Config{
		Node: node, Incarnation: peer.NewIncarnation(), Links: []string{"eth0"}, SyncID: 1,
		Tick: netip.MustParseAddrPort("169.254.81.1:8848"), Teaches: netip.MustParseAddrPort("192.0.2.1:8848"),
	}, tp, nil, testGroup, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// exchange lets a tick pass at mirrorers without sockets and hands over what they send. Whoever they pull from has nothing for them.
func exchange(ms ...*Mirrorer) {
	for _, m := range ms {
		m.With(func(e *engine.Engine) {
			now := time.Now()
			e.Tick(now)
			if _, begin := e.NextPull(now); begin {
				e.PullEnded(now, engine.PullResult{}, nil)
			}
			if e.Unconfirmed() {
				poke(m.inject.wake)
			}
		})
	}
	for _, from := range ms {
		for _, b := range from.out.swap(nil) {
			for _, to := range ms {
				if to != from {
					to.With(func(e *engine.Engine) { e.FromNetwork(time.Now(), 0, netip.MustParseAddrPort("192.0.2.1:1"), b) })
				}
			}
		}
	}
	time.Sleep(5 * time.Millisecond)
}

// What the kernel did not take is not confirmed, until it was injected again.
func TestLossIsNotConfirmed(t *testing.T) {
	for name, fault := range map[string]func(b *brokenTap) *bool{
		"refused":   func(b *brokenTap) *bool { return &b.refuse },
		"dropped":   func(b *brokenTap) *bool { return &b.swallow },
		"no thread": func(b *brokenTap) *bool { return &b.absent },
		"firewall":  func(b *brokenTap) *bool { return &b.filter },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole, broken := newBrokenTap(), newBrokenTap()
			a, b := loneMirrorer(t, "a", whole), loneMirrorer(t, "b", broken)
			ctx, cancel := context.WithCancel(t.Context())
			var g sync.WaitGroup
			defer g.Wait()
			defer cancel()
			for _, m := range []*Mirrorer{a, b} {
				g.Go(func() { m.drainInjections(ctx) })
			}
			synced := func(m *Mirrorer) (is bool) { m.With(func(e *engine.Engine) { is = e.Synced() }); return is }
			for end := time.Now().Add(time.Minute); !synced(a) || !synced(b); exchange(a, b) {
				if time.Now().After(end) {
					t.Fatal("not synced")
				}
			}
			broken.set(func() { *fault(broken) = true })
			b.intake.block(name == "firewall") // as the daemon's probe finds out
			r := testConn(1)
			var w ipvssync.Builder
			w.Reset(nil, 9, 0)
			if err := w.Add(&r); err != nil {
				t.Fatal(err)
			}
			msg, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			var number uint64
			a.With(func(e *engine.Engine) {
				e.FromTap(time.Now(), msg)
				number = e.AskConfirmation(time.Now())
			})
			confirmed := func() bool {
				var have []string
				a.With(func(e *engine.Engine) { have, _ = e.Confirmation(number) })
				return len(have) == 1
			}
			unconfirmed := func(when string) {
				t.Helper()
				for range 40 {
					if exchange(a, b); confirmed() {
						t.Fatalf("%s: b confirms what its kernel does not have", when)
					}
				}
			}
			unconfirmed("while it lasts")
			broken.set(func() { *fault(broken) = false })
			unconfirmed("when it is over, but not made good")
			if !b.reinject() {
				t.Fatal("everything is not injected again")
			}
			b.intake.block(false)
			for end := time.Now().Add(time.Minute); !confirmed(); exchange(a, b) {
				if time.Now().After(end) {
					t.Fatal("not confirmed although it was made good")
				}
			}
			broken.set(func() {
				if broken.records != 1 {
					t.Errorf("b's kernel has taken %d records when b confirms one", broken.records)
				}
			})
			if b.reinject() {
				t.Error("everything is injected again at once")
			}
		})
	}
}

// Whoever injects while it joins does not call itself synced before its kernel has it all.
func TestLossDelaysSynced(t *testing.T) {
	tp := newBrokenTap()
	m := loneMirrorer(t, "a", tp)
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	defer g.Wait()
	defer cancel()
	g.Go(func() { m.drainInjections(ctx) })
	synced := func() (is bool) { m.With(func(e *engine.Engine) { is = e.Synced() }); return is }
	m.intake.lose()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); exchange(m) { // alone, it is after a second
		if synced() {
			t.Fatal("synced although something was lost")
		}
	}
	losses, _ := m.intake.lost()
	m.intake.mend(losses)
	for end := time.Now().Add(time.Minute); !synced(); exchange(m) {
		if time.Now().After(end) {
			t.Fatal("not synced although it was made good")
		}
	}
}

// What was lost after an audit began is not made good by it.
func TestIntake(t *testing.T) {
	var i intake
	open := func(want bool) {
		t.Helper()
		if _, is := i.lost(); is != want {
			t.Errorf("to be made good: %v, want %v: %+v", is, want, &i)
		}
	}
	i.look(7, nil) // what was dropped before
	i.look(7, nil)
	open(false)
	i.look(8, nil)
	open(true)
	first, _ := i.lost()
	i.look(8, nil)
	i.lose()
	i.mend(first)
	open(true)
	second, _ := i.lost()
	i.mend(second)
	i.mend(first)
	open(false)
	i.look(0, tap.ErrNoThread)
	open(true)
	third, _ := i.lost()
	i.mend(third)
	i.look(3, nil) // another thread
	open(true)
	fourth, _ := i.lost()
	i.mend(fourth)
	open(false)
	i.block(true)
	open(true)
	i.block(false)
	open(false)
	i.probe(true)
	if open(true); i.reachable() {
		t.Error("reachable before it is known")
	}
	i.probe(false)
	if open(false); !i.reachable() {
		t.Error("not reachable")
	}
}
