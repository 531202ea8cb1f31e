package sim

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/proto/coord"
	"saru/saru/core"
)

// farm is a world of which a test wants to see certain things.
type farm struct {
	*World
	t *testing.T
}

// newFarm returns a farm of directors that own everything.
func newFarm(t *testing.T, n int, change func(*Options)) *farm {
	opt := Options{Directors: n, Delay: 2 * time.Millisecond, Rate: 0.01, Commit: 5 * time.Millisecond}
	if change != nil {
		change(&opt)
	}
	f := &farm{New(1, opt), t}
	f.Tracing = true
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(f.Trace, "\n"))
		}
	})
	f.until("the farm is founded", 5*time.Second, func() bool { return f.members() == n && f.owned() })
	return f
}

// until lets time pass until something is so.
func (f *farm) until(what string, limit time.Duration, so func() bool) time.Duration {
	f.t.Helper()
	start := f.Now()
	for !so() {
		if f.Run(f.Now() + 5*time.Millisecond); f.Now()-start > limit {
			f.t.Fatalf("not within %v: %s", limit, what)
		}
		f.clean()
	}
	return f.Now() - start
}

// stays lets time pass and checks that something stays so.
func (f *farm) stays(what string, d time.Duration, so func() bool) {
	f.t.Helper()
	for end := f.Now() + d; f.Now() < end; {
		if f.Run(f.Now() + 5*time.Millisecond); !so() {
			f.t.Fatalf("does not stay so: %s", what)
		}
		f.clean()
	}
}

func (f *farm) clean() {
	f.t.Helper()
	if len(f.Violations) > 0 {
		f.t.Fatal(f.Violations)
	}
}

// owned reports whether each bucket is accepted by one director.
func (f *farm) owned() bool {
	none, _, more := f.Owners()
	return none == 0 && more == 0
}

// holds is how many buckets a director accepts.
func (f *farm) holds(d int) (n int) {
	for b := range Buckets {
		if f.Directors[d].kernel.accepts(b, f.now) {
			n++
		}
	}
	return n
}

// split cuts directors off from all others, or ends that.
func (f *farm) split(on bool, side ...int) {
	in := map[int]bool{}
	for _, d := range side {
		in[d] = true
	}
	for a := range f.Directors {
		for b := range f.Directors {
			if in[a] != in[b] {
				f.Cut(a, b, on)
			}
		}
	}
}

func (f *farm) report(d int) (r core.Report) {
	f.Directors[d].Do(func(now time.Time, c *core.Core) { r = c.Report(now) })
	return r
}

func TestDrainAndUndrain(t *testing.T) {
	f := newFarm(t, 3, nil)
	f.Directors[0].Drain(true)
	f.until("a drained director owns nothing", time.Second, func() bool { return f.holds(0) == 0 && f.owned() })
	f.stays("the others own everything", time.Second, func() bool { return f.holds(0) == 0 && f.owned() })
	if r := f.report(0); !r.Draining || !r.Member {
		t.Errorf("a drained director is a member still: draining %v, member %v", r.Draining, r.Member)
	}
	f.Directors[0].Drain(false)
	f.until("it owns its share again", time.Second, func() bool { return f.holds(0) >= Buckets/3 && f.owned() })
}

// TestCommand has one director drain another, though links lose every third datagram.
func TestCommand(t *testing.T) {
	f := newFarm(t, 3, nil)
	f.opt.Loss = 0.3
	from := f.Directors[2]
	var obeyed bool
	order := func(verb coord.Verb) {
		from.Do(func(_ time.Time, c *core.Core) {
			if err := c.Order("d1", verb); err != nil {
				t.Fatal(err)
			}
		})
		f.until("obeyed", 5*time.Second, func() bool {
			from.Do(func(_ time.Time, c *core.Core) { obeyed = c.Obeyed() })
			return obeyed
		})
	}
	order(coord.VerbDrain)
	f.opt.Loss = 0
	f.until("d1 is drained", 3*time.Second, func() bool { return f.holds(0) == 0 && f.owned() })
	order(coord.VerbUndrain)
	f.until("d1 takes part again", 3*time.Second, func() bool { return f.holds(0) > 0 && f.owned() })
	from.Do(func(_ time.Time, c *core.Core) {
		if err := c.Order("nobody", coord.VerbDrain); err == nil {
			t.Error("a command to somebody who is not heard was taken")
		}
		if err := c.Order("d3", coord.VerbDrain); err != nil || !c.Obeyed() {
			t.Errorf("a command to itself: %v", err)
		}
	})
	f.until("d3 is drained", 3*time.Second, func() bool { return f.holds(2) == 0 && f.owned() })
}

