package native

import (
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDeath cuts directors off, one after the other, and measures for how long the flows of each are not answered.
func TestDeath(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		bar  time.Duration
	}{
		{"default timers", nil, 700 * time.Millisecond},
		{"fast timers", []string{"--keepalive", "30ms", "--warntime", "80ms", "--deadtime", "250ms", "--lease", "160ms"}, 350 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFarm(t, 3, c.args...)
			f.responders(nil)
			f.settled()
			began, fs := time.Now(), f.startFlows(48)
			defer fs.end()
			var gaps []time.Duration
			n := rounds(t, 3)
			for round := range n {
				d := f.directors[round%len(f.directors)]
				fs.answered(t)
				mine := fs.of(d.index)
				at := time.Now()
				d.plug(false)
				time.Sleep(patient(c.bar) + 300*time.Millisecond)
				worst := worstGap(mine, at, at.Add(patient(c.bar)))
				if !answeredSince(mine, at.Add(patient(c.bar))) {
					worst = time.Hour
				}
				gaps = append(gaps, worst)
				t.Logf("round %d, %v after the beginning: %s, %v", round, at.Sub(began).Round(time.Millisecond), d.name, worst.Round(time.Millisecond))
				// It is dead: its kernel, too. Its share is closed when it comes back.
				d.kill()
				d.plug(true)
				d.start()
				f.settled()
			}
			p50, p99 := percentile(gaps, 50), percentile(gaps, 99)
			t.Logf("RESULT death of a director (%s), %d times, %d flows: time without service p50 %v, p99 %v; answered twice: %d", c.name, n, len(fs.all),
				p50.Round(time.Millisecond), p99.Round(time.Millisecond), fs.twice())
			if bar := patient(c.bar); p99 > bar {
				t.Errorf("p99 is %v, above %v", p99, bar)
			}
			fs.noDoubles(t, began)
		})
	}
}

// TestDrain drains directors and lets them take part again, and measures the gap of the flows that move.
func TestDrain(t *testing.T) {
	f := newFarm(t, 3)
	f.responders(nil)
	f.settled()
	began, fs := time.Now(), f.startFlows(48)
	defer fs.end()
	fs.answered(t)
	for i, d := range f.directors { // saru knows who answers
		for _, fl := range fs.of(i) {
			if w := f.directors[0].which(fl.from); w.Owner != d.name {
				t.Errorf("%v is answered by %s; saructl which says %q, bucket %d", fl.from, d.name, w.Owner, w.Bucket)
			}
		}
	}
	var gaps []time.Duration
	n := rounds(t, 6)
	for round := range n {
		d := f.directors[round%len(f.directors)]
		fs.answered(t)
		mine := fs.of(d.index)
		at := time.Now()
		d.order(true)
		time.Sleep(100 * time.Millisecond)
		until(t, 2*time.Second, "answers of others to what "+d.name+" has given away", func() bool { return len(fs.of(d.index)) == 0 })
		now := time.Now().Add(-20 * time.Millisecond) // what is on its way does not count
		worst := worstGap(mine, at, now)
		// What the others' flows lack in the same time is not the drain's doing: this machine, or this process, stood still.
		control := worstGap(slices.DeleteFunc(slices.Clone(fs.all), func(fl *flow) bool { return slices.Contains(mine, fl) }), at, now)
		t.Logf("round %d, %v after the beginning: %s, %v; flows that do not move: %v", round, at.Sub(began).Round(time.Millisecond), d.name, worst.Round(time.Millisecond), control.Round(time.Millisecond))
		if control < 5*interval {
			gaps = append(gaps, worst)
		}
		if worst > 50*time.Millisecond {
			f.logged(at, at.Add(300*time.Millisecond))
		}
		d.order(false)
		f.settled()
	}
	if len(gaps) < n/2 && patient(1) == 1 {
		t.Errorf("this machine stood still in %d of %d drains", n-len(gaps), n)
	}
	p50, p99 := percentile(gaps, 50), percentile(gaps, 99)
	t.Logf("RESULT drain, %d times, and %d times while this machine stood still: gap p50 %v, p99 %v; answered twice: %d", len(gaps), n-len(gaps), p50.Round(time.Millisecond), p99.Round(time.Millisecond), fs.twice())
	if bar := patient(50 * time.Millisecond); p99 > bar {
		t.Errorf("p99 is %v, above %v", p99, bar)
	}
	fs.noDoubles(t, began)
}

