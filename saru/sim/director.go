package sim

import (
	"fmt"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
	"saru/saru/core"
)

// Director is a director of the world: a process that lives or does not, and a kernel.
type Director struct {
	Deadtime time.Duration // another one than the farm's, from its next start on

	w       *World
	index   int
	name    string
	rate    float64       // how fast its clock runs
	behind  time.Duration // for how long it has stood still
	frozen  bool          // it stands still
	local   core.Local    // what it finds out about its machine
	core    *core.Core
	life    int // rises with each start and end of the process
	paused  bool
	leaving bool
	kept    []func() // what waits for the end of a pause
	timer   int
	kernel  kernel

	desired core.Desired
	done    uint64 // generation that is in the kernel
	working bool
	renewAt time.Duration
	events  map[string]int   // how many there were, by name
	newest  uint64           // number of the newest own heartbeat
	met     map[int]*contact // by director
}

// epoch is when the clocks of the world began.
var epoch = time.Unix(1_000_000, 0)

// clock is the director's own.
func (d *Director) clock() time.Time {
	return epoch.Add(time.Duration(float64(d.w.now-d.behind) * d.rate))
}

// worldTime is how long something takes that lasts x by the director's clock.
func (d *Director) worldTime(x time.Duration) time.Duration {
	return time.Duration(float64(x) / d.rate)
}

// available reports whether the director's policy lets cut-off sides go on.
func (d *Director) available() bool {
	return d.w.opt.Partition != core.WithQuorum || d.w.opt.PingNodes > 0
}

// Alive reports whether the process runs.
func (d *Director) Alive() bool { return d.core != nil }

// Name is what the director is called.
func (d *Director) Name() string { return d.name }

// Core is the coordinator; nil when the process does not run.
func (d *Director) Core() *core.Core { return d.core }

// Start starts the process: the closed table is installed, then it speaks.
func (d *Director) Start() {
	if d.core != nil {
		return
	}
	d.life++
	d.w.trace("%s starts", d.name)
	life := d.life
	d.kernel.d = d
	d.working, d.paused, d.leaving = true, false, false
	d.w.After(d.commitTime(), func() {
		d.kernel.set([Buckets]bool{}, 0)
		if d.life != life {
			return
		}
		cfg := d.w.config(d)
		cfg.Incarnation = peer.Incarnation(d.w.rng.Uint64() | 1)
		cfg.Incarnations = func() peer.Incarnation { return peer.Incarnation(d.w.rng.Uint64() | 1) }
		d.core = core.New(cfg, d.clock())
		d.desired, d.done, d.working, d.renewAt = core.Desired{}, 0, false, 0
		d.step(func(now time.Time) {
			d.core.SetLocal(now, d.local)
		})
	})
}

// Kill ends the process; its kernel goes on.
func (d *Director) Kill() {
	d.w.trace("%s is killed", d.name)
	d.life++
	d.core, d.kept, d.working = nil, nil, false
}

// Crash ends the process and the kernel.
func (d *Director) Crash() {
	d.Kill()
	if d.kernel.d != nil {
		d.kernel.set([Buckets]bool{}, 0)
	}
	d.kernel.fence = 0
}

// Pause stops the process.
func (d *Director) Pause() {
	d.w.trace("%s is stopped", d.name)
	d.paused = true
}

// Resume lets it go on.
func (d *Director) Resume() {
	if !d.paused {
		return
	}
	d.w.trace("%s goes on", d.name)
	d.paused = false
	kept := d.kept
	d.kept = nil
	for _, f := range kept {
		f()
	}
	if d.core != nil {
		d.step(d.core.Tick)
	}
}

// StopClock stops the process and its kernel with all their clocks, as a virtual machine that is paused, and lets them go on after a while.
func (d *Director) StopClock(length time.Duration) {
	d.Pause()
	d.frozen = true // what comes meanwhile is lost
	d.w.After(length, func() {
		d.frozen = false
		d.w.trace("%s goes on, its clock stood still", d.name)
		d.behind += length
		d.kernel.lease += length
		d.kernel.fence += length
		d.w.After(0, d.Resume)
	})
}

