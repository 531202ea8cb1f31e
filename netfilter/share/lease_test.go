package share

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream writes packets of one flow and says for each whether it arrives.
type stream struct {
	w    *world
	sock int
	pkt  []byte
	buf  []byte
}

func (w *world) stream() *stream {
	return &stream{w, w.raw(true, unix.IPPROTO_UDP), datagram(flowOf("11.0.0.1:1000", "192.0.2.1:80")), make([]byte, 2048)}
}

func (s *stream) passes() bool {
	s.w.t.Helper()
	s.w.write(s.w.out, s.pkt)
	passed := false
	for next(s.w.t, s.sock, true, s.buf) != nil {
		passed = true
	}
	return passed
}

// mustLast fails unless packets pass until a lease ends, and none afterwards. The kernel counts in jiffies, of 4 ms here and on Debian, rounds a timeout down to them, and the present
// one has begun: a lease may end up to two of them early. Two times bound the moment in which a packet meets the filter; the bounds that count are those that do not depend on
// how long this process waits for its processor.
func (s *stream) mustLast(start time.Time, lease time.Duration) {
	s.w.t.Helper()
	const early, late = 10 * time.Millisecond, 2 * time.Millisecond
	open, closed := time.Duration(-1), time.Duration(-1) // the last packet that passed, the first that did not
	for time.Since(start) < lease+50*time.Millisecond || closed < 0 {
		before := time.Since(start)
		passed := s.passes()
		after := time.Since(start)
		switch {
		case passed && closed >= 0:
			s.w.t.Fatalf("open again %v after the beginning, closed at %v", before, closed)
		case passed:
			open = before
		case closed < 0:
			closed = after
		}
		if before > lease+time.Second {
			break
		}
	}
	s.w.t.Logf("a lease of %v: the last packet passed at %v, the first did not at %v", lease, open, closed)
	if open > lease+late || closed < lease-early {
		s.w.t.Errorf("a lease of %v: the last packet passed at %v, the first did not at %v", lease, open, closed)
	}
}

// owner returns a filter that owns everything, without a lease.
func (w *world) owner(period time.Duration) *Filter {
	w.t.Helper()
	cfg := testConfig()
	cfg.Period = period
	f := mustOpen(w.t, cfg)
	must(w.t, f.Apply(buckets(cfg.Function.Buckets, all)))
	return f
}

// until returns what remains until a moment.
func until(end time.Time) func() time.Duration {
	return func() time.Duration { return time.Until(end) }
}

func TestLeaseEndsOnTime(t *testing.T) {
	w := newWorld(t)
	f, s := w.owner(100*time.Millisecond), w.stream()
	for range 5 {
		const lease = 150 * time.Millisecond
		start := time.Now()
		must(t, f.Grant(until(start.Add(lease))))
		if !s.passes() {
			t.Fatal("closed after Grant")
		}
		s.mustLast(start, lease)
		if err := f.Renew(lasts(time.Minute)); !errors.Is(err, ErrLapsed) {
			t.Errorf("Renew after the end: %v", err)
		}
		if s.passes() {
			t.Fatal("open after a renewal that came too late")
		}
	}
}

// TestRenewWithoutGap renews a short lease many times under traffic: each packet passes.
func TestRenewWithoutGap(t *testing.T) {
	w := newWorld(t)
	const period = 10 * time.Millisecond
	f, s := w.owner(period), w.stream()
	must(t, f.Grant(lasts(200*time.Millisecond)))
	stop, renewed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { renewed <- n }()
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if err := f.Renew(lasts(500 * time.Millisecond)); err != nil {
					t.Error(err)
					return
				}
				n++
			}
		}
	}()
	sent, lost := 0, 0
	for start := time.Now(); time.Since(start) < 1500*time.Millisecond; sent++ {
		if !s.passes() {
			lost++
		}
	}
	close(stop)
	n := <-renewed
	t.Logf("%d packets during %d renewals, %d lost", sent, n, lost)
	if lost > 0 || n < 50 || sent < 1000 {
		t.Errorf("%d packets during %d renewals, %d lost", sent, n, lost)
	}
}

