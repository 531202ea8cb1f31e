package saru

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/netfilter/share"
	"saru/proto/coord"
	"saru/saru/core"
)

// fakeFilter is a kernel that is only data: what was done to it, in order.
type fakeFilter struct {
	mu     sync.Mutex
	did    []string
	fail   error
	lapsed bool
	lease  time.Time

	virtuals []share.Virtual
	refuse   netip.Addr // an address that may not have services
}

func (f *fakeFilter) do(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.did = append(f.did, fmt.Sprintf(format, args...))
	return nil
}

func (f *fakeFilter) Apply(owned []uint64) error { return f.do("apply %v", bucketsOf(owned)) }

func (f *fakeFilter) SetVirtuals(v []share.Virtual) error {
	if slices.ContainsFunc(v, func(v share.Virtual) bool { return v.Address == f.refuse && len(v.Services) > 0 }) {
		return &share.RefusedError{Address: f.refuse, Err: errors.New("odd")}
	}
	f.mu.Lock()
	f.virtuals = slices.Clone(v)
	f.mu.Unlock()
	return f.do("virtuals %d", len(v))
}

func (f *fakeFilter) Grant(remaining func() time.Duration) error {
	return f.renew("grant", remaining)
}

func (f *fakeFilter) Renew(remaining func() time.Duration) error {
	f.mu.Lock()
	lapsed := f.lapsed
	f.mu.Unlock()
	if lapsed {
		return share.ErrLapsed
	}
	return f.renew("renew", remaining)
}

func (f *fakeFilter) renew(what string, remaining func() time.Duration) error {
	if err := f.do("%s", what); err != nil {
		return err
	}
	f.mu.Lock()
	f.lease = time.Now().Add(remaining())
	f.mu.Unlock()
	return nil
}

func (f *fakeFilter) CloseShare() error { return f.do("close") }

// take returns what was done since, without renewals.
func (f *fakeFilter) take() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out = slices.DeleteFunc(f.did, func(s string) bool { return s == "renew" })
	f.did = nil
	return out
}

// heard notes what the worker tells, between what it does.
type heard struct{ f *fakeFilter }

func (h heard) applied(gen uint64) { _ = h.f.do("applied %d", gen) }
func (h heard) lapsed()            { _ = h.f.do("lapsed") }
func (h heard) flushed(gen uint64) { _ = h.f.do("flushed %d", gen) }

func (h heard) filterFailed(err error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.did = append(h.f.did, fmt.Sprintf("failed: %v", err))
}

// inWorker runs fn beside a worker, in a bubble.
func inWorker(t *testing.T, fn func(t *testing.T, w *worker, f *fakeFilter)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFilter{}
		virtuals := func(fn *coord.Function) []share.Virtual {
			if fn == nil {
				return nil
			}
			return make([]share.Virtual, len(fn.Virtuals))
		}
		w := newWorker(f, nil, 128, 100*time.Millisecond, virtuals, slog.New(slog.DiscardHandler))
		w.tell = heard{f}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = w.run(ctx) })
		defer wg.Wait()
		defer cancel()
		fn(t, w, f)
	})
}

func set(buckets ...int) []uint64 {
	out := make([]uint64, 2)
	for _, b := range buckets {
		out[b/64] |= 1 << (b % 64)
	}
	return out
}

func expect(t *testing.T, f *fakeFilter, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Fatalf("(-want +got)\n%s", diff)
	}
}

// TestWorkerOrder: what is closed is closed first and said at once; addresses change while nothing new is open; then the rest opens, and the lease follows.
func TestWorkerOrder(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		fn := &coord.Function{Virtuals: make([]coord.Virtual, 2)}
		lease := func() time.Time { return time.Now().Add(300 * time.Millisecond) }
		w.want(core.Desired{Gen: 1, Open: set(1, 2, 100), Lease: lease(), Function: fn})
		expect(t, f, "virtuals 2", "applied 1", "apply [1 2 100]", "grant")
		w.want(core.Desired{Gen: 2, Open: set(2, 3), Lease: lease(), Function: fn})
		expect(t, f, "apply [2]", "applied 2", "apply [2 3]")
		w.want(core.Desired{Gen: 3, Lease: lease(), Function: &coord.Function{}})
		expect(t, f, "apply []", "virtuals 0", "applied 3")
	})
}

// TestWorkerRenews: the lease that the kernel gets is that of the newest Desired, each period; when it ends, nothing prolongs it.
func TestWorkerRenews(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		begin := time.Now()
		for i := range 10 {
			w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(300 * time.Millisecond)})
			synctest.Wait()
			if i == 0 {
				expect(t, f, "applied 1", "apply [1]", "grant")
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		renewals := 0
		for _, s := range f.did {
			if s == "renew" {
				renewals++
			}
		}
		if end := f.lease.Sub(begin); end != 1200*time.Millisecond || renewals < 10 || renewals > 13 {
			t.Errorf("%d renewals, the last lease ends after %v: want 1.2s, 300ms after the last heartbeat; %q", renewals, end, f.did)
		}
	})
}

