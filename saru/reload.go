package saru

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"saru/lib/ipvs"
	"saru/lib/logging"
	"saru/lib/program"
	"saru/saru/core"
)

// signals handles SIGHUP: the log file is opened again, and what can be changed while it runs is read again after a check.
func (d *daemon) signals(ctx context.Context) error {
	return program.Reloads(ctx, d.HUP, d.log, "coordinating", d.reload)
}

func (d *daemon) reload() error {
	if err := program.ReopenLog(d.LogFile); err != nil {
		return err
	}
	o, err := ParseOptions(d.Args)
	if err != nil {
		return err
	}
	d.coord.mu.Lock()
	running := d.Options
	d.coord.mu.Unlock()
	present := o
	present.Group = running.Group // the keys are bound to it, and another one needs a restart
	ring, err := present.loadKeys()
	if err != nil {
		return err
	}
	if o.VirtualAuto && d.services == nil {
		return ipvs.ErrNotAvailable
	}
	restart := o.needsRestart(running)
	running.takeOver(o)
	d.virtuals.configure(&running)
	d.pinger.configure(running.PingNodes)
	logging.SetDebug(d.log, running.Debug)
	d.coord.step(func(now time.Time, k *core.Core) {
		d.Options, d.coord.ring = running, ring // step holds the lock that guards both
		k.SetWeight(now, running.Weight)
	})
	d.lookSoon() // the addresses
	signer := uint8(0)
	if ring != nil {
		signer = ring.Signer()
	}
	d.log.Info("reloaded", "signing_key", signer, "weight", running.Weight, "virtuals", len(running.Virtuals), "auto", running.VirtualAuto,
		"ping_nodes", len(running.PingNodes), "debug", running.Debug)
	program.WarnRestart(d.log, restart)
	return nil
}

// needsRestart names the options that differ from those of the running daemon and that a reload does not change. The timers are among them, because a farm whose
// directors have different ones is not safe (docs/SAFETY.md, section 4: the waits are this director's own, the leases the others').
func (o *Options) needsRestart(running Options) []string {
	return append(o.NeedRestart(running.Common), program.Differing(
		program.Option{Name: "id", Same: o.ID == running.ID},
		program.Option{Name: "keepalive", Same: o.Keepalive == running.Keepalive},
		program.Option{Name: "warntime", Same: o.Warntime == running.Warntime},
		program.Option{Name: "deadtime", Same: o.Deadtime == running.Deadtime},
		program.Option{Name: "lease", Same: o.Lease == running.Lease},
		program.Option{Name: "guard", Same: o.Guard == running.Guard},
		program.Option{Name: "start_delay", Same: o.StartDelay == running.StartDelay},
		program.Option{Name: "ping_node", Same: exchanged(o.PingNodes, running.PingNodes)},
		program.Option{Name: "partition", Same: o.Partition == running.Partition},
		program.Option{Name: "survivor_delay", Same: o.SurvivorDelay == running.SurvivorDelay},
		program.Option{Name: "expect", Same: o.Expect == running.Expect},
		program.Option{Name: "inside", Same: o.Inside == running.Inside},
		program.Option{Name: "masquerade", Same: slices.Equal(o.Masquerade, running.Masquerade)},
		program.Option{Name: "mac", Same: o.MAC == running.MAC},
		program.Option{Name: "mac_mode", Same: o.MACMode == running.MACMode},
		program.Option{Name: "syncd", Same: o.Syncd == running.Syncd},
	)...)
}

// takeOver takes those options of o over that are changed while the daemon runs.
func (o *Options) takeOver(from Options) {
	o.TakeOver(from.Common)
	o.Virtuals, o.VirtualAuto = from.Virtuals, from.VirtualAuto
	o.Sense, o.Senses = from.Sense, maps.Clone(from.Senses)
	o.Weight = from.Weight
	if exchanged(from.PingNodes, o.PingNodes) {
		o.PingNodes = from.PingNodes
	}
}

// exchanged reports whether ping nodes may take the place of others: as many of each family, as the coordinator counts them and has its sockets.
func exchanged(a, b []netip.Addr) bool {
	families := func(all []netip.Addr) (n [2]int) {
		for _, addr := range all {
			if addr.Is4() {
				n[0]++
			} else {
				n[1]++
			}
		}
		return n
	}
	return families(a) == families(b)
}
