package syncd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/lib/config"
	"saru/lib/control"
	"saru/lib/logging"
	"saru/lib/mcast"
	"saru/lib/metrics"
	"saru/lib/notify"
	"saru/lib/peer"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// probeInterval is how often it is looked whether the host's firewall lets through what is injected.
const probeInterval = 10 * time.Second

// Exit statuses of DESIGN's contract.
const (
	exitGood    = 0
	exitRefused = 1 // or failed while running, or --check with findings
	exitUsage   = 2 // or an environment in which syncd cannot run
)

// Main is the program: it runs until ctx ends (SIGTERM, SIGINT) and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := ParseOptions(args)
	if errors.Is(err, config.ErrHelp) {
		fmt.Fprint(stdout, Help())
		return exitGood
	}
	if err != nil {
		return fail(stderr, environment(err))
	}
	if o.Check {
		return check(o, stdout, stderr)
	}
	log, closer, err := logging.New(logging.Options{Facility: o.LogFacility, Debug: o.Debug, Tag: "syncd", Stderr: stderr})
	if err != nil {
		return fail(stderr, environment(fmt.Errorf("--log_facility: %w", err)))
	}
	defer closer.Close()
	if o.Cleanup {
		err = cleanup(o, log)
	} else {
		err = run(ctx, o, args, log, closer)
	}
	if err == nil {
		return exitGood
	}
	if !logging.OnStderr(closer) { // there the line below is enough
		log.Error("syncd stops", "error", oneLine(err))
	}
	return fail(stderr, err)
}

// environmentError is an error for which the exit status is 2: nothing was refused, but syncd cannot run here or like this.
type environmentError struct{ error }

func (e environmentError) Unwrap() error { return e.error }

func environment(err error) error { return environmentError{err} }

// fail prints the error as one line and returns the exit status for it.
func fail(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "syncd: %s\n", oneLine(err))
	if e := (environmentError{}); errors.As(err, &e) {
		return exitUsage
	}
	return exitRefused
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func cleanup(o Options, log *slog.Logger) error {
	if err := checkPrivileges(); err != nil {
		return environment(err)
	}
	// A living syncd is stopped with SIGTERM, not cleaned up under its feet.
	l, err := control.Listen(o.Control)
	if err != nil {
		return fmt.Errorf("--cleanup: %w: syncd runs, stop it first", err)
	}
	defer l.Close()
	return tap.Cleanup(o.tapConfig(log))
}

func (o *Options) tapConfig(log *slog.Logger) tap.Config {
	c := tap.Config{Device: o.Tap, Local: o.TapAddress, StatePath: o.Control + ".sysctl", Log: log}
	switch o.Sysctl {
	case SysctlCheck:
		c.Sysctl = tap.SysctlCheck
	case SysctlOff:
		c.Sysctl = tap.SysctlOff
	}
	return c
}

func (o *Options) engineConfig(keys keyRing, tick tap.Config) engine.Config {
	c := engine.Config{
		Node: o.Node, Incarnation: peer.NewIncarnation(), Links: o.Interfaces, SyncID: o.SyncID, Auth: keys.auth, Ring: keys.ring,
		Tick: tick.TickService(), TemplatesOnly: o.Mirror == MirrorTemplates,
	}
	for _, s := range o.MirrorServices {
		c.Services = append(c.Services, engine.Service{Protocol: s.Protocol, Virtual: s.Address})
	}
	return c
}