// TestLeave has the master leave, and then all others, each when the one before is gone.
func TestLeave(t *testing.T) {
	f := newFarm(t, 3, nil)
	for d := range 3 {
		left := false
		f.Directors[d].Do(func(now time.Time, c *core.Core) { c.Leave(now) })
		took := f.until("it has left", 2*time.Second, func() bool {
			f.Directors[d].Do(func(_ time.Time, c *core.Core) { left = c.Left() })
			return left && (d == 2 || f.owned())
		})
		if took > 500*time.Millisecond {
			t.Errorf("director %d needs %v to leave", d, took)
		}
		f.Directors[d].Crash()
		if d < 2 {
			f.stays("the others own everything", time.Second, f.owned)
		}
	}
}

func TestWeights(t *testing.T) {
	f := newFarm(t, 2, nil)
	f.Directors[0].Do(func(now time.Time, c *core.Core) { c.SetWeight(now, 300) })
	f.until("three quarters and a quarter", time.Second, func() bool { return f.holds(0) == 12 && f.holds(1) == 4 })
}

// TestEligible drains who has no usable service, if another has one, and not before 5 s.
func TestEligible(t *testing.T) {
	f := newFarm(t, 2, nil)
	f.Directors[1].SetLocal(func(l *core.Local) { l.Usable = false })
	f.stays("it keeps its share for 5 s", 4900*time.Millisecond, func() bool { return f.holds(1) == 8 })
	f.until("then it is drained", 2*time.Second, func() bool { return f.holds(1) == 0 && f.owned() })
	f.Directors[0].SetLocal(func(l *core.Local) { l.Usable = false })
	f.until("an alarm, when nobody is eligible", 2*time.Second, func() bool { return f.report(0).Alarms["ineligible"] != "" })
	f.stays("who owned goes on", 6*time.Second, f.owned)
	f.Directors[1].SetLocal(func(l *core.Local) { l.Usable = true })
	f.until("who is usable again owns everything at last", 7*time.Second, func() bool { return f.holds(1) == Buckets && f.owned() })
}

// TestPingNodes drains who reaches fewer ping nodes than another.
func TestPingNodes(t *testing.T) {
	f := newFarm(t, 2, func(o *Options) { o.PingNodes = 2 })
	f.Directors[0].SetLocal(func(l *core.Local) { l.Pings = 1 })
	f.until("it is drained after 5 s", 7*time.Second, func() bool { return f.holds(0) == 0 && f.owned() })
	// A side that is cut off from everything closes, also with `available`.
	f.split(true, 0)
	f.Directors[0].SetLocal(func(l *core.Local) { l.Pings = 0 })
	f.stays("the cut-off side owns nothing", 3*time.Second, func() bool { return f.holds(0) == 0 })
	if f.holds(1) != Buckets {
		t.Errorf("the other side owns %d buckets", f.holds(1))
	}
}

// TestSurvivor has a minority go on after the survivor delay, if it reaches its ping nodes; the majority was switched off.
func TestSurvivor(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pings int
		goes  bool
	}{{"all ping nodes", 1, true}, {"no ping node", 0, false}} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFarm(t, 3, func(o *Options) { o.PingNodes = 1; o.Partition = core.WithQuorum })
			f.Directors[0].Crash()
			f.Directors[1].Crash()
			f.Directors[2].SetLocal(func(l *core.Local) { l.Pings = tt.pings })
			f.until("closed", time.Second, func() bool { return f.holds(2) == 0 })
			f.stays("closed for the survivor delay", 4500*time.Millisecond, func() bool { return f.holds(2) == 0 })
			if f.report(2).Alarms["minority"] == "" {
				t.Error("no alarm")
			}
			if tt.goes {
				f.until("it owns everything", 2500*time.Millisecond, func() bool { return f.holds(2) == Buckets })
			} else {
				f.stays("it stays closed", 4*time.Second, func() bool { return f.holds(2) == 0 })
			}
			f.Directors[2].SetLocal(func(l *core.Local) { l.Pings = 1 })
			f.Directors[0].Start()
			f.Directors[1].Start()
			f.until("all are together again", 5*time.Second, func() bool { return f.members() == 3 && f.owned() })
		})
	}
}

