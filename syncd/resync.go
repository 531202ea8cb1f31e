package syncd

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"saru/lib/control"
	"saru/lib/peer"
	"saru/syncd/engine"
	"saru/syncd/table"
	"saru/syncd/transfer"
)

// resync answers `saructl sync resync`: it pulls the whole table of every live peer, or of one, and gives all of it to the kernel again.
func (d *daemon) resync(ctx context.Context, q url.Values, emit func(any) error) error {
	if err := control.Parameters(q, "peer"); err != nil {
		return err
	}
	var teachers []engine.Teacher
	d.With(func(e *engine.Engine) { teachers = e.Teachers() })
	if name := q.Get("peer"); name != "" {
		var one []engine.Teacher
		for _, t := range teachers {
			if t.Name == name {
				one = append(one, t)
			}
		}
		if teachers = one; len(one) == 0 {
			return fmt.Errorf("%w: peer: no live peer is named %q", control.ErrBadRequest, name)
		}
	}
	sum := control.ResyncSummary{Peers: []control.ResyncPeer{}}
	for _, t := range teachers {
		p, err := d.resyncFrom(ctx, t, emit)
		if err != nil {
			return err
		}
		sum.Peers = append(sum.Peers, p)
	}
	d.With((*engine.Engine).Reinject)
	sum.Injected = d.keptRemote()
	return emit(control.ResyncLine{Summary: &sum})
}

func (d *daemon) resyncFrom(ctx context.Context, t engine.Teacher, emit func(any) error) (control.ResyncPeer, error) {
	p := control.ResyncPeer{Node: t.Name}
	if !t.Addr.IsValid() {
		p.Error = errNotTeaching.Error()
		return p, nil
	}
	var gone error // the client
	learn := replica{d.Mirrorer}.learn(ctx, func(e *engine.Engine, now time.Time, entries []table.Entry, names map[peer.ID]string) {
		p.Changed += e.Learned(now, entries, names)
	})
	progress := func(done, total uint64) {
		if gone == nil {
			gone = emit(control.ResyncLine{Progress: &control.Progress{Phase: "fetching the table of " + t.Name, Done: done, Total: total}})
		}
	}
	res, err := d.pull(ctx, t, transfer.Join, learn, progress)
	switch {
	case ctx.Err() != nil:
		return p, ctx.Err()
	case gone != nil:
		return p, gone
	case err != nil:
		p.Error = oneLine(err)
	}
	p.Entries, p.TookMS = res.Entries, int64(res.Took/time.Millisecond)
	return p, nil
}
