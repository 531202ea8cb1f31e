package sim

import (
	"testing"
	"time"

	"saru/saru/core"
)

// doubled is how many buckets more than one director accepts.
func (f *farm) doubled() int {
	_, _, more := f.Owners()
	return more
}

// TestClockStops is exception 2: a virtual machine is paused with its clock, and wakes with a lease that looks alive. It closes with the first word of the others, and says so.
func TestClockStops(t *testing.T) {
	for _, partition := range []core.Partition{core.WithQuorum, core.WithAvailable} {
		f := newFarm(t, 3, func(o *Options) { o.Partition = partition })
		d := f.Directors[0]
		d.StopClock(3 * time.Second)
		f.until("the others own everything", time.Second, f.owned)
		f.Run(f.Now() + time.Second)
		f.until("it wakes, and owns what others own", 2*time.Second, func() bool { return f.doubled() > 0 })
		took := f.until("it has closed", 500*time.Millisecond, func() bool { return f.doubled() == 0 })
		t.Logf("policy %d: after it has woken, its buckets were accepted twice for %v", partition, took)
		f.until("it says so", 500*time.Millisecond, func() bool { return f.report(0).Alarms["clock"] != "" })
		f.until("it takes part again", 3*time.Second, func() bool { return f.members() == 3 && f.owned() && f.holds(0) > 0 })
		f.until("the alarm ends", time.Minute+time.Second, func() bool { return f.report(0).Alarms["clock"] == "" })
	}
}

// TestPartitionAlarms is exception 1: each side that goes on without a quorum says so, until it hears the others again.
func TestPartitionAlarms(t *testing.T) {
	alarmed := func(f *farm, d int) bool { return f.report(d).Alarms["partition"] != "" }
	t.Run("available", func(t *testing.T) {
		f := newFarm(t, 2, nil)
		f.split(true, 0)
		f.until("both own everything", 2*time.Second, func() bool { return f.doubled() == Buckets })
		if !alarmed(f, 0) || !alarmed(f, 1) {
			t.Error("no alarm")
		}
		f.split(false, 0)
		took := f.until("no bucket is accepted twice", time.Second, func() bool { return f.doubled() == 0 })
		t.Logf("on contact, buckets were accepted twice for %v more", took)
		f.until("one farm", 3*time.Second, func() bool { return f.members() == 2 && f.owned() && !alarmed(f, 0) && !alarmed(f, 1) })
	})
	t.Run("survivor", func(t *testing.T) {
		f := newFarm(t, 3, func(o *Options) { o.PingNodes = 1; o.Partition = core.WithQuorum })
		f.split(true, 0)
		f.until("the minority goes on as well, as it reaches its ping nodes", 8*time.Second, func() bool { return f.doubled() == Buckets })
		if !alarmed(f, 0) || alarmed(f, 1) || alarmed(f, 2) {
			t.Error("the minority alone raises the alarm")
		}
		f.split(false, 0)
		f.until("no bucket is accepted twice", time.Second, func() bool { return f.doubled() == 0 })
		f.until("one farm", 3*time.Second, func() bool { return f.members() == 3 && f.owned() && !alarmed(f, 0) })
	})
	t.Run("quorum", func(t *testing.T) {
		f := newFarm(t, 3, func(o *Options) { o.Partition = core.WithQuorum })
		f.split(true, 0)
		f.until("the majority owns everything", 2*time.Second, func() bool { return f.holds(1)+f.holds(2) == Buckets && f.owned() })
		if alarmed(f, 1) || alarmed(f, 2) {
			t.Error("nothing can be accepted twice, and there is an alarm")
		}
		f.until("the minority says that it is closed", time.Second, func() bool { return f.report(0).Alarms["minority"] != "" })
	})
	t.Run("leave", func(t *testing.T) {
		f := newFarm(t, 2, nil)
		f.Directors[0].Leave()
		f.until("the other owns everything", time.Second, func() bool { return f.holds(1) == Buckets })
		f.Directors[0].Crash()
		f.stays("who left is not missed", 2*time.Second, func() bool { return !alarmed(f, 1) })
	})
}
