package syncd

import (
	"context"
	"errors"
	"net/url"
	"time"

	"saru/lib/control"
	"saru/lib/peer"
	"saru/syncd/engine"
	"saru/syncd/reconcile"
	"saru/syncd/table"
	"saru/syncd/transfer"
)

// errNotTeaching is why a peer cannot be compared with.
var errNotTeaching = errors.New("it does not teach (--join)")

// compareTries is how often what differs between two replicas is looked at before it is called a difference: under load a connection may
// change between the two looks at it.
const compareTries = 3

const (
	// busyTime is how long a teacher is waited for that has sessions enough: directors may be asked to compare all at once, beside audits.
	busyTime = 10 * time.Second
	// busyPause lies between two tries.
	busyPause = 100 * time.Millisecond
)

// compare answers `saructl sync compare`: this director's kernel, its replica, and those of its peers.
func (d *daemon) compare(ctx context.Context, q url.Values, emit func(any) error) error {
	if err := control.Parameters(q); err != nil {
		return err
	}
	sum := control.CompareSummary{Equal: true, Peers: []control.ComparePeer{}}
	k, err := d.compareKernel(ctx, emit)
	if err != nil {
		return err
	}
	sum.Kernel, sum.Equal = k, k.Equal
	var teachers []engine.Teacher
	d.With(func(e *engine.Engine) { teachers = e.Teachers() })
	for i, t := range teachers {
		phase := control.Progress{Phase: "comparing with " + t.Name, Done: uint64(i), Total: uint64(len(teachers))}
		if err := emit(control.CompareLine{Progress: &phase}); err != nil {
			return err
		}
		p, err := d.comparePeer(ctx, t, emit)
		if err != nil {
			return err
		}
		sum.Peers = append(sum.Peers, p)
		sum.Equal = sum.Equal && p.Equal
	}
	return emit(control.CompareLine{Summary: &sum})
}

// compareKernel compares the replica with this director's kernel.
func (d *daemon) compareKernel(ctx context.Context, emit func(any) error) (control.CompareKernel, error) {
	k := control.CompareKernel{Explained: map[string]uint64{}}
	if err := emit(control.CompareLine{Progress: &control.Progress{Phase: "reading the kernel's list"}}); err != nil {
		return k, err
	}
	services, err := d.kernel.Services()
	if err != nil {
		return k, err
	}
	cfg, ok, why := d.reconcileConfig(services)
	if k.Readable, k.Why = ok, why; !ok {
		return k, nil
	}
	res, findings, _, err := d.passes(ctx, cfg)
	if err != nil {
		return k, err
	}
	for kind, n := range res.Counts.All {
		if !kind.Difference() && n > 0 {
			k.Explained[kind.String()] = uint64(n)
		}
	}
	k.Compared = uint64(res.Kernel + res.Counts[reconcile.MissingInKernel] + res.Counts[reconcile.Gone])
	k.Differ, k.Equal = uint64(len(findings)), len(findings) == 0
	for i := range findings {
		f := &findings[i]
		var here, there *control.Connection
		if f.Replica != nil {
			here = d.connection(f.Replica)
		}
		if f.Kernel != nil {
			c := control.NewConnection(&f.Kernel.Record, "", int64(f.Kernel.Expires/time.Second))
			there = &c
		}
		diff := control.NewDifference(control.WithKernel, f.Why(), here, there)
		if err := emit(control.CompareLine{Difference: &diff}); err != nil {
			return k, err
		}
	}
	return k, nil
}

func (d *daemon) connection(en *table.Entry) *control.Connection {
	c := control.NewConnection(&en.Record, replica{d.Mirrorer}.OriginName(en.Origin), int64(en.Remaining/time.Second))
	return &c
}

// comparePeer compares the replica with that of a peer. Only what differs in the same way each time is a difference.
func (d *daemon) comparePeer(ctx context.Context, t engine.Teacher, emit func(any) error) (control.ComparePeer, error) {
	p := control.ComparePeer{Node: t.Name}
	var l *look
	for try := 0; try < compareTries && (try == 0 || l.differ() > 0); try++ {
		l = newLook(l)
		err := d.differences(ctx, t, l)
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if err != nil {
			p.Error = oneLine(err)
			return p, nil
		}
		d.With(func(e *engine.Engine) { p.Compared = uint64(e.Len()) })
	}
	p.Differ, p.Unlisted, p.Equal = l.differ(), l.more, l.differ() == 0
	for _, f := range l.found {
		var here, there *control.Connection
		if f.here != nil {
			here = d.connection(f.here)
		}
		if f.there != nil {
			there = d.connection(f.there)
		}
		diff := control.NewDifference(t.Name, f.why(t.Name), here, there)
		if err := emit(control.CompareLine{Difference: &diff}); err != nil {
			return p, err
		}
	}
	return p, nil
}

// differences looks once at what differs between the replica and a peer's.
func (d *daemon) differences(ctx context.Context, t engine.Teacher, l *look) error {
	if !t.Addr.IsValid() {
		return errNotTeaching
	}
	l.cut = replica{d.Mirrorer}.cut()
	learn := func(entries []table.Entry, _ map[peer.ID]string) {
		d.With(func(e *engine.Engine) { l.theirs(time.Now(), e, entries) })
	}
	res, err := d.pull(ctx, t, transfer.Compare, learn, nil)
	for limit := time.Now().Add(busyTime); errors.Is(err, transfer.ErrBusy) && time.Now().Before(limit); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(busyPause):
		}
		res, err = d.pull(ctx, t, transfer.Compare, learn, nil)
	}
	if err != nil {
		return err
	}
	for _, b := range res.Buckets {
		d.With(func(e *engine.Engine) { l.lacking(time.Now(), e, b) })
	}
	l.end()
	return nil
}