// run is syncd from its first look at the machine to its orderly stop.
func run(ctx context.Context, o Options, args []string, log *slog.Logger, logFile io.Closer) error {
	keys, err := o.loadKeys()
	if err != nil {
		return environment(err)
	}
	if err := o.checkEnvironment(); err != nil {
		return environment(err)
	}
	tapCfg := o.tapConfig(log)
	if problems := tap.Check(tapCfg); len(problems) > 0 {
		if p := problems[0]; !p.Environment {
			return p.Err
		}
		return environment(problems[0].Err)
	}
	listener, err := control.Listen(o.Control)
	if err != nil {
		return environment(fmt.Errorf("--control %s: %w", o.Control, err))
	}
	defer listener.Close()
	var metricsListener net.Listener
	if o.Metrics != "" {
		if metricsListener, err = metrics.Listen(ctx, o.Metrics); err != nil {
			return environment(fmt.Errorf("--metrics: %w", err))
		}
		defer metricsListener.Close()
	}
	conn, err := mcast.Open(mcast.Config{Interfaces: o.Interfaces, Group: o.Group})
	if err != nil {
		return environment(fmt.Errorf("--interface: %w", err))
	}
	defer conn.Close()
	kernel, err := tap.Open(tapCfg)
	if err != nil {
		return err
	}
	if o.Insecure {
		log.Warn("--insecure: whoever can send on the segment can create, redirect and end every connection")
	}
	cfg := o.engineConfig(keys, tapCfg)
	if cfg.DropSequence, err = tap.SequenceBroken(); err != nil {
		return errors.Join(err, kernel.Close())
	}
	m := NewMirrorer(cfg, kernel, conn, log)
	log.Info("started", "node", o.Node, "incarnation", m.incarnation(), "interfaces", strings.Join(o.Interfaces, ","), "group", o.Group,
		"auth", o.Auth, "tap", o.Tap, "reattached", kernel.Reattached())

	d := &daemon{Mirrorer: m, kernel: kernel, options: o, args: args, logFile: logFile}
	err = d.serve(ctx, listener, metricsListener)
	log.Info("stopping")
	_ = notify.Stopping() // systemd's own bookkeeping: nothing depends on it
	return errors.Join(err, tap.Cleanup(tapCfg))
}

// daemon is the process around a mirrorer.
type daemon struct {
	*Mirrorer
	kernel  *tap.Kernel
	options Options
	args    []string
	logFile io.Closer
}

// serve runs everything until ctx ends or something fails.
func (d *daemon) serve(ctx context.Context, listener, metricsListener net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return d.kernel.Guard(ctx) })
	g.Go(func() error { return d.watch(ctx) })
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
	synced, blocked := false, false
	for {
		list, err := d.kernel.Mend()
		if errors.Is(err, tap.ErrForeignDaemon) {
			return err
		}
		if err != nil {
			d.log.Warn("look after the kernel", "error", err)
		} else if came := seen.update(list); len(came) > 0 {
			d.With(func(e *engine.Engine) { e.Rebind(came) })
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
			switch is := errors.Is(err, tap.ErrBlocked); {
			case is && !blocked:
				d.log.Error("nothing of the peers reaches this kernel", "error", err)
			case err == nil && blocked:
				d.log.Info("what syncd injects reaches the kernel again: all of it is injected once more")
				d.With((*engine.Engine).Reinject)
			case err != nil && !is:
				d.log.Warn("probe the way into the kernel", "error", err)
			}
			blocked = errors.Is(err, tap.ErrBlocked)
			d.blocked.Store(blocked)
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

// signals handles SIGHUP: the log file is opened again, and keys and --auth are read again after a check.
func (d *daemon) signals(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		_ = notify.Reloading()
		if err := d.reload(); err != nil {
			d.log.Error("reload refused, everything stays as it was", "error", oneLine(err))
		}
		_ = notify.Ready("mirroring")
	}
}

func (d *daemon) reload() error {
	if r, ok := d.logFile.(logging.Reopener); ok {
		if err := r.Reopen(); err != nil {
			return err
		}
	}
	o, err := ParseOptions(d.args)
	if err != nil {
		return err
	}
	keys, err := o.loadKeys()
	if err != nil {
		return err
	}
	d.With(func(e *engine.Engine) { e.SetKeys(keys.auth, keys.ring) })
	d.log.Info("reloaded: keys and --auth", "auth", o.Auth, "signing_key", keys.signer())
	if restart := o.needsRestart(d.options); len(restart) > 0 {
		d.log.Warn("options that changed need a restart", "options", strings.Join(restart, ","))
	}
	return nil
}