// TestWorkerLapsed: where the kernel let a lease end, everything is closed, and opened and granted anew while the director may hold it.
func TestWorkerLapsed(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(10 * time.Second)})
		expect(t, f, "applied 1", "apply [1]", "grant")
		f.mu.Lock()
		f.lapsed = true
		f.mu.Unlock()
		time.Sleep(110 * time.Millisecond)
		synctest.Wait()
		if got := f.take(); !slices.Equal(got[:3], []string{"close", "apply [1]", "grant"}) {
			t.Fatalf("%q", got)
		}
		w.want(core.Desired{Gen: 2})
		synctest.Wait()
		f.take()
		f.mu.Lock()
		f.lapsed = false
		f.mu.Unlock()
		w.want(core.Desired{Gen: 3, Open: set(1), Lease: time.Now().Add(10 * time.Second)})
		expect(t, f, "applied 3", "apply [1]", "grant")
	})
}

// TestWorkerFails: an error is told once, tried again, and what was not done is not said to be.
func TestWorkerFails(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		w.want(core.Desired{Gen: 1, Open: set(1, 2), Lease: time.Now().Add(time.Hour)})
		expect(t, f, "applied 1", "apply [1 2]", "grant")
		f.mu.Lock()
		f.fail = errors.New("no memory")
		f.mu.Unlock()
		w.want(core.Desired{Gen: 2, Open: set(1), Lease: time.Now().Add(time.Hour)})
		time.Sleep(time.Second)
		expect(t, f, "failed: no memory")
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := strings.Join(f.take(), ", "); got != "apply [1], applied 2, failed: <nil>" {
			t.Errorf("%q", got)
		}
	})
}

// TestWorkerMended: after somebody else's change the kernel is empty; everything is done again.
func TestWorkerMended(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		fn := &coord.Function{Virtuals: make([]coord.Virtual, 1)}
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(time.Hour), Function: fn})
		expect(t, f, "virtuals 1", "applied 1", "apply [1]", "grant")
		w.mended()
		expect(t, f, "virtuals 1", "apply [1]", "grant")
	})
}

// TestWorkerWaitsForSyncd: buckets that syncd does not bring into the kernel in time open all the same, also where nothing else is open; and the lease follows.
func TestWorkerWaitsForSyncd(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		w.syncd = newSyncdLink("nobody", 0, nil, w.log)
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(time.Hour)})
		time.Sleep(readyLimit - time.Millisecond)
		expect(t, f, "applied 1")
		time.Sleep(2 * w.period)
		expect(t, f, "apply [1]", "grant")
	})
}

// TestWorkerLeaseAlone: a lease that is prolonged after it has ended here does not wake the worker, and is found all the same.
func TestWorkerLeaseAlone(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(50 * time.Millisecond)})
		expect(t, f, "applied 1", "apply [1]", "grant")
		time.Sleep(time.Second)
		synctest.Wait()
		f.take()
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(300 * time.Millisecond)})
		time.Sleep(w.period)
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if !slices.Equal(f.did, []string{"renew"}) {
			t.Errorf("%q", f.did)
		}
	})
}

// TestWorkerRefused: a virtual address whose services the filter refuses stays closed, and is told; the others are served.
func TestWorkerRefused(t *testing.T) {
	inWorker(t, func(t *testing.T, w *worker, f *fakeFilter) {
		bad, good := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		var services []share.Service
		f.refuse = bad
		w.virtuals = func(*coord.Function) []share.Virtual {
			return []share.Virtual{{Address: bad, Open: true, Services: services}, {Address: good, Open: true, Services: make([]share.Service, 1)}}
		}
		fn := &coord.Function{}
		w.want(core.Desired{Gen: 1, Open: set(1), Lease: time.Now().Add(time.Hour), Function: fn})
		expect(t, f, "virtuals 2", "applied 1", "apply [1]", "grant")
		services = make([]share.Service, 1)
		w.servicesChanged()
		expect(t, f, "virtuals 2", "failed: virtual address 192.0.2.1 stays closed: odd")
		if got := f.virtuals; got[0].Open || len(got[0].Services) != 0 || !got[1].Open || len(got[1].Services) != 1 {
			t.Errorf("%+v", got)
		}
		w.want(core.Desired{Gen: 2, Open: set(1, 2), Lease: time.Now().Add(time.Hour), Function: fn})
		expect(t, f, "applied 2", "apply [1 2]")
		services = nil
		w.servicesChanged()
		expect(t, f, "virtuals 2", "failed: <nil>")
	})
}
