package syncd

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/syncd/engine"
)

const (
	// flushTime is how long a flush reads the kernel's list, and then waits for the confirmation of the peers: some heartbeats, and what a kernel
	// may need to enter a full receive buffer.
	flushTime = 3 * time.Second
	// flushPoll is how often it looks.
	flushPoll = 2 * time.Millisecond
)

// flush makes sure that everything that this director knows of some buckets is in the kernels of all peers: what its own kernel still
// holds back, and connections of which the client has not sent its first packet after the handshake, which a kernel does not report.
// Call it when the buckets are closed here, so that no packet comes any more. Buckets are those of the share function that saru has told, or of
// flow.Default.
func (d *daemon) flush(ctx context.Context, q url.Values) (control.FlushSummary, error) {
	sum := control.FlushSummary{Confirmed: []control.FlushPeer{}, Missing: []string{}}
	if err := control.Parameters(q, "buckets"); err != nil {
		return sum, err
	}
	var by bucketing
	d.With(func(e *engine.Engine) { by.share = e.Share() })
	buckets, err := flow.ParseBuckets(q.Get("buckets"), by.buckets())
	if err != nil {
		return sum, fmt.Errorf("%w: buckets: %w", control.ErrBadRequest, err)
	}
	begin := time.Now()
	ms := func() float64 { return milliseconds(time.Since(begin)) }
	sum.Buckets = len(buckets)

	// The kernel gives out what it holds back while its list is read.
	through := make(chan bool, 1)
	go func() {
		bctx, cancel := context.WithTimeout(ctx, barrierTime)
		defer cancel()
		ok := d.barrier.wait(bctx, d.barrier.newest()+1)
		sum.BarrierMS = ms()
		through <- ok
	}()
	var why []string
	// This goes on when whoever asked waits no longer: a connection that is left out is lost with this director.
	hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	sent, err := d.sendHalfOpen(hctx, by, buckets)
	cancel()
	sum.HalfOpen = uint64(sent)
	if err != nil {
		why = append(why, err.Error())
	}
	if !<-through {
		why = append(why, fmt.Sprintf("the kernel did not give out what it holds back within %v", barrierTime))
	}
	d.With(func(e *engine.Engine) {
		if !e.Published() {
			why = append(why, "this director has not joined yet, and holds its own connections back")
		}
		sum.Sequence = e.AskConfirmation(time.Now())
	})
	defer d.With((*engine.Engine).EndConfirmation)
	// Who was alive at the beginning must confirm, or is named: also who is lost meanwhile.
	waiting, confirmed := map[string]bool{}, map[string]bool{}
	for end := time.Now().Add(flushTime); ; {
		var have, lack []string
		d.With(func(e *engine.Engine) { have, lack = e.Confirmation(sum.Sequence) })
		for _, name := range lack {
			waiting[name] = true
		}
		for _, name := range have {
			delete(waiting, name)
			if !confirmed[name] {
				confirmed[name] = true
				sum.Confirmed = append(sum.Confirmed, control.FlushPeer{Node: name, MS: ms()})
			}
		}
		if len(lack) == 0 || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
			return sum, ctx.Err()
		case <-time.After(flushPoll):
		}
	}
	sum.Missing = slices.AppendSeq(sum.Missing, maps.Keys(waiting))
	slices.Sort(sum.Missing)
	if len(waiting) > 0 {
		why = append(why, "not confirmed by "+strings.Join(sum.Missing, ", "))
	}
	sum.TookMS, sum.Why, sum.Complete = ms(), strings.Join(why, "; "), len(why) == 0
	return sum, nil
}

// serveFlush answers `saructl sync flush`.
func (d *daemon) serveFlush(ctx context.Context, q url.Values, emit func(any) error) error {
	sum, err := d.flush(ctx, q)
	if err != nil {
		return err
	}
	return emit(control.FlushLine{Summary: &sum})
}
