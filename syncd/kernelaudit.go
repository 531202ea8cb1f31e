package syncd

import (
	"context"
	"slices"
	"sync"
	"time"

	"saru/lib/control"
	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/reconcile"
	"saru/syncd/table"
	"saru/syncd/tap"
)

const (
	// confirmPasses is how many passes over the kernel's list are put together, mostPasses how many if lists have left out what others
	// have, and confirmPause is what lies between them.
	confirmPasses = 3
	mostPasses    = 5
	confirmPause  = 1200 * time.Millisecond
	// auditShare bounds the time that passes take: for so many times as long as the latest took there is none, but for a minute at most,
	// unless something was lost.
	auditShare = 10
	// readAgain is for how long a syncd that starts begins to read the kernel's list once more. Where reading is linear (Linux 6.14 and later), a list of 400,000 entries takes that
	// long (2.3 s a million); before, that of far fewer.
	readAgain = time.Second
	// auditMost is how many entries are repaired with the engine held once.
	auditMost = 1000
)

// procRoot is where the kernel lists its connections.
const procRoot = "/proc"

// kernelAudit compares the kernel's own list of connections with the replica from time to time, and mends either.
type kernelAudit struct {
	linear bool          // the kernel reads its list in linear time
	now    chan struct{} // asks for an audit at once

	mu       sync.Mutex
	at       time.Time // of the latest; zero: none
	readable bool
	why      string
	counts   reconcile.Counts // of the latest; differences are those that were confirmed
	repaired uint64
}

func newKernelAudit() (*kernelAudit, error) {
	release, err := ipvs.KernelRelease()
	if err != nil {
		return nil, err
	}
	return &kernelAudit{linear: ipvs.ProcLinear(release), now: make(chan struct{}, 1), readable: true}, nil
}

// kernelReplica is the engine as reconcile sees it.
type kernelReplica struct{ m *Mirrorer }

func (r kernelReplica) Lookup(records []ipvssync.Record, out []reconcile.View) {
	r.m.With(func(e *engine.Engine) {
		now := time.Now()
		for i := range records {
			v := &out[i]
			v.Entry, v.Local, v.Known = e.Lookup(now, &records[i])
		}
	})
}

func (r kernelReplica) Walk(c table.Cursor, fn func(en *table.Entry, local bool) bool) table.Cursor {
	r.m.With(func(e *engine.Engine) {
		c = e.Walk(time.Now(), c, auditMost, func(en *table.Entry, _ string) bool { return fn(en, e.IsSelf(en.Origin)) })
	})
	return c
}

// config returns what a pass needs to know, or why there can be none.
func (d *daemon) reconcileConfig(services []tap.Service) (cfg reconcile.Config, ok bool, why string) {
	entries := 0
	for _, s := range services {
		for _, dest := range s.Destinations {
			entries += dest.Entries()
		}
	}
	if ok, why = reconcile.Readable(entries, d.audit.linear); !ok {
		return cfg, false, why
	}
	tick := d.options.tapConfig(d.log)
	var filter engine.Filter
	cfg = reconcile.Config{Services: services, Tick: tick.TickService(), Mirrored: filter.Match}
	d.With(func(e *engine.Engine) { filter, cfg.Kept = e.Filter(), e.Kept() })
	if !d.audit.linear {
		cfg.Limit = reconcile.Limit
	}
	return cfg, true, ""
}

// readKernel tells the engine what the kernel had before this process was started. What this leaves out, and others have as it was before this process's
// former life ended, the join would bring back into the kernel: a connection that was closed meanwhile would be open again. So the list, which leaves some out each
// time, is read three times, unless that takes too long.
func (d *daemon) readKernel(services []tap.Service) {
	cfg, ok, why := d.reconcileConfig(services)
	if !ok {
		d.log.Warn("the kernel's entries are not read: peers and packets will tell of them", "why", why)
		return
	}
	begin, count := time.Now(), 0
	var conns []reconcile.Conn
	enter := func() {
		d.With(func(e *engine.Engine) {
			for i := range conns {
				e.FromKernel(begin, &conns[i].Record, conns[i].Age)
			}
		})
		count += len(conns)
		conns = conns[:0]
	}
	list := ipvs.ReadConns(procRoot)
	again := func(yield func(ipvs.ProcConn, error) bool) {
		if time.Since(begin) < readAgain {
			list(yield)
		}
	}
	for c, err := range reconcile.Conns(cfg, list, again, again) {
		if err != nil {
			d.log.Warn("not all of the kernel's entries could be read", "error", err)
			break
		}
		// What is being opened will be reported when it is open.
		if c.Fault == reconcile.Sound && ipvs.Reported(c.Record.Protocol, c.Record.State, c.Record.Template()) {
			if conns = append(conns, c); len(conns) == auditMost {
				enter()
			}
		}
	}
	if enter(); count > 0 {
		d.log.Info("read what the kernel had", "entries", count, "took", time.Since(begin).Round(time.Millisecond))
	}
}