// Drain drains it, or ends that.
func (d *Director) Drain(on bool) {
	d.w.trace("%s drains: %v", d.name, on)
	d.Do(func(now time.Time, c *core.Core) { c.Drain(now, on) })
}

// Do does something to the coordinator, and what it says then.
func (d *Director) Do(f func(now time.Time, c *core.Core)) {
	if d.core != nil {
		d.when(d.life, func() { d.step(func(now time.Time) { f(now, d.core) }) })
	}
}

// SetLocal changes what the director finds out about its machine.
func (d *Director) SetLocal(change func(*core.Local)) {
	change(&d.local)
	d.Do(func(now time.Time, c *core.Core) { c.SetLocal(now, d.local) })
}

// Leave makes it hand its buckets over; the process goes on until it is killed.
func (d *Director) Leave() {
	if d.core != nil {
		d.w.trace("%s leaves", d.name)
		d.leaving = true
		d.Do(func(now time.Time, c *core.Core) { c.Leave(now) })
	}
}

// when does something in the process: now, after a pause, or never if the process has ended since.
func (d *Director) when(life int, f func()) {
	switch {
	case d.life != life:
	case d.paused:
		d.kept = append(d.kept, func() { d.when(life, f) })
	default:
		f()
	}
}

// arrive takes in a datagram that was sent at a time.
func (d *Director) arrive(b []byte, from int, incarnation uint64, sent, echoed time.Duration) {
	if d.core == nil || d.frozen {
		return
	}
	d.when(d.life, func() {
		m, err := coord.Parse(b)
		if err != nil {
			d.w.Violations = append(d.w.Violations, fmt.Sprintf("%s: %v", d.name, err))
			return
		}
		d.hears(from, incarnation, sent, echoed)
		d.step(func(now time.Time) { d.core.Hear(now, 0, d.misread(m)) })
	})
}

// misread makes of a heartbeat what it would be if a broken rule were the right one.
func (d *Director) misread(m coord.Message) coord.Message {
	h, ok := m.(*coord.Heartbeat)
	if !ok || d.w.opt.Broken != LeaseFromNow {
		return m
	}
	for i := range h.Echoes {
		if e := &h.Echoes[i]; e.Node == uint64(peer.IDOf(d.name)) {
			e.Sequence = d.newest
		}
	}
	return h
}

// step lets the coordinator decide, and does what it says.
func (d *Director) step(f func(time.Time)) {
	if d.core == nil {
		return
	}
	now := d.clock()
	f(now)
	out := d.core.Take()
	if out.Filter != nil {
		d.desired = *out.Filter
	}
	for _, e := range out.Events {
		d.events[e.Name]++
		if e.Alarm && e.Name == "clock" && d.behind == 0 && d.w.opt.Broken == None {
			d.w.Violations = append(d.w.Violations, fmt.Sprintf("%.3f s: %s: %s", d.w.now.Seconds(), d.name, e.Text))
		}
		d.w.trace("%s %s: %s", d.name, e.Name, e.Text)
	}
	for _, m := range out.Send {
		if h, ok := m.(*coord.Heartbeat); ok {
			d.newest = h.Sequence
		}
		d.w.send(d, m)
	}
	if out.Flush != nil {
		life, gen := d.life, out.Flush.Gen
		d.w.After(time.Duration(d.w.rng.Int64N(int64(40*time.Millisecond))), func() {
			d.when(life, func() { d.step(func(now time.Time) { d.core.Flushed(now, gen) }) })
		})
	}
	d.work()
	d.timer++
	timer, life := d.timer, d.life
	d.w.After(d.worldTime(d.core.Next().Sub(now))+time.Microsecond, func() {
		if d.timer == timer {
			d.when(life, func() { d.step(d.core.Tick) })
		}
	})
}
