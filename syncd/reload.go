package syncd

import (
	"context"

	"saru/lib/logging"
	"saru/lib/program"
	"saru/syncd/engine"
)

// signals handles SIGHUP: the log file is opened again, and what can be changed while it runs is read again after a check.
func (d *daemon) signals(ctx context.Context) error {
	return program.Reloads(ctx, d.hup, d.log, "mirroring", d.reload)
}

func (d *daemon) reload() error {
	if err := program.ReopenLog(d.logFile); err != nil {
		return err
	}
	o, err := ParseOptions(d.args)
	if err != nil {
		return err
	}
	present := o
	d.optionsMu.Lock()
	present.Group = d.options.Group // the keys are bound to it, and another one needs a restart
	d.optionsMu.Unlock()
	keys, err := present.loadKeys()
	if err != nil {
		return err
	}
	d.With(func(e *engine.Engine) {
		e.SetKeys(keys.auth, keys.ring)
		e.SetFilter(o.filter())
		e.SetLimits(o.Backlog, o.AuditInterval)
	})
	d.teaches.SetAuth(d.sessionAuth())
	logging.SetDebug(d.log, o.Debug)
	d.optionsMu.Lock()
	restart := o.needsRestart(d.options)
	d.options.takeOver(o)
	d.optionsMu.Unlock()
	poke(d.changed)
	d.log.Info("reloaded", "auth", o.Auth, "signing_key", keys.signer(), "mirror", o.Mirror, "mirror_services", len(o.MirrorServices),
		"audit_interval", o.AuditInterval, "backlog", o.Backlog, "debug", o.Debug)
	program.WarnRestart(d.log, restart)
	return nil
}

// takeOver takes those options of o over that are changed while the daemon runs.
func (running *Options) takeOver(o Options) {
	running.TakeOver(o.Common)
	running.Auth = o.Auth
	running.Mirror, running.MirrorServices = o.Mirror, o.MirrorServices
	running.Backlog, running.AuditInterval = o.Backlog, o.AuditInterval
}
