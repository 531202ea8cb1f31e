package sim

import (
	"strings"
	"testing"
	"time"

	"saru/saru/core"
)

// TestColdStart has a farm found itself, own everything once, lose a director and get it back.
func TestColdStart(t *testing.T) {
	w := New(1, Options{Directors: 3, Partition: core.ByTableSize, Delay: 2 * time.Millisecond, Rate: 0.01, Commit: 15 * time.Millisecond})
	w.Tracing = true
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(w.Trace, "\n"))
		}
	}()
	all := func(step string, members int) {
		t.Helper()
		if none, one, more := w.Owners(); one != Buckets || w.members() != members || len(w.Violations) > 0 {
			t.Fatalf("%s: %d buckets owned by nobody, %d by one, %d by several; %d members; %q", step, none, one, more, w.members(), w.Violations)
		}
	}
	w.Run(4 * time.Second)
	all("at first", 3)
	w.Directors[0].Crash()
	w.Run(w.Now() + 800*time.Millisecond)
	all("after a crash", 2)
	w.Directors[0].Start()
	w.Run(w.Now() + 4*time.Second)
	all("after its return", 3)
}
