package syncd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"saru/lib/logging"
	"saru/lib/mcast"
	"saru/lib/notify"
	"saru/lib/peer"
	"saru/lib/program"
	"saru/syncd/engine"
	"saru/syncd/tap"
	"saru/syncd/transfer"
)

// Main is the program: it runs until ctx ends (SIGTERM, SIGINT) and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := ParseOptions(args)
	if err != nil {
		return program.Unparsed("syncd", err, Help(), stdout, stderr)
	}
	if o.Check {
		return check(o, stdout, stderr)
	}
	return program.WithLog(logging.Options{Facility: o.LogFacility, Debug: o.Debug, Tag: "syncd", Stderr: stderr}, func(log *slog.Logger, file io.Closer) error {
		if o.Cleanup {
			return cleanup(o, log)
		}
		return run(ctx, o, args, log, file)
	})
}

func oneLine(err error) string { return program.OneLine(err) }

func cleanup(o Options, log *slog.Logger) error {
	if err := program.CheckPrivileges(); err != nil {
		return program.Environment(err)
	}
	err := program.Alone(o.Control, func() error { return tap.Cleanup(o.tapConfig(log)) })
	if errors.Is(err, program.ErrRuns) {
		return fmt.Errorf("--cleanup: %w", err)
	}
	return err
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
	return engine.Config{
		Node: o.Node, Incarnation: peer.NewIncarnation(), Links: o.Interfaces, SyncID: o.SyncID, Auth: keys.auth, Ring: keys.ring,
		Tick: tick.TickService(), Filter: o.filter(), Backlog: o.Backlog, AuditInterval: o.AuditInterval,
		KernelNext: o.KernelEntries == KernelEntriesNext,
	}
}

func (o *Options) filter() engine.Filter {
	f := engine.Filter{TemplatesOnly: o.Mirror == MirrorTemplates}
	for _, s := range o.MirrorServices {
		f.Services = append(f.Services, engine.Service{Protocol: s.Protocol, Virtual: s.Address})
	}
	return f
}

// run is syncd from its first look at the machine to its orderly stop.
func run(ctx context.Context, o Options, args []string, log *slog.Logger, logFile io.Closer) error {
	hup, stop := program.CatchReload() // before anything is read that a reload reads again
	defer stop()
	keys, err := o.loadKeys()
	if err != nil {
		return program.Environment(err)
	}
	if err := program.CheckMachine(o.Interfaces); err != nil {
		return program.Environment(err)
	}
	tapCfg := o.tapConfig(log)
	if problems := tap.Check(tapCfg); len(problems) > 0 {
		if p := problems[0]; !p.Environment {
			return p.Err
		}
		return program.Environment(problems[0].Err)
	}
	sockets, err := program.OpenSockets(ctx, o.Control, o.Metrics, mcast.Config{Interfaces: o.Interfaces, Group: o.Group, WriteWait: writeWait})
	if err != nil {
		return err
	}
	defer sockets.Close()
	kernel, err := tap.Open(tapCfg)
	if err != nil {
		return err
	}
	if o.Insecure {
		log.Warn(insecure)
	}
	cfg := o.engineConfig(keys, tapCfg)
	if cfg.DropSequence, err = tap.SequenceBroken(); err != nil {
		return errors.Join(err, kernel.Close())
	}
	audit, err := newKernelAudit()
	if err != nil {
		return errors.Join(err, kernel.Close())
	}
	m := NewMirrorer(cfg, kernel, sockets.Conn, o.Group, log)
	log.Info("started", "node", o.Node, "incarnation", m.incarnation(), "interfaces", strings.Join(o.Interfaces, ","), "group", o.Group,
		"auth", o.Auth, "tap", o.Tap, "reattached", kernel.Reattached())

	d := &daemon{
		Mirrorer: m, kernel: kernel, audit: audit, options: o, args: args, logFile: logFile, hup: hup, changed: make(chan struct{}, 1),
		teaches: transfer.NewServer(replica{m}, m.sessionAuth(), log),
	}
	err = d.serve(ctx, sockets.Control, sockets.Metrics)
	log.Info("stopping")
	_ = notify.Stopping() // systemd's own bookkeeping: nothing depends on it
	return errors.Join(err, tap.Cleanup(tapCfg))
}
