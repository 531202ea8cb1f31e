package saru

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"sync"
	"time"

	"saru/netfilter/share"
	"saru/proto/coord"
	"saru/saru/core"
)

// filter is what the worker needs of share.Filter.
type filter interface {
	Apply(owned []uint64) error
	SetVirtuals([]share.Virtual) error
	Grant(remaining func() time.Duration) error
	Renew(remaining func() time.Duration) error
	CloseShare() error
}

// events is whom the worker tells what has been done.
type events interface {
	applied(gen uint64)
	lapsed()
	flushed(gen uint64)
	filterFailed(err error) // it fails, or some addresses stay closed; nil: all is well again
}

// worker makes the kernel do what the coordinator desires: closing first, then addresses, then opening, then the lease. The lease that it renews is always that of
// the set that the kernel has (docs/SAFETY.md, section 3): both come from one Desired.
type worker struct {
	filter  filter
	syncd   *syncdLink // nil: there is none
	period  time.Duration
	words   int // of a set of buckets
	log     *slog.Logger
	tell    events
	poke    chan struct{}
	flushes chan core.Flush
	// virtuals makes the filter's addresses of a share function, with the services that this director has now.
	virtuals func(*coord.Function) []share.Virtual

	mu      sync.Mutex
	latest  core.Desired
	redo    bool // somebody has changed the table: it was installed anew, closed
	refresh bool // services have changed
}

func newWorker(f filter, s *syncdLink, buckets uint32, period time.Duration, virtuals func(*coord.Function) []share.Virtual, log *slog.Logger) *worker {
	return &worker{
		filter: f, syncd: s, period: period, words: int(buckets+63) / 64, log: log, virtuals: virtuals,
		poke: make(chan struct{}, 1), flushes: make(chan core.Flush, 64),
	}
}

// want takes over what is desired.
func (w *worker) want(d core.Desired) {
	w.mu.Lock()
	// A longer lease alone is found when it is time to renew.
	waits := d.Gen != w.latest.Gen || w.latest.Lease.IsZero() || d.Lease.Before(w.latest.Lease)
	w.latest = d
	w.mu.Unlock()
	if waits {
		w.wake()
	}
}

// mended tells that the table was installed anew and is closed.
func (w *worker) mended() {
	w.mu.Lock()
	w.redo = true
	w.mu.Unlock()
	w.wake()
}

// servicesChanged asks for the addresses to be made anew.
func (w *worker) servicesChanged() {
	w.mu.Lock()
	w.refresh = true
	w.mu.Unlock()
	w.wake()
}

func (w *worker) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *worker) flush(f core.Flush) { w.flushes <- f }

// inKernel is what the worker has put into the kernel.
type inKernel struct {
	gen      uint64 // nothing more than what Desired of this generation says
	open     []uint64
	function *coord.Function
	leased   bool
	renewAt  time.Time
	refused  error  // of addresses that stay closed
	told     string // what is wrong, as it was told last; empty: nothing
}

// retry is when a transaction that failed is tried again.
const retry = 100 * time.Millisecond

// run works until ctx ends.
func (w *worker) run(ctx context.Context) error {
	k := inKernel{open: make([]uint64, w.words)}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		d, redo, refresh := w.latest, w.redo, w.refresh
		w.redo, w.refresh = false, false
		w.mu.Unlock()
		if redo {
			k = inKernel{gen: k.gen, open: make([]uint64, w.words), told: k.told}
		}
		wait, err := w.work(&k, d, refresh)
		if err != nil {
			w.log.Error("filter", "error", err)
			wait = retry
			if refresh {
				w.mu.Lock()
				w.refresh = true
				w.mu.Unlock()
			}
		}
		w.report(&k, cmp.Or(err, k.refused))
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-w.poke:
		case <-timer.C:
		}
	}
}

// report tells what is wrong, when that has changed.
func (w *worker) report(k *inKernel, wrong error) {
	text := ""
	if wrong != nil {
		text = wrong.Error()
	}
	if text != k.told {
		k.told = text
		w.tell.filterFailed(wrong)
	}
}

