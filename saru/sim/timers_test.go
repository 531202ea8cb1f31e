package sim

import (
	"strings"
	"testing"
	"time"

	"saru/saru/core"
)

// TestDifferentTimers has a director come back with other timers: it never owns anything beside the others, all say so, and it takes part again once it has the same.
func TestDifferentTimers(t *testing.T) {
	f := newFarm(t, 3, nil)
	for _, d := range []int{0, 2} { // the master, and another one
		f.Directors[d].Leave()
		f.until("the others own everything", 2*time.Second, func() bool { return f.holds(d) == 0 && f.owned() })
		f.Directors[d].Crash()
		f.Directors[d].Deadtime = 450 * time.Millisecond
		f.Directors[d].Start()
		f.until("all know that the timers differ", time.Second, func() bool {
			for i := range f.Directors {
				if !strings.Contains(f.report(i).Alarms["timers"], "--deadtime 450ms") {
					return false
				}
			}
			return true
		})
		f.stays("it owns nothing", 10*time.Second, func() bool { return f.holds(d) == 0 && f.owned() && !f.report(d).Member })
		f.split(true, d)
		f.stays("nor when it hears nothing of the others", 10*time.Second, func() bool { return f.holds(d) == 0 && f.owned() })
		if f.report(d).Alarms["alone"] == "" {
			t.Error("no alarm")
		}
		f.split(false, d)
		f.stays("nor when it hears them again", 10*time.Second, func() bool { return f.holds(d) == 0 && f.owned() && !f.report(d).Member })
		f.Directors[d].Crash()
		f.Directors[d].Deadtime = 0
		f.Directors[d].Start()
		f.until("it takes part", 5*time.Second, func() bool {
			return f.holds(d) > 0 && f.owned() && f.members() == 3 && f.report(d).Alarms["timers"] == ""
		})
	}
}

// TestTimersChange restarts one director after the other with other timers: in the end they have a farm again.
func TestTimersChange(t *testing.T) {
	f := newFarm(t, 3, nil)
	for d := range 3 {
		f.Directors[d].Leave()
		f.Run(f.Now() + time.Second)
		f.Directors[d].Crash()
		f.Directors[d].Deadtime = 450 * time.Millisecond
		f.Directors[d].Start()
		f.Run(f.Now() + 5*time.Second)
	}
	f.until("a farm with the new timers", 5*time.Second, func() bool {
		return f.members() == 3 && f.owned() && f.report(0).Alarms["timers"]+f.report(0).Alarms["alone"] == ""
	})
}

// TestExpectAlike founds a farm of two of three that are expected, though the third one, which comes first by order, has other timers.
func TestExpectAlike(t *testing.T) {
	for other := range 3 {
		f := &farm{New(1, Options{Directors: 3, Expect: 3, Partition: core.WithQuorum, Delay: 2 * time.Millisecond, Commit: 5 * time.Millisecond}), t}
		f.Directors[other].Deadtime = 450 * time.Millisecond
		f.until("two own everything", 8*time.Second, func() bool { return f.members() == 2 && f.owned() && f.holds(other) == 0 })
		f.stays("it stays so", 5*time.Second, func() bool { return f.members() == 2 && f.owned() && f.holds(other) == 0 })
	}
}

// TestDifferentTimersAtStart has two directors that differ start together: one of them owns everything, the other nothing.
func TestDifferentTimersAtStart(t *testing.T) {
	f := &farm{New(1, Options{Directors: 2, Delay: 2 * time.Millisecond, Commit: 5 * time.Millisecond}), t}
	f.Directors[1].Deadtime = 450 * time.Millisecond
	f.until("one owns everything", 8*time.Second, func() bool { return f.holds(0)+f.holds(1) == Buckets && f.holds(0)*f.holds(1) == 0 })
	f.stays("it stays so", 10*time.Second, func() bool { return f.holds(0)+f.holds(1) == Buckets && f.holds(0)*f.holds(1) == 0 })
	if f.report(0).Alarms["timers"] == "" || f.report(1).Alarms["timers"] == "" {
		t.Error("no alarm")
	}
}
