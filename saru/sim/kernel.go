package sim

import (
	"fmt"
	"time"

	"saru/proto/coord"
)

// kernel is what a director's kernel has: which buckets are in the set of owned ones, and when the lease element expires. It outlives the process.
type kernel struct {
	d     *Director
	open  [Buckets]bool
	lease time.Duration // time of the world at which it ends
	line  coord.Line    // of the tables by which something was opened last
	fence time.Duration
	since [Buckets]time.Duration // when it began to accept
	until [Buckets]time.Duration // when it last accepted
}

func (k *kernel) accepts(b int, now time.Duration) bool { return k.open[b] && now < k.lease }

// set changes what the kernel has, and checks the invariant.
func (k *kernel) set(open [Buckets]bool, lease time.Duration) {
	w := k.d.w
	for b := range Buckets {
		was, is := k.accepts(b, w.now), open[b] && w.now < lease
		switch {
		case k.open[b] && !was && k.lease > k.until[b]:
			k.until[b] = min(k.lease, w.now) // the lease had ended by itself
		case was && !is:
			k.until[b] = w.now
		}
		if is && !was {
			k.since[b] = w.now
			k.check(b)
		}
	}
	k.open, k.lease = open, lease
}

// ended is when the kernel last accepted a bucket.
func (k *kernel) ended(b int, now time.Duration) time.Duration {
	if k.open[b] {
		return max(k.until[b], min(k.lease, now))
	}
	return k.until[b]
}

// check compares with all others at the moment at which this kernel begins to accept a bucket.
func (k *kernel) check(b int) {
	w := k.d.w
	// Guard covers the skew between copies of a packet; clocks that run slow make it shorter.
	const guard = 19 * time.Millisecond
	for _, o := range w.Directors {
		if o == k.d {
			continue
		}
		if o.kernel.accepts(b, w.now) || o.kernel.ended(b, w.now) > 0 && w.now-o.kernel.ended(b, w.now) < guard {
			if w.excused(k.d, o) {
				w.Excused++
				continue
			}
			w.Violations = append(w.Violations, fmt.Sprintf("%.3f s: %s begins to accept bucket %d, which %s accepts, or did until %.3f s",
				w.now.Seconds(), k.d.name, b, o.name, o.kernel.ended(b, w.now).Seconds()))
			w.trace("VIOLATION %s", w.Violations[len(w.Violations)-1])
		}
	}
}

// worker is what talks to the kernel: one transaction at a time, each for the newest that is desired. First the set is made true; then the clock is
// read and the lease renewed.
func (d *Director) work() {
	if d.working || d.core == nil || d.paused {
		return
	}
	want := d.desired
	var open [Buckets]bool
	for b := range Buckets {
		open[b] = len(want.Open) > 0 && want.Open[0]&(1<<b) != 0
	}
	life, line := d.life, d.core.Line()
	switch {
	case want.Gen != d.done:
		d.working = true
		// The transaction goes on in the kernel, also when the process is paused or killed meanwhile.
		d.w.After(d.commitTime(), func() {
			if open != [Buckets]bool{} {
				d.kernel.line = line
			}
			d.kernel.set(open, d.kernel.lease)
			d.when(life, func() {
				d.working, d.done = false, want.Gen
				d.step(func(now time.Time) { d.core.Applied(now, want.Gen) })
				d.work()
			})
		})
	case !want.Lease.IsZero() && d.w.now >= d.renewAt:
		d.working = true
		d.renew(life, want.Lease)
	}
}

// renew renews the lease; d.pauseIn may put a pause between reading the clock and committing.
func (d *Director) renew(life int, end time.Time) {
	cfg := d.w.config(d)
	period, slack := cfg.Keepalive, cfg.Slack()
	k := &d.kernel
	commit := func(then func()) { d.w.After(d.commitTime(), then) }
	attempt := func() {
		left := end.Sub(d.clock()) // the clock is read
		if left <= 0 {
			d.working = false
			d.renewAt = d.w.now + period/2
			return
		}
		submit := func() {
			commit(func() {
				if d.w.now < k.fence || d.w.opt.Broken == NoFence {
					k.set(k.open, d.w.now+d.worldTime(left))
					k.fence = d.w.now + d.worldTime(period+slack)
				}
				d.when(life, func() {
					d.working = false
					d.renewAt = d.w.now + d.worldTime(period)
					d.w.After(d.worldTime(period), d.work)
					d.work()
				})
			})
		}
		// Between reading the clock and submitting the process may be stopped.
		if d.w.rng.Float64() < d.w.opt.Late && !d.w.Calm {
			d.w.After(time.Duration(d.w.rng.Int64N(int64(400*time.Millisecond))), func() { d.when(life, submit) })
			return
		}
		submit()
	}
	if d.w.now < k.fence {
		attempt()
		return
	}
	// The fence has expired, or there was none: it is set by a transaction of its own, and only then the clock is read.
	commit(func() {
		k.fence = d.w.now + d.worldTime(slack)
		d.when(life, attempt)
	})
}

func (d *Director) commitTime() time.Duration {
	most := d.w.opt.Commit
	if d.w.rng.Float64() < d.w.opt.Stuck && !d.w.Calm {
		most *= 10
	}
	return time.Duration(d.w.rng.Int64N(int64(most))) + 100*time.Microsecond
}
