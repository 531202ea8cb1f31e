package saru

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/lib/ipvs"
	"saru/lib/mcast"
	"saru/lib/metrics"
	"saru/lib/notify"
	"saru/lib/peer"
	"saru/netfilter/share"
	"saru/proto/coord"
	"saru/saru/core"
)

// leaveLimit is for how long an orderly stop waits until others have taken over what this director owned.
const leaveLimit = 10 * time.Second

// daemon is the process around a coordinator.
type daemon struct {
	*daemonConfig
	log      *slog.Logger
	conn     *mcast.Conn
	coord    *coordinator
	worker   *worker
	filter   *share.Filter
	syncd    *syncdLink // nil: --syncd none
	virtuals *virtuals
	services ipvs.Services // nil: this kernel has no IPVS
	pinger   *pinger
	look     chan struct{}
	broken   atomic.Bool // the filter fails
}

// table returns the name of the filter's table.
func (o *Options) table() string {
	if o.ID == 1 {
		return share.DefaultTable
	}
	return fmt.Sprintf("%s-%d", share.DefaultTable, o.ID)
}

func (o *Options) filterConfig(v []share.Virtual, log *slog.Logger) share.Config {
	mac, _ := net.ParseMAC(o.MAC) // it was checked; empty: nil
	timers := o.coreConfig()
	return share.Config{
		Table: o.table(), Function: flow.Default, Virtuals: v, Inside: o.Inside, Masquerade: o.Masquerade, MAC: mac, Period: o.Keepalive,
		Slack: timers.Slack(), Log: log,
	}
}

func (o *Options) coreConfig() core.Config {
	return core.Config{
		Node: o.Node, Incarnation: peer.NewIncarnation(), Links: len(o.Interfaces),
		Keepalive: o.Keepalive, Warntime: o.Warntime, Deadtime: o.Deadtime, Lease: o.Lease, Guard: o.Guard, StartDelay: o.StartDelay,
		Partition: o.Partition, SurvivorDelay: o.SurvivorDelay, Expect: o.Expect, Weight: o.Weight, PingNodes: len(o.PingNodes),
	}
}

// serve runs everything until ctx ends or something fails.
func serve(ctx context.Context, cfg *daemonConfig) error {
	o := &cfg.Options
	d := &daemon{daemonConfig: cfg, log: cfg.Log, conn: cfg.Conn, virtuals: &virtuals{log: cfg.Log}, look: make(chan struct{}, 1)}
	d.virtuals.configure(o)
	var err error
	if d.services, err = ipvs.OpenServices(); err != nil && (!errors.Is(err, ipvs.ErrNotAvailable) || o.VirtualAuto) {
		return fmt.Errorf("virtual services: %w", err)
	}
	if d.services != nil {
		defer d.services.Close()
	}
	if _, err := d.virtuals.look(d.services); err != nil {
		return fmt.Errorf("virtual services: %w", err)
	}
	// Closed from here on; and nothing is said before (docs/SAFETY.md, hole 9).
	if d.filter, err = share.Open(o.filterConfig(d.virtuals.filter(nil), d.log)); err != nil {
		return err
	}
	if o.Syncd != "" {
		d.syncd = newSyncdLink(o.Syncd, o.Lease, d.share, d.log)
		d.syncd.changed = d.lookSoon
	}
	d.pinger = &pinger{log: d.log, changed: d.lookSoon}
	d.pinger.configure(o.PingNodes)
	d.worker = newWorker(d.filter, d.syncd, flow.Default.Buckets, o.Keepalive, d.virtuals.filter, d.log)
	d.coord = newCoordinator(o.coreConfig(), cfg.Ring, cfg.Conn, d.worker, d.log)
	d.worker.tell = d
	if d.syncd != nil {
		d.syncd.done = d.worker.wake
	}
	node, incarnation := d.coord.core.Self()
	d.log.Info("started", "node", o.Node, "id", fmt.Sprintf("%016x", node), "incarnation", fmt.Sprintf("%016x", incarnation),
		"interfaces", strings.Join(o.Interfaces, ","), "group", o.Group, "table", o.table())
	err = d.run(ctx)
	return errors.Join(err, d.filter.Shutdown())
}

