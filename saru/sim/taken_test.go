package sim

import (
	"strings"
	"testing"
	"time"

	"saru/saru/core"
)

// TestTakenOutAlone is a schedule that random ones found: d1, taken out as dead, is the only one to know that the table counts which takes it out, as its proposer, d2, has
// crashed, and d3 has accepted it and no more. d1 must say so, or d3 asks for promises that nobody can give any more.
func TestTakenOutAlone(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	mute := func(on bool) func(*World) {
		return func(w *World) { w.Cut(0, 1, on); w.Cut(0, 2, on) }
	}
	drain := func(on bool) func(*World) { return func(w *World) { w.Directors[0].Drain(on) } }
	crash, start := func(w *World) { w.Directors[1].Crash() }, func(w *World) { w.Directors[1].Start() }
	faults := []fault{
		{ms(4006), "d1 -> d2", func(w *World) { w.Cut(0, 1, true) }}, {ms(4026), "ends", func(w *World) { w.Cut(0, 1, false) }},
		{ms(4008), "drain", drain(true)}, {ms(4062), "ends", drain(false)},
		{ms(4050), "mute", mute(true)}, {ms(5722), "ends", mute(false)},
		{ms(4558), "pause", func(w *World) { w.Directors[0].Pause() }}, {ms(4586), "ends", func(w *World) { w.Directors[0].Resume() }},
		{ms(4578), "crash", crash}, {ms(4598), "ends", start},
		{ms(4695), "crash", crash}, {ms(6310), "ends", start},
	}
	for seed := range uint64(200) {
		opt := Options{Directors: 3, Expect: 3, Partition: core.WithQuorum, Delay: ms(30), Twice: 0.02, Rate: 0.01, Commit: ms(15), Stuck: 0.02, Late: 0.02}
		if _, why := run(seed, opt, faults, false); why != "" {
			w, _ := run(seed, opt, faults, true)
			t.Fatalf("seed %d: %s\n%s", seed, why, strings.Join(w.Trace, "\n"))
		}
	}
}
