package engine

import (
	"net/netip"
	"testing"
	"time"

	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// A director that needs a long time for its kernel's list does not conclude from that that it is alone.
func TestSlowStart(t *testing.T) {
	f := newFarm(t, "a")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	b := f.start("b", nil)
	b.down = true // readKernel
	f.run(1500 * time.Millisecond)
	b.down = false
	f.run(20 * time.Millisecond)
	if b.join.state != Learning {
		t.Errorf("in its first 20 ms it has found that it is alone: state %v", b.join.state)
	}
	f.run(3 * time.Second)
	if b.table.Len() != 1 {
		t.Errorf("synced %v without a's connection, partial %v", b.Synced(), b.join.partial)
	}
}

// Nor do the copies in its kernel stand above the connections of the others.
func TestSlowStartWithCopies(t *testing.T) {
	f := newFarm(t)
	audit := func(c *Config) { c.AuditInterval = 10 * time.Second }
	f.start("a", audit)
	f.run(2 * time.Second)
	f.kernel("a", conn(1), conn(2))
	fin := conn(1)
	fin.State, fin.Timeout = ipvssync.TCPFinWait, 120
	b := f.start("b", audit)
	b.down = true // its daemon reads the kernel's list
	for i := 1; i <= 2; i++ {
		r := conn(i)
		r.Flags |= ipvssync.FlagSync // a's connections, which b's kernel holds a copy of
		b.FromKernel(f.now, &r, 300)
	}
	f.kernel("a", fin)
	f.run(1500 * time.Millisecond)
	b.down = false
	f.run(30 * time.Second)
	a := f.all["a"]
	if e := a.entry(t, fin); e.Origin != a.self || e.Record.State != fin.State {
		t.Errorf("a's own connection in FIN_WAIT is now %v's, state %d, grant %v", a.OriginName(e.Origin), e.Record.State, e.Stamp.Grant)
	}
	if len(a.injected) > 0 {
		t.Errorf("a's kernel is given %d records of connections that only a handles", len(a.injected))
	}
}

// What the kernel reports twice in one moment while its director joins is told as it was in the end.
func TestReportsOfOneMoment(t *testing.T) {
	f := newFarm(t, "a")
	f.run(2 * time.Second)
	b := f.start("b", nil)
	f.run(20 * time.Millisecond)
	if b.join.state != Learning {
		t.Fatalf("state %v", b.join.state)
	}
	fin := conn(1)
	fin.State, fin.Timeout = ipvssync.TCPFinWait, 120
	f.kernel("b", conn(1))
	f.kernel("b", fin)
	f.run(5 * time.Second)
	if e := f.all["a"].entry(t, fin); e.Record.State != fin.State {
		t.Errorf("state %d", e.Record.State)
	}
}

// Who is stopped while it joins tries again.
func TestStoppedJoin(t *testing.T) {
	f := newFarm(t, "a", "c")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	b := f.start("b", nil)
	var pull Pull
	for ok := false; !ok; {
		f.now = f.now.Add(TickInterval)
		f.turn(f.all["a"])
		f.turn(f.all["c"])
		b.Tick(f.now)
		pull, ok = b.NextPull(f.now)
		f.deliver()
	}
	b.down = true // SIGSTOP
	f.run(30 * time.Second)
	b.down = false
	b.Tick(f.now)
	b.PullEnded(f.now, PullResult{}, errUnreachable) // the deadline of its frame is over
	_ = pull
	f.run(5 * time.Second)
	if b.table.Len() != 1 {
		t.Errorf("synced %v, partial %v, %d attempts, without a's connection", b.Synced(), b.join.partial, b.join.attempts)
	}
}

// The only complete teacher has sessions enough for longer than a join takes: the newcomer waits.
func TestBusyTeacher(t *testing.T) {
	f := newFarm(t)
	audit := func(c *Config) { c.AuditInterval = 10 * time.Second }
	f.start("a", audit)
	f.run(2 * time.Second)
	f.kernel("a", conn(1), conn(2))
	d := f.start("d", audit)
	for i := 1; i <= 2; i++ {
		r := conn(i)
		r.Flags |= ipvssync.FlagSync
		d.FromKernel(f.now, &r, 300)
	}
	fin := conn(1)
	fin.State, fin.Timeout = ipvssync.TCPFinWait, 120
	f.kernel("a", fin)
	a := f.all["a"]
	busy := f.now.Add(8 * time.Second)
	for f.now.Before(busy) {
		f.now = f.now.Add(TickInterval)
		f.turn(a)
		d.Tick(f.now)
		if _, ok := d.NextPull(f.now); ok {
			d.PullEnded(f.now, PullResult{Busy: true}, errUnreachable)
		}
		d.enter(f.now)
		f.deliver()
	}
	if d.Synced() {
		t.Errorf("d calls itself synced with %d of 2 connections, partial %v", d.Remote(), d.join.partial)
	}
	f.run(30 * time.Second)
	if e := a.entry(t, fin); e.Origin != a.self || len(a.injected) > 0 {
		t.Errorf("a's own connection in FIN_WAIT is now %v's, state %d; %d injected", a.OriginName(e.Origin), e.Record.State, len(a.injected))
	}
}

// All restart: of two kernels that have a connection in their lists, the one that has it more recently is right.
func TestAllRestart(t *testing.T) {
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		f := newFarm(t)
		live := conn(1)
		live.Real = netip.MustParseAddrPort("10.9.0.8:8080") // used again while no daemon ran
		copied := conn(1)
		copied.Flags |= ipvssync.FlagSync
		for _, n := range order {
			d := f.start(n, nil)
			if n == "a" {
				r := live
				d.FromKernel(f.now, &r, 0)
			} else {
				r := copied
				d.FromKernel(f.now, &r, 300)
			}
			f.run(40 * time.Millisecond)
		}
		f.run(5 * time.Second)
		a := f.all["a"]
		e := a.entry(t, live)
		if e.Record.Real != live.Real || len(a.injected) != 0 {
			t.Errorf("%v: a's live connection is replaced by b's copy: %v, grant %v, %d injected", order, e.Record.Real, e.Stamp.Grant, len(a.injected))
		}
	}
}