// auditKernel audits until ctx ends: as often as the replicas are compared, at once when it is asked to, and never so often that it
// costs much.
func (d *daemon) auditKernel(ctx context.Context) error {
	var reading time.Duration // that the latest audit took
	for {
		var due <-chan time.Time
		if wait := d.interval(); wait > 0 {
			due = time.After(max(wait, min(reading*auditShare, time.Minute)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-due:
		case <-d.audit.now:
		case <-d.changed: // the options
			continue
		}
		var err error
		if reading, err = d.auditOnce(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("kernel and replica not compared", "error", err)
		}
		// Also when it is asked for all the time there is a pause.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(reading, time.Minute)):
		}
	}
}

// interval is how often the kernel is audited; 0: only when asked.
func (d *daemon) interval() time.Duration {
	d.optionsMu.Lock()
	defer d.optionsMu.Unlock()
	return d.options.AuditInterval
}

// passes compares kernel and replica some times, with pauses, unless they are equal before. It returns the last result, what was confirmed,
// and how long reading took.
func (d *daemon) passes(ctx context.Context, cfg reconcile.Config) (reconcile.Result, []reconcile.Finding, time.Duration, error) {
	var all reconcile.Confirmation
	var took time.Duration
	truncated := false
	for pass := 1; ; pass++ {
		res, err := reconcile.Run(ctx, cfg, kernelReplica{d.Mirrorer}, ipvs.ReadConns(procRoot))
		if err != nil {
			return res, nil, took, err
		}
		took += res.Ended.Sub(res.Began)
		truncated = truncated || res.Truncated
		res.Truncated = truncated
		all.Add(&res)
		if !all.Open() || pass >= confirmPasses && !all.Pending() || pass == mostPasses {
			return res, all.Confirmed(), took, nil
		}
		select {
		case <-ctx.Done():
			return res, nil, took, ctx.Err()
		case <-time.After(confirmPause):
		}
	}
}

// auditable returns what a pass needs to know, or why there can be none, and notes it.
func (d *daemon) auditable() (cfg reconcile.Config, ok bool, why string, err error) {
	services, err := d.kernel.Services()
	if err != nil {
		return cfg, false, "", err
	}
	cfg, ok, why = d.reconcileConfig(services)
	d.audit.mu.Lock()
	defer d.audit.mu.Unlock()
	d.audit.readable, d.audit.why = ok, why
	return cfg, ok, why, nil
}

// auditOnce audits and repairs. It returns how long reading took.
func (d *daemon) auditOnce(ctx context.Context) (time.Duration, error) {
	a := d.audit
	lost := d.overflowed()
	losses, _ := d.intake.lost() // those from now on this audit may not see
	cfg, ok, why, err := d.auditable()
	if err == nil && ok && lost {
		d.log.Warn("the kernel lost some of what was injected: nothing is confirmed until that is found and injected again", "losses", losses)
		select { // a pass takes what is younger for being on its way
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(reconcile.Settled):
		}
		cfg, ok, why, err = d.auditable()
	}
	if err != nil {
		return 0, err
	}
	if !ok {
		if lost && d.reinject() {
			d.log.Warn("the kernel lost some of what was injected: all of it is injected again", "why", why)
		}
		return 0, nil
	}
	res, findings, took, err := d.passes(ctx, cfg)
	if err != nil {
		if lost && ctx.Err() == nil && d.reinject() {
			d.log.Warn("the kernel lost some of what was injected: all of it is injected again", "why", err)
		}
		return took, err
	}
	if res.Truncated {
		d.log.Warn("kernel and replica differ in more than an audit keeps: there will be another one at once", "differences", len(res.Findings))
		poke(a.now)
	}
	if res.Truncated && lost { // not all of the losses were found
		losses = 0
		d.reinject()
	}
	inject, publish := d.mend(findings, losses)
	if len(findings) > 0 {
		d.log.Info("kernel and replica differed", "findings", len(findings), "injected", inject, "published", publish,
			"first", findings[0].Record().Client, "why", findings[0].Why())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.counts = time.Now(), reconcile.Counts{}
	for kind, n := range res.Counts.All {
		if !kind.Difference() {
			a.counts[kind] = n
		}
	}
	for i := range findings { // of the differences those that were confirmed
		a.counts[findings[i].Kind]++
	}
	a.repaired += uint64(inject + publish)
	return took, nil
}

// mend repairs what an audit has found that began after so many losses. It returns how many entries it has injected and published.
func (d *daemon) mend(findings []reconcile.Finding, losses uint64) (injected, published int) {
	for part := range slices.Chunk(findings, auditMost) {
		d.With(func(e *engine.Engine) {
			now := time.Now()
			// What the kernel has reported since then is newer than what was listed, and stands.
			part = slices.DeleteFunc(slices.Clone(part), func(f reconcile.Finding) bool { return f.Publishes() && !unchanged(e, now, &f) })
			inject, move, publish := reconcile.Repairs(part)
			for i := range inject {
				e.Restore(now, &inject[i].Record)
			}
			for i := range move {
				e.Replace(now, &move[i].Record)
			}
			for i := range publish {
				if publish[i].Fault == reconcile.Sound && e.Found(now, &publish[i].Record, publish[i].Age) {
					published++
				}
			}
			injected += len(inject) + len(move)
			e.Flush()
		})
	}
	d.With(func(*engine.Engine) { d.intake.mend(losses) })
	return injected, published
}

// unchanged reports whether the replica has of an entry what it had when it was compared.
func unchanged(e *engine.Engine, now time.Time, f *reconcile.Finding) bool {
	en, _, known := e.Lookup(now, f.Record())
	if f.Replica == nil {
		return !known
	}
	return known && en.Stamp == f.Replica.Stamp && en.Origin == f.Replica.Origin
}

// sendHalfOpen publishes the connections of some buckets that are being opened, which the kernel does not report. It returns how many.
func (d *daemon) sendHalfOpen(ctx context.Context, by bucketing, buckets []uint16) (int, error) {
	services, err := d.kernel.Services()
	if err != nil {
		return 0, err
	}
	cfg, ok, why := d.reconcileConfig(services)
	if !ok {
		return 0, errUnreadable(why)
	}
	wanted := map[uint32]bool{}
	for _, b := range buckets {
		wanted[uint32(b)] = true
	}
	// What is left out is lost with this director, as no audit will find it in time.
	sent, list := 0, ipvs.ReadConns(procRoot)
	for c, err := range reconcile.Conns(cfg, list, list, list) {
		if err != nil {
			return sent, err
		}
		if ctx.Err() != nil {
			return sent, ctx.Err()
		}
		if c.Fault != reconcile.Sound || !reconcile.Opening(&c.Record) || !by.any(&c.Record, wanted) {
			continue
		}
		d.With(func(e *engine.Engine) {
			if e.Found(time.Now(), &c.Record, c.Age) {
				sent++
			}
		})
	}
	return sent, nil
}

// errUnreadable says why the connections that are being opened were not sent.
type errUnreadable string

func (e errUnreadable) Error() string {
	return "connections that are being opened were not sent: " + string(e)
}

// status is what `saructl sync status` shows.
func (a *kernelAudit) status(now time.Time) control.SyncKernelAudit {
	a.mu.Lock()
	defer a.mu.Unlock()
	return control.SyncKernelAudit{
		LastMSAgo: since(now, a.at), Readable: a.readable, Why: a.why, Repaired: a.repaired,
		MissingInKernel: uint64(a.counts[reconcile.MissingInKernel]), MissingInReplica: uint64(a.counts[reconcile.MissingInReplica]),
	}
}