// TestDelayedRenewal stops this process, as it were, between reading the clock and telling the kernel.
func TestDelayedRenewal(t *testing.T) {
	const period = 100 * time.Millisecond
	for name, tt := range map[string]struct {
		delay time.Duration
		calls int // of remaining: more than one if the kernel has refused
		renew bool
	}{
		"grant, in time": {0, 1, false},
		"grant, late":    {80 * time.Millisecond, 2, false},
		"renew, in time": {0, 1, true},
		"renew, late":    {80 * time.Millisecond, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f, s := w.owner(period), w.stream()
			set := f.Grant
			if tt.renew {
				must(t, f.Grant(lasts(time.Second)))
				time.Sleep(period + 5*time.Millisecond)
				set = f.Renew
			}
			start := time.Now()
			const lease = 300 * time.Millisecond
			calls := 0
			must(t, set(func() time.Duration {
				calls++
				left := time.Until(start.Add(lease))
				if calls == 1 {
					time.Sleep(tt.delay)
				}
				return left
			}))
			if calls != tt.calls {
				t.Errorf("the clock was read %d times, want %d", calls, tt.calls)
			}
			// Had the first answer counted, the lease would end tt.delay later.
			s.mustLast(start, lease)
		})
	}
}

// A process that is always late between clock and kernel gets no lease, and the one that it has ends when it would have ended.
func TestAlwaysLate(t *testing.T) {
	w := newWorld(t)
	f, s := w.owner(100*time.Millisecond), w.stream()
	tooLate := func() time.Duration {
		time.Sleep(70 * time.Millisecond)
		return time.Minute
	}
	if err := f.Grant(tooLate); !errors.Is(err, unix.ENOENT) || errors.Is(err, ErrLapsed) {
		t.Errorf("Grant: %v", err)
	}
	if s.passes() {
		t.Error("open after a grant that was late")
	}
	start := time.Now()
	const lease = 600 * time.Millisecond
	must(t, f.Grant(until(start.Add(lease))))
	if err := f.Renew(tooLate); !errors.Is(err, unix.ENOENT) || errors.Is(err, ErrLapsed) {
		t.Errorf("Renew: %v", err)
	}
	s.mustLast(start, lease)
}

// TestFence: a fence that has timed out is set again; one that is still long is shortened before the clock is read.
func TestFence(t *testing.T) {
	w := newWorld(t)
	const period = 100 * time.Millisecond
	f := w.owner(period)
	must(t, f.Grant(lasts(5*time.Second)))
	for _, wait := range []time.Duration{0, period + 5*time.Millisecond, period + defaultSlack + 20*time.Millisecond} {
		time.Sleep(wait)
		var during time.Duration
		start := time.Now()
		must(t, f.Renew(func() time.Duration {
			// Read would wait for the lock that Renew holds.
			elements, err := f.listing().elements(setFence)
			must(t, err)
			for _, e := range elements {
				during = e.Expires
			}
			return 5 * time.Second
		}))
		if during > defaultSlack || during == 0 {
			t.Errorf("%v after the last renewal: a fence of %v when the clock is read", wait, during)
		}
		st, err := f.Read()
		must(t, err)
		took := time.Since(start) + 10*time.Millisecond // jiffies, as in mustLast
		if st.Fence > period+defaultSlack || st.Fence != 0 && st.Fence < period+defaultSlack-took {
			t.Errorf("a fence of %v after a renewal", st.Fence)
		}
		if st.Lease > 5*time.Second || st.Lease < 5*time.Second-took {
			t.Errorf("a lease of %v after a renewal", st.Lease)
		}
	}
}

func TestNothingRemains(t *testing.T) {
	w := newWorld(t)
	f, s := w.owner(100*time.Millisecond), w.stream()
	for _, left := range []time.Duration{0, -time.Second, time.Millisecond - 1} {
		must(t, f.Apply(buckets(f.cfg.Function.Buckets, all)))
		must(t, f.Grant(lasts(time.Minute)))
		if !s.passes() {
			t.Fatal("closed")
		}
		if err := f.Renew(lasts(left)); !errors.Is(err, ErrLapsed) {
			t.Errorf("%v remain: %v", left, err)
		}
		st, err := f.Read()
		must(t, err)
		if s.passes() || st.Lease != 0 || !none(st.Owned) {
			t.Errorf("%v remain: passes %v, %+v", left, s.passes(), st)
		}
	}
}
