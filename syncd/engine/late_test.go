package engine

import (
	"net/netip"
	"testing"
	"time"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// What a director has missed for longer than entries live does not come back with it.
func TestLongCut(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b", "c"} {
		f.start(n, func(c *Config) { c.AuditInterval = 10 * time.Second })
	}
	f.run(2 * time.Second)
	f.drop = func(from, to string, _ []byte) bool { return from == "b" || to == "b" } // b's cable is out for an hour
	r := conn(1)
	r.Timeout = 900
	f.kernel("a", r)
	f.run(time.Hour)
	if n := f.all["a"].table.Len() + f.all["c"].table.Len(); n != 0 {
		t.Fatalf("%d entries of a and c are not over", n)
	}
	f.drop = nil
	f.run(40 * time.Second)
	for _, n := range f.names() {
		if d := f.all[n]; d.table.Len() != 0 {
			e := d.entry(t, r)
			t.Errorf("%s: a connection that was over 45 minutes ago is here for %v more; %d injected", n, e.Remaining, len(d.injected))
		}
	}
}

// Nor does it stand above what has been opened since, although its grant is later.
func TestLongCutAndPortReuse(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b", "c"} {
		f.start(n, func(c *Config) { c.AuditInterval = 10 * time.Second })
	}
	f.run(2 * time.Second)
	f.kernel("c", conn(1)) // grant 0
	f.run(time.Second)
	f.drop = func(from, to string, _ []byte) bool { return from == "b" || to == "b" }
	taken := conn(1)
	taken.Flags |= ipvssync.FlagSync
	f.kernel("a", taken)    // grant 1, a's
	f.run(20 * time.Minute) // it ends: everybody has forgotten it
	if n := f.all["a"].table.Len() + f.all["c"].table.Len() + f.all["b"].table.Len(); n != 0 {
		t.Fatalf("%d entries are not over", n)
	}
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	f.kernel("a", live) // the client uses its port again
	f.run(time.Minute)
	a := f.all["a"]
	a.injected = nil
	f.drop = nil
	f.run(time.Minute)
	for _, n := range f.names() {
		if e := f.all[n].entry(t, live); e.Record.Real != live.Real {
			t.Errorf("%s: goes to %v, of 20 minutes ago; grant %v", n, e.Record.Real, e.Stamp.Grant)
		}
	}
	for _, r := range a.injected {
		t.Errorf("a's kernel, which has the live connection, is given %v", r.Real)
	}
}

// A director that was stopped reads what waited for it as what it is by then.
func TestLateReader(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b", "c"} {
		f.start(n, func(c *Config) { c.AuditInterval = 3 * time.Second })
	}
	f.run(2 * time.Second)
	f.kernel("c", conn(1))
	taken := conn(1)
	taken.Flags |= ipvssync.FlagSync
	f.kernel("a", taken) // grant 1
	b := f.all["b"]
	b.down = true // SIGSTOP
	from := len(f.tape)
	closed := taken
	closed.State, closed.Timeout, closed.Flags = ipvssync.TCPClose, 10, ipvssync.FlagSync|ipvssync.FlagInactive
	f.kernel("a", closed)
	f.run(20 * time.Second) // over at a and c
	if n := f.all["a"].table.Len() + f.all["c"].table.Len(); n != 0 {
		t.Fatal(n)
	}
	live := conn(1)
	f.kernel("a", live) // the client comes with the same port and gets the same server
	f.run(10 * time.Second)
	b.down = false
	b.Tick(f.now)
	for _, p := range f.tape[from:] { // its socket's buffer
		if p.from != "b" {
			b.FromNetwork(f.now, 0, stockA, p.b)
		}
	}
	a := f.all["a"]
	a.injected = nil
	f.run(9 * time.Second)
	for _, r := range a.injected {
		t.Errorf("a's kernel, which has the live connection, is given state %d, timeout %d", r.State, r.Timeout)
	}
	f.run(30 * time.Second)
	for _, n := range f.names() {
		r := live
		if e, ok := f.all[n].table.Get(f.now, &r); !ok || e.Record.State != ipvssync.TCPEstablished {
			t.Errorf("%s: live connection known %v, state %d", n, ok, e.Record.State)
		}
	}
}