// So it is when they restart at the same time.
func TestAllRestartTogether(t *testing.T) {
	f := newFarm(t, "a", "b")
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	r, copied := live, conn(1)
	copied.Flags |= ipvssync.FlagSync
	f.all["a"].FromKernel(f.now, &r, 0)
	f.all["b"].FromKernel(f.now, &copied, 300)
	f.run(5 * time.Second)
	a := f.all["a"]
	if e := a.entry(t, live); e.Record.Real != live.Real || len(a.injected) != 0 {
		t.Errorf("a's live connection is replaced by b's copy: %v, grant %v, %d injected", e.Record.Real, e.Stamp.Grant, len(a.injected))
	}
}

// What was opened here while the daemon did not run is not overwritten by what another director told long before.
func TestJoinWithYounger(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("b", conn(1)) // b had this connection, to another server
	f.all["a"].down = true
	f.run(5 * time.Minute)
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	a := f.start("a", nil)
	r := live // the client uses its port again, at a: a's kernel made it, 5 s ago
	a.FromKernel(f.now, &r, 5)
	f.run(5 * time.Second)
	if e := a.entry(t, live); e.Record.Real != live.Real || len(a.injected) != 0 {
		t.Errorf("a's connection, 5 s old, is overwritten by b's, 300 s old: %v, %d injected", e.Record.Real, len(a.injected))
	}
}

