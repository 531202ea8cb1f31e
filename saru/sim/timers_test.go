package sim

import (
	"strings"
	"testing"
	"time"
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
		f.Directors[d].Crash()
		f.Directors[d].Deadtime = 0
		f.Directors[d].Start()
		f.until("it takes part", 5*time.Second, func() bool {
			return f.holds(d) > 0 && f.owned() && f.members() == 3 && f.report(d).Alarms["timers"] == ""
		})
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