// run starts the parts, and stops them in good order: the buckets are handed over before the links are closed.
func (d *daemon) run(ctx context.Context) error {
	g, inner := errgroup.WithContext(context.WithoutCancel(ctx))
	inner, stop := context.WithCancel(inner)
	defer stop()
	d.tellLocal()
	for i, l := range d.conn.Links() {
		g.Go(func() error { return d.coord.readLink(inner, i, l) })
	}
	unblock := context.AfterFunc(inner, func() { _ = d.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unblock()
	g.Go(func() error { return d.coord.run(inner) })
	g.Go(func() error { return d.worker.run(inner) })
	g.Go(func() error { return d.worker.flushAll(inner) })
	g.Go(func() error { return d.watchLocal(inner) })
	g.Go(func() error { return d.pinger.run(inner) })
	if d.syncd != nil {
		g.Go(func() error { return d.syncd.run(inner) })
	}
	g.Go(func() error {
		return d.filter.Watch(inner, func(why string) {
			d.worker.mended()
			d.coord.step(func(now time.Time, k *core.Core) {
				k.PassingAlarm("filter", "the filter was changed by somebody and has been made anew; until then packets may have been accepted twice: "+why)
			})
			d.log.Error("the filter was changed by somebody: it has been closed and made anew", "why", why)
		})
	})
	g.Go(func() error { return d.controlServer().Serve(inner, d.Listener) })
	if d.MetricsListener != nil {
		g.Go(func() error { return metrics.ServeOn(inner, d.MetricsListener, collector{d}) })
	}
	g.Go(func() error { return d.signals(inner) })
	g.Go(func() error {
		return notify.Watchdog(inner, func() bool {
			d.coord.step(func(time.Time, *core.Core) {}) // hangs when the coordinator does
			return true
		})
	})
	if err := notify.Ready("coordinating"); err != nil {
		d.log.Warn("systemd not told", "error", err)
	}
	g.Go(func() error {
		select {
		case <-inner.Done():
		case <-ctx.Done():
			d.leave(inner)
			stop()
		}
		return nil
	})
	return g.Wait()
}

// leave hands everything over.
func (d *daemon) leave(ctx context.Context) {
	d.log.Info("stopping: the buckets are handed over")
	_ = notify.Stopping() // systemd's own bookkeeping: nothing depends on it
	ctx, cancel := context.WithTimeout(ctx, leaveLimit)
	defer cancel()
	d.coord.step(func(now time.Time, k *core.Core) { k.Leave(now) })
	if err := d.coord.wait(ctx, (*core.Core).Left); err != nil {
		d.log.Warn("not everything was handed over", "waited", leaveLimit)
		return
	}
	// What was released is said some times more: a datagram may be lost.
	select {
	case <-ctx.Done():
	case <-time.After(3 * d.Options.Keepalive):
	}
}

// tellLocal tells the coordinator about this machine.
func (d *daemon) tellLocal() {
	l := core.Local{Synced: true}
	if d.syncd != nil {
		l.Synced, l.Term, _ = d.syncd.state()
	}
	l.Function, l.Usable = d.virtuals.local()
	l.Usable = l.Usable && !d.broken.Load() // where others can serve, they are to
	_, l.Pings = d.pinger.count()
	d.coord.step(func(now time.Time, k *core.Core) { k.SetLocal(now, l) })
}

// share makes what syncd is told, and the generation of the filter that it belongs to.
func (d *daemon) share() (*control.Share, uint64) {
	var r core.Report
	d.coord.mu.Lock()
	r = d.coord.core.Report(time.Now())
	d.coord.mu.Unlock()
	if r.Table == nil {
		return nil, 0
	}
	return shareOf(r), r.Gen
}

// The worker's reports.

func (d *daemon) applied(gen uint64) {
	d.coord.step(func(now time.Time, k *core.Core) { k.Applied(now, gen) })
}

func (d *daemon) lapsed() { d.coord.step(func(now time.Time, k *core.Core) { k.Lapsed(now) }) }

func (d *daemon) flushed(gen uint64) {
	d.coord.step(func(now time.Time, k *core.Core) { k.Flushed(now, gen) })
}

func (d *daemon) filterFailed(err error) {
	text := ""
	if err != nil {
		text = "the filter does not do what it should: " + err.Error()
	}
	d.broken.Store(err != nil)
	d.coord.step(func(now time.Time, k *core.Core) { k.Alarm("kernel", text) })
	d.lookSoon()
}

// functionOf returns the share function of a virtual address of the agreed function.
func functionOf(fn *coord.Function, v coord.Virtual) flow.Function {
	f := flow.Function{Sense: flow.Sense(v.Fields), Buckets: fn.Buckets, Seed: fn.Seed, Mask4: 32, Mask6: 128}
	if v.Address.Is4() {
		f.Mask4 = v.Mask
	} else {
		f.Mask6 = v.Mask
	}
	return f
}