// TestStop stops saru in good order on one director after the other, and starts it again: its share is handed over as in a drain, and comes back.
func TestStop(t *testing.T) {
	f := newFarm(t, 3)
	f.responders(nil)
	f.settled()
	began, fs := time.Now(), f.startFlows(48)
	defer fs.end()
	var gaps []time.Duration
	n := rounds(t, 6)
	for round := range n {
		d := f.directors[round%len(f.directors)]
		fs.answered(t)
		mine := fs.of(d.index)
		at := time.Now()
		d.signal(syscall.SIGTERM)
		if !d.wait(10 * time.Second) {
			t.Fatalf("%s does not end", d.name)
		}
		time.Sleep(time.Second)
		d.start()
		f.settled()
		gaps = append(gaps, worstGap(mine, at, time.Now().Add(-20*time.Millisecond))) // away and back again
	}
	p50, p99 := percentile(gaps, 50), percentile(gaps, 99)
	t.Logf("RESULT orderly stop and start, %d times: gap p50 %v, p99 %v; answered twice: %d", n, p50.Round(time.Millisecond), p99.Round(time.Millisecond), fs.twice())
	if bar := patient(100 * time.Millisecond); p99 > bar {
		t.Errorf("p99 is %v, above %v", p99, bar)
	}
	fs.noDoubles(t, began)
}

// leaseInKernel asks the real nft what remains of the lease.
func (d *director) leaseInKernel() time.Duration {
	t := d.farm.t
	t.Helper()
	var out []byte
	var err error
	d.ns.Do(t, func() { out, err = exec.Command("nft", "list", "set", "inet", "saru", "lease").CombinedOutput() })
	must(t, err)
	_, text, ok := strings.Cut(string(out), "expires ")
	if !ok {
		t.Fatalf("there is no lease:\n%s", out)
	}
	left, err := time.ParseDuration(text[:strings.IndexAny(text, " ,\n}")])
	must(t, err)
	return left
}

// TestStoppedProcess stops saru alone: the kernel closes its share when the lease ends, and only then another director opens it.
func TestStoppedProcess(t *testing.T) {
	f := newFarm(t, 3)
	f.responders(nil)
	f.settled()
	began, fs := time.Now(), f.startFlows(48)
	defer fs.end()
	for round := range rounds(t, 3) {
		d := f.directors[round%len(f.directors)]
		fs.answered(t)
		mine := fs.of(d.index)
		d.signal(syscall.SIGSTOP)
		at := time.Now()
		left := d.leaseInKernel()
		end := time.Now().Add(left) // or a little sooner: nft takes its time
		time.Sleep(900 * time.Millisecond)
		var lastOwn, firstOther time.Time
		for _, fl := range mine {
			fl.mu.Lock()
			for _, a := range fl.answers {
				switch {
				case a.at.Before(at):
				case a.director == d.index && a.at.After(lastOwn):
					lastOwn = a.at
				case a.director != d.index && (firstOther.IsZero() || a.at.Before(firstOther)):
					firstOther = a.at
				}
			}
			fl.mu.Unlock()
		}
		d.signal(syscall.SIGCONT)
		t.Logf("RESULT SIGSTOP of saru on %s, with %v of its lease left in the kernel: it answers for %v more, the next director from %v on", d.name,
			end.Sub(at).Round(time.Millisecond), lastOwn.Sub(at).Round(time.Millisecond), firstOther.Sub(at).Round(time.Millisecond))
		if late := lastOwn.Sub(end); late > patient(10*time.Millisecond) {
			t.Errorf("%s answers %v after the end of its lease", d.name, late)
		}
		if !firstOther.After(lastOwn) {
			t.Errorf("another director answers %v before %s has closed", lastOwn.Sub(firstOther), d.name)
		}
		f.settled()
	}
	fs.noDoubles(t, began)
}