// TestShareFunction changes an address of the share function on one director after the other: no address is open under two forms at any time.
func TestShareFunction(t *testing.T) {
	address := netip.MustParseAddr("192.0.2.1")
	form := func(fields uint8) coord.Function {
		fn := Function()
		fn.Virtuals = []coord.Virtual{{Address: address, Fields: fields, Mask: 32}}
		return fn
	}
	f := newFarm(t, 3, nil)
	set := func(d int, fn coord.Function) { f.Directors[d].SetLocal(func(l *core.Local) { l.Function = fn }) }
	counts := func(fn coord.Function) bool {
		for d := range f.Directors {
			if r := f.report(d); r.Table == nil || r.Table.Function.Digest() != fn.Digest() || !r.Fits {
				return false
			}
		}
		return f.owned()
	}
	for d := range 3 {
		set(d, form(1))
		f.Run(f.Now() + 300*time.Millisecond)
	}
	f.until("the new address is in the table", 2*time.Second, func() bool { return counts(form(1)) })
	// From here on, the forms under which the address is open anywhere are looked at in each moment.
	forms := func() bool {
		open := map[uint8]bool{}
		for _, d := range f.Directors {
			if d.desired.Function == nil || len(d.desired.Function.Virtuals) == 0 || f.now >= d.kernel.lease {
				continue
			}
			for b := range Buckets {
				if d.kernel.accepts(b, f.now) {
					open[d.desired.Function.Virtuals[0].Fields] = true
				}
			}
		}
		return len(open) <= 1
	}
	set(0, form(3))
	f.until("who differs holds nothing", 100*time.Millisecond, func() bool { return forms() && f.holds(0) == 0 })
	f.until("the others own everything", time.Second, func() bool { return forms() && f.holds(0) == 0 && f.owned() })
	set(1, form(3))
	set(2, form(3))
	f.until("the new form counts for all", 3*time.Second, func() bool {
		if !forms() {
			t.Fatal("the address is open under two forms")
		}
		return counts(form(3))
	})
}

// TestStalled has a director whose own timers stood still count nobody dead for that.
func TestStalled(t *testing.T) {
	f := newFarm(t, 3, nil)
	d := f.Directors[0]
	d.Pause()
	f.Run(f.Now() + 3*time.Second)
	dead := d.events["dead"]
	d.Resume()
	f.until("it is a member again", 3*time.Second, func() bool { return f.members() == 3 && f.owned() && f.holds(0) > 0 })
	if d.events["stalled"] == 0 || d.events["dead"] != dead {
		t.Errorf("%d times stalled, %d counted dead", d.events["stalled"], d.events["dead"]-dead)
	}
}

// TestMasterDies shows that leases come from members: the death of the master closes its share and no other.
func TestMasterDies(t *testing.T) {
	f := newFarm(t, 3, nil)
	master := 0
	for d := range f.Directors {
		if r := f.report(d); r.Table.Master == r.Table.Members[r.Members[0].Index].Node {
			master = d
		}
	}
	mine := f.holds(master)
	f.Directors[master].Crash()
	f.stays("the others keep theirs", 400*time.Millisecond, func() bool {
		none, _, _ := f.Owners()
		return none == mine
	})
	if took := f.until("all is owned", time.Second, f.owned) + 400*time.Millisecond; took > 700*time.Millisecond {
		t.Errorf("taking over took %v", took)
	}
}

// TestNonTransitive breaks the link between two of three directors: they go on, as the third one reports each to the other.
func TestNonTransitive(t *testing.T) {
	for _, partition := range []core.Partition{core.WithQuorum, core.WithAvailable} {
		f := newFarm(t, 3, func(o *Options) { o.Partition = partition })
		f.Cut(0, 1, true)
		f.Cut(1, 0, true)
		f.Run(f.Now() + time.Second)
		f.stays("all is owned", 5*time.Second, f.owned)
		f.Directors[2].Drain(true) // and planned changes go on
		f.until("drained", 4*time.Second, func() bool { return f.holds(2) == 0 && f.owned() })
	}
}

// TestSplitHeals has both of two directors go on alone, and be one farm again soon after they hear each other.
func TestSplitHeals(t *testing.T) {
	f := newFarm(t, 2, nil)
	f.split(true, 0)
	f.until("both own everything", 2*time.Second, func() bool { return f.holds(0) == Buckets && f.holds(1) == Buckets })
	f.split(false, 0)
	f.until("one farm", 2*time.Second, func() bool { return f.members() == 2 && f.owned() && f.holds(0) == 8 })
	if f.Directors[0].events["yield"]+f.Directors[1].events["yield"] != 1 {
		t.Error("one of the two yields")
	}
}

// TestExpect founds no farm of two of four, and one of three.
func TestExpect(t *testing.T) {
	f := &farm{New(1, Options{Directors: 4, Expect: 4, Partition: core.WithQuorum, Delay: 2 * time.Millisecond, Commit: 5 * time.Millisecond}), t}
	f.split(true, 2)
	f.split(true, 3)
	f.Cut(2, 3, true)
	f.Cut(3, 2, true)
	f.stays("nobody owns anything", 6*time.Second, func() bool { return f.holds(0)+f.holds(1)+f.holds(2)+f.holds(3) == 0 })
	if f.report(0).Alarms["alone"] == "" && f.report(1).Alarms["alone"] == "" {
		t.Error("no alarm")
	}
	f.split(false, 2)
	f.split(true, 3)
	f.until("three own everything", 4*time.Second, func() bool { return f.members() == 3 && f.owned() })
}
