package sim

import (
	"testing"
	"time"

	"saru/saru/core"
)

// sixtyFour is as many directors as a farm may have.
const sixtyFour = 64

// newSixtyFour returns a farm of 64 directors. With 16 buckets most of them own nothing; what they say to each other does not depend on that.
func newSixtyFour(tb testing.TB) *World {
	w := New(1, Options{Directors: sixtyFour, Partition: core.ByTableSize, Delay: 2 * time.Millisecond, Rate: 0.01, Commit: 5 * time.Millisecond})
	w.Run(4 * time.Second)
	if none, one, _ := w.Owners(); one != Buckets || w.members() != sixtyFour || len(w.Violations) > 0 {
		tb.Fatalf("after %v: %d members, %d buckets owned by nobody; %q", w.Now(), w.members(), none, w.Violations)
	}
	return w
}

// converge lets time pass until every bucket is owned and as many directors are members.
func converge(tb testing.TB, w *World, members int) time.Duration {
	start := w.Now()
	for {
		w.Run(w.Now() + 5*time.Millisecond)
		none, _, more := w.Owners()
		if none == 0 && more == 0 && w.members() == members {
			return w.Now() - start
		}
		if w.Now()-start > 5*time.Second || len(w.Violations) > 0 {
			tb.Fatalf("%v after a death: %d members, %d buckets owned by nobody; %q", w.Now()-start, w.members(), none, w.Violations)
		}
	}
}

// owner returns the index of the director that accepts the first bucket.
func (w *World) owner() int {
	for i, d := range w.Directors {
		if d.kernel.accepts(0, w.now) {
			return i
		}
	}
	return 0
}

// TestSixtyFour has one of 64 directors die, and come back.
func TestSixtyFour(t *testing.T) {
	w := newSixtyFour(t)
	dead := w.owner()
	w.Directors[dead].Crash()
	took := converge(t, w, sixtyFour-1)
	w.Directors[dead].Start()
	back := converge(t, w, sixtyFour)
	t.Logf("everything is owned again %v after a death, and it is back in %v", took, back)
	if took > 800*time.Millisecond {
		t.Errorf("taking over took %v", took)
	}
}

// BenchmarkSixtyFour measures what 64 coordinators need: for a second at rest, and until everything is owned after one has died.
func BenchmarkSixtyFour(b *testing.B) {
	w := newSixtyFour(b)
	b.Run("rest", func(b *testing.B) {
		sent, bytes := w.Sent, w.Bytes
		for b.Loop() {
			w.events = 0
			w.Run(w.Now() + time.Second)
		}
		b.ReportMetric(float64(w.Sent-sent)/float64(b.N), "datagrams/s")
		b.ReportMetric(float64(w.Bytes-bytes)/float64(b.N), "bytes/s")
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/sixtyFour, "us/director/s")
	})
	b.Run("death", func(b *testing.B) {
		total, sent := time.Duration(0), 0
		for b.Loop() {
			w.events = 0
			dead := w.owner()
			before := w.Sent
			w.Directors[dead].Crash()
			total += converge(b, w, sixtyFour-1)
			sent += w.Sent - before
			w.Directors[dead].Start()
			converge(b, w, sixtyFour)
			w.Run(w.Now() + time.Second)
		}
		b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms-until-owned")
		b.ReportMetric(float64(sent)/float64(b.N), "datagrams")
	})
}