// What a director told in an earlier life comes back from the others, and does not stand above what its kernel has reported since.
func TestOwnEarlierLife(t *testing.T) {
	f := newFarm(t)
	audit := func(c *Config) { c.AuditInterval = 10 * time.Second }
	f.start("a", audit)
	f.start("b", audit)
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.kernel("b", conn(1))
	f.kernel("a", conn(1)) // grant 2, a's
	f.drop = func(string, string, []byte) bool { return true }
	a := f.start("a", audit)
	f.run(3 * time.Second)
	moved := conn(1)
	moved.Real = conn(1).Virtual
	f.kernel("a", moved) // live at a, and only there
	f.run(2 * time.Second)
	f.drop = nil
	f.run(60 * time.Second)
	if e := a.entry(t, moved); e.Record.Real != moved.Real || len(a.injected) != 0 {
		t.Errorf("the older record of its own wins over the live one: %v, %d injected", e.Stamp, len(a.injected))
	}
}

// A machine that was paused, and its clock with it, does not know that time has gone by, and tells what was over long ago. That does not
// stand above what has been opened since.
func TestPausedMachine(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b"} {
		f.start(n, func(c *Config) { c.AuditInterval = 10 * time.Second })
	}
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.kernel("b", conn(1)) // grant 1
	a, b := f.all["a"], f.all["b"]
	b.down = true // paused
	const pause = time.Hour
	f.run(pause)
	if a.table.Len() != 0 {
		t.Fatal("not over")
	}
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	f.kernel("a", live)
	a.injected = nil
	b.down = false
	for end := f.now.Add(time.Minute); f.now.Before(end); {
		f.now = f.now.Add(TickInterval)
		for _, d := range []*director{a, b} {
			now, other, there := f.now, b, f.now.Add(-pause)
			if d == b {
				now, other, there = f.now.Add(-pause), a, f.now
			}
			d.Tick(now)
			if pull, ok := d.NextPull(now); ok {
				session(now, there, d.Engine, other.Engine, pull, 0)
			}
			d.enter(now)
		}
		for len(f.wire) > 0 {
			p := f.wire[0]
			f.wire = f.wire[1:]
			if p.from == "a" {
				b.FromNetwork(f.now.Add(-pause), 0, stockA, p.b)
			} else {
				a.FromNetwork(f.now, 0, stockA, p.b)
			}
		}
	}
	for now, d := range map[time.Time]*director{f.now: a, f.now.Add(-pause): b} {
		if e, known := d.table.Get(now, &live); !known || e.Record.Real != live.Real {
			t.Errorf("%s: known %v, goes to %v", d.name, known, e.Record.Real)
		}
	}
	if len(a.injected) > 0 {
		t.Errorf("a's kernel, which has the live connection, is given %d records", len(a.injected))
	}
}

// What was over when this director's kernel reported a connection does not stand above the report, whoever tells it and whatever its grant.
func TestOverWhenReported(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	live := conn(1)
	live.Real = netip.MustParseAddrPort("10.9.0.8:8080")
	f.kernel("a", live)
	a := f.all["a"]
	now := a.Cut(f.now)
	for _, tt := range []struct {
		name  string
		grant uint32
		clock uint64
		stays bool
	}{
		{"over", 9, now - 901e6, true},
		{"not over", 99, now - 890e6, false},
	} {
		a.injected = nil
		a.Learned(f.now, []table.Entry{{
			Record: conn(1), Origin: f.all["c"].self, Remaining: time.Minute,
			Stamp: table.Stamp{Grant: mirror.NewGrant(0, tt.grant), Clock: tt.clock},
		}}, nil)
		if stays := a.entry(t, live).Record.Real == live.Real; stays != tt.stays || stays != (len(a.injected) == 0) {
			t.Errorf("%s: the live connection stays %v, want %v; %d injected", tt.name, stays, tt.stays, len(a.injected))
		}
	}
}
