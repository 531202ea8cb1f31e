package syncd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/lib/metrics"
	"saru/lib/notify"
	"saru/syncd/engine"
	"saru/syncd/tap"
	"saru/syncd/transfer"
)

// probeInterval is how often it is looked whether the host's firewall lets through what is injected.
const probeInterval = 10 * time.Second

// daemon is the process around a mirrorer.
type daemon struct {
	*Mirrorer
	kernel  *tap.Kernel
	audit   *kernelAudit
	teaches *transfer.Server
	teacher teacher
	args    []string
	logFile io.Closer
	hup     <-chan os.Signal

	optionsMu sync.Mutex
	options   Options
	changed   chan struct{} // options were changed
}

// serve runs everything until ctx ends or something fails.
func (d *daemon) serve(ctx context.Context, listener, metricsListener net.Listener) error {
	// What the kernel has is read before anybody is heard.
	list, err := d.kernel.Services()
	if err != nil {
		return err
	}
	d.readKernel(list)
	d.overflowed()
	d.intake.probe(true) // a director that joins within moments must not call itself synced before its firewall has been looked at
	g, ctx := errgroup.WithContext(ctx)
	defer d.teacher.stop()
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return d.kernel.Guard(ctx) })
	g.Go(func() error { return d.watch(ctx) })
	g.Go(func() error { return d.auditKernel(ctx) })
	g.Go(func() error { return d.controlServer().Serve(ctx, listener) })
	if metricsListener != nil {
		g.Go(func() error { return metrics.ServeOn(ctx, metricsListener, collector{d.Mirrorer}) })
	}
	g.Go(func() error { return d.signals(ctx) })
	g.Go(func() error {
		return notify.Watchdog(ctx, func() bool {
			d.With(func(*engine.Engine) {}) // hangs when the engine does
			return true
		})
	})
	if err := notify.Ready("mirroring"); err != nil {
		d.log.Warn("systemd not told", "error", err)
	}
	return g.Wait()
}

// watch looks after what others may change: services, threads, links.
func (d *daemon) watch(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var seen services
	var probed time.Time
	synced := false
	for {
		list, err := d.kernel.Mend()
		if errors.Is(err, tap.ErrForeignDaemon) {
			return err
		}
		if err != nil {
			d.log.Warn("look after the kernel", "error", err)
		} else {
			if came := seen.update(list); len(came) > 0 {
				d.With(func(e *engine.Engine) { e.Rebind(came) })
			}
			d.teachAt(ctx, list)
		}
		if d.overflowed() {
			poke(d.audit.now)
		}
		for _, l := range d.conn.Links() {
			if stale, err := l.Stale(); err == nil && stale {
				if err := l.Rejoin(); err != nil {
					d.log.Warn("join again", "interface", l.Interface(), "error", err)
				} else {
					d.log.Info("interface joined again", "interface", l.Interface(), "index", l.Index())
				}
			}
		}
		if now := time.Now(); now.Sub(probed) > probeInterval {
			probed = now
			err := d.kernel.Probe()
			switch blocked := d.intake.isBlocked(); {
			case errors.Is(err, tap.ErrBlocked):
				if !blocked {
					d.log.Error("nothing of the peers reaches this kernel", "error", err)
				}
				d.intake.block(true)
				d.intake.probe(false)
			case err != nil:
				d.log.Warn("probe the way into the kernel", "error", err)
				d.intake.probe(false)
			case blocked:
				d.log.Info("what syncd injects reaches the kernel again: all of it is injected once more")
				d.With(func(e *engine.Engine) {
					e.Reinject()
					d.intake.block(false)
				})
			default:
				d.intake.probe(false)
			}
		}
		d.With(func(e *engine.Engine) {
			if e.Synced() && !synced {
				synced = true
				_ = notify.Status("synced")
			}
		})
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
