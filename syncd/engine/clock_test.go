package engine

import (
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"saru/lib/peer"
)

const year = 365 * 24 * time.Hour

// passed returns a time that is d later than now on the monotonic clock, while the wall clock was set forward by step as well.
func passed(t *testing.T, now time.Time, d, step time.Duration) time.Time {
	later := now.Add(d + step)
	*(*int64)(unsafe.Add(unsafe.Pointer(&later), 8)) -= int64(step) // time.Time.ext, the monotonic clock
	if later.Sub(now) != d || later.Round(0).Sub(now.Round(0)) != d+step {
		t.Fatalf("time.Time is not laid out as this test knows it: %v later, wall clock %v", later.Sub(now), later.Round(0).Sub(now.Round(0)))
	}
	return later
}

// A clock that is set while the daemon runs, as after a boot in 1970, does not make the clock of the stamps leap.
func TestClockThatIsSet(t *testing.T) {
	now := time.Now()
	for _, step := range []time.Duration{year, time.Hour, -time.Hour} {
		f := newFarm(t)
		e := f.start("a", func(c *Config) { c.Now = now }).Engine
		e.follow(now, wall(now)+3e6, peer.IDOf("b"), "b") // 3 s ahead
		before := e.clock.Next(e.wall(now))
		later := passed(t, now, 2*time.Second, step)
		if got := e.clock.Next(e.wall(later)) - before; got < 1.9e6 || got > 2.1e6 {
			t.Errorf("set by %v: the clock of the stamps has gone %d microseconds in 2 s", step, got)
		}
		if lead := e.Status(later).Lead; (lead - (3*time.Second - step)).Abs() > time.Millisecond {
			t.Errorf("set by %v: lead %v", step, lead)
		}
	}
}

// A director that was started with a clock that is a year ahead takes the farm with it. That is told, once, with its name; what the kernels of
// directors with good clocks report stays in order; and the farm recovers when all are stopped and then started.
func TestClockThatIsAYearAhead(t *testing.T) {
	f := newFarm(t, "b", "c")
	f.run(2 * time.Second)
	f.kernel("b", conn(1))
	a := f.start("a", func(c *Config) { c.Now = f.now.Add(year) })
	for range 100 { // a runs by its own clock
		f.now = f.now.Add(TickInterval)
		f.turn(f.all["b"])
		f.turn(f.all["c"])
		now := f.now.Add(year)
		a.Tick(now)
		if pull, ok := a.NextPull(now); ok {
			session(now, f.now, a.Engine, f.teacher("a", pull), pull, 0)
		}
		a.enter(now)
		for len(f.wire) > 0 {
			p := f.wire[0]
			f.wire = f.wire[1:]
			for _, n := range f.names() {
				if n == "a" && p.from != "a" {
					a.FromNetwork(now, 0, stockA, p.b)
				} else if n != p.from {
					f.all[n].FromNetwork(f.now, 0, stockA, p.b)
				}
			}
		}
	}
	delete(f.all, "a")
	alarm := "level=ERROR msg=\"clock of another director is ahead"
	if n := strings.Count(f.log.String(), alarm); n != 2 || strings.Count(f.log.String(), "peer=a lead=8760h0m0s") != 2 {
		t.Errorf("%d alarms of two directors:\n%s", n, f.log.String())
	}
	lead := func(n string) time.Duration { return f.all[n].Status(f.now).Lead }
	if l := lead("b"); (l - year).Abs() > time.Minute {
		t.Errorf("b shows a lead of %v", l)
	}
	f.run(5 * time.Second)
	moved := conn(1)
	moved.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	f.kernel("c", moved) // c has taken it over
	f.start("b", nil)
	f.run(5 * time.Second)
	f.kernel("b", conn(2))
	f.run(time.Second)
	for _, n := range f.names() {
		if e := f.all[n].entry(t, conn(1)); e.Record.Real != moved.Real || f.all[n].table.Len() != 2 {
			t.Errorf("%s: real server %v, %d of 2 entries", n, e.Record.Real, f.all[n].table.Len())
		}
	}
	if l := lead("b"); (l - year).Abs() > time.Minute {
		t.Errorf("b, started again alone, has a lead of %v", l)
	}
	f.all = map[string]*director{} // all are stopped
	f.start("b", nil)
	f.start("c", nil)
	f.run(5 * time.Second)
	for _, n := range f.names() {
		if l := lead(n); l > time.Minute {
			t.Errorf("%s: lead %v after all were stopped and started again", n, l)
		}
	}
}