// What a newcomer's kernel reports before anybody was heard is not older for its clock being an hour behind.
func TestJoinWithClockBehind(t *testing.T) {
	f := newFarm(t, "a")
	f.run(2 * time.Second)
	f.kernel("a", conn(1)) // ten minutes ago
	f.run(10 * time.Minute)
	const behind = -time.Hour
	b := f.start("b", func(c *Config) { c.Now = f.now.Add(behind) })
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	b.FromTap(f.now.Add(behind), kernelMessage(t, live)) // before it has heard of anybody
	for range 200 {
		f.now = f.now.Add(TickInterval)
		f.turn(f.all["a"])
		now := f.now.Add(behind)
		b.Tick(now)
		if pull, ok := b.NextPull(now); ok {
			session(now, f.now, b.Engine, f.all["a"].Engine, pull, 0)
		}
		b.enter(now)
		for len(f.wire) > 0 {
			p := f.wire[0]
			f.wire = f.wire[1:]
			if p.from == "a" {
				b.FromNetwork(now, 0, stockA, p.b)
			} else {
				f.all["a"].FromNetwork(f.now, 0, stockA, p.b)
			}
		}
	}
	r := live
	e, _ := b.table.Get(f.now.Add(behind), &r)
	if e.Record.Real != live.Real {
		t.Errorf("b's live connection was replaced by a's of ten minutes ago: %v, %d injected", e.Record.Real, len(b.injected))
	}
}

// A director is killed after it has told one peer of a connection, and before it has told of its end; the other peer, which knows nothing of it, teaches its next
// life. What the former life told does not come back over what the kernel has, by the audit for instance: found by killing daemons at random under loss.
func TestEarlierLifeIsNotNewer(t *testing.T) {
	taught := map[string]bool{}
	for try := 0; try < 40 && len(taught) < 2; try++ {
		f := newFarm(t)
		audit := func(c *Config) { c.AuditInterval = 20 * time.Second }
		for range try { // another teacher is drawn
			f.inc++
		}
		for _, n := range []string{"a", "b", "c"} {
			f.start(n, audit)
		}
		f.run(2 * time.Second)
		f.drop = func(_, to string, _ []byte) bool { return to == "b" }
		f.kernel("a", conn(1))
		f.drop = nil
		f.all["a"].down = true // it is killed
		f.run(1500 * time.Millisecond)
		a := f.start("a", audit)
		fin := conn(1)
		fin.State, fin.Timeout = ipvssync.TCPFinWait, 120
		a.FromKernel(f.now, &fin, 2) // 1.4 s, and seconds are rounded
		f.run(3 * time.Second)
		taught[a.join.teacher] = true
		f.run(2 * time.Minute / 3)
		if len(a.injected) > 0 {
			t.Errorf("taught by %s, a injects what its own former life has told: %+v", a.join.teacher, a.injected)
		}
		for _, n := range f.names() {
			if e := f.all[n].entry(t, fin); e.Record.State != ipvssync.TCPFinWait {
				t.Errorf("taught by %s, %s has the connection in state %d", a.join.teacher, n, e.Record.State)
			}
		}
	}
	if len(taught) != 2 {
		t.Errorf("teachers were %v", taught)
	}
}

// Ages are in steps: of a connection that the kernel has made, down; of a copy, up.
func TestStampedBack(t *testing.T) {
	for _, tt := range []struct{ age, made, copied uint32 }{{0, 0, 3}, {1, 0, 4}, {3, 0, 6}, {4, 1, 9}, {5, 2, 9}, {60, 42, 63}, {63, 42, 94}, {900, 711, 1066}} {
		r := conn(1)
		if got := stampedBack(&table.Entry{Record: r, Remaining: time.Duration(900-tt.age) * time.Second}); got != uint64(tt.made)*1e6 {
			t.Errorf("made here %d s ago: %d", tt.age, got)
		}
		r.Flags |= ipvssync.FlagSync
		if got := stampedBack(&table.Entry{Record: r, Remaining: time.Duration(900-tt.age) * time.Second}); got != uint64(tt.copied)*1e6 {
			t.Errorf("copied %d s ago: %d", tt.age, got)
		}
	}
}