// work does what is to be done now, and says when to look again.
func (w *worker) work(k *inKernel, d core.Desired, refresh bool) (time.Duration, error) {
	want := make([]uint64, w.words)
	copy(want, d.Open)
	keep := make([]uint64, w.words)
	for i := range want {
		keep[i] = want[i] & k.open[i]
	}
	if !slices.Equal(keep, k.open) {
		if err := w.filter.Apply(keep); err != nil {
			return 0, err
		}
		k.open = keep
	}
	if d.Function != k.function || refresh {
		var err error
		if k.refused, err = w.setVirtuals(w.virtuals(d.Function)); err != nil {
			return 0, err
		}
		k.function = d.Function
	}
	if d.Gen != k.gen {
		k.gen = d.Gen
		w.tell.applied(d.Gen)
	}
	if !slices.Equal(want, k.open) && (w.syncd == nil || w.syncd.ready(d.Gen)) {
		if err := w.filter.Apply(want); err != nil {
			return 0, err
		}
		k.open = want
	}
	return w.lease(k, d)
}

// setVirtuals sets the filter's addresses. One whose services cannot be shared stays closed, and does not keep the others from being served.
func (w *worker) setVirtuals(list []share.Virtual) (refused, err error) {
	for {
		err := w.filter.SetVirtuals(list)
		var one *share.RefusedError
		if !errors.As(err, &one) {
			return refused, err
		}
		i := slices.IndexFunc(list, func(v share.Virtual) bool { return v.Address == one.Address && len(v.Services) > 0 })
		if i < 0 {
			return refused, err
		}
		list[i].Open, list[i].Services = false, nil
		w.log.Error("a virtual address stays closed", "address", one.Address, "error", one.Err)
		refused = errors.Join(refused, fmt.Errorf("virtual address %v stays closed: %w", one.Address, one.Err))
	}
}

// lease renews the lease when it is time.
func (w *worker) lease(k *inKernel, d core.Desired) (time.Duration, error) {
	now := time.Now()
	if d.Lease.IsZero() || none(k.open) {
		k.leased = false // it ends by itself
		if none(d.Open) {
			return time.Hour, nil
		}
		return w.period, nil // syncd is waited for; and a lease that is given anew alone does not wake
	}
	remaining := func() time.Duration { return time.Until(w.entitled(d)) }
	if remaining() <= 0 {
		return w.period, nil // the coordinator will notice; if it has prolonged the lease just now, it has not woken this
	}
	var err error
	switch {
	case !k.leased:
		err = w.filter.Grant(remaining)
	case now.Before(k.renewAt):
		return k.renewAt.Sub(now), nil
	default:
		err = w.filter.Renew(remaining)
	}
	if errors.Is(err, share.ErrLapsed) {
		// The kernel may have been closed on the way. What this director may hold, it holds by its heartbeats, which were echoed: while that lasts, a lease that
		// the kernel let end because the renewal was late is given again, by all the rules of a new one.
		w.log.Warn("the kernel's lease ended before it was renewed", "remains", remaining())
		k.leased, k.open = false, make([]uint64, w.words)
		if remaining() <= 0 {
			w.tell.lapsed()
			return retry, w.filter.CloseShare()
		}
		return time.Millisecond, w.filter.CloseShare()
	}
	if err != nil {
		return 0, err
	}
	k.leased, k.renewAt = true, time.Now().Add(w.period)
	return w.period, nil
}

// entitled is until when this director may hold what d desires: what was done since may have taken long, and heartbeats have been echoed meanwhile.
func (w *worker) entitled(d core.Desired) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.latest.Gen == d.Gen && w.latest.Lease.After(d.Lease) {
		return w.latest.Lease
	}
	return d.Lease
}

func none(set []uint64) bool {
	return !slices.ContainsFunc(set, func(word uint64) bool { return word != 0 })
}

// bucketsOf lists the buckets of a set.
func bucketsOf(set []uint64) (out []uint16) {
	for i, word := range set {
		for ; word != 0; word &= word - 1 {
			out = append(out, uint16(64*i+bits.TrailingZeros64(word)))
		}
	}
	return out
}

// flushAll answers the coordinator's requests to flush, until ctx ends.
func (w *worker) flushAll(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-w.flushes:
			if w.syncd != nil {
				w.syncd.flush(ctx, f.Buckets)
			}
			w.tell.flushed(f.Gen)
		}
	}
}
