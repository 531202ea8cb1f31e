package engine

import (
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/mirror"
)

// loses drops stream datagrams from one director to another, but not what is sent again.
func loses(from, to string) func(f, t string, b []byte) bool {
	return func(f, t string, b []byte) bool {
		tr, _, err := mirror.ParseTrailer(b)
		return f == from && t == to && err == nil && tr.Kind.Stream() && tr.Flags&mirror.FlagRepeat == 0
	}
}

// What is lost is asked for and sent again, once for all who lack it, within 100 ms of the heartbeat that tells of it.
func TestRepair(t *testing.T) {
	f := newFarm(t, "a", "b", "c", "d")
	f.run(2 * time.Second)
	f.drop = func(from, to string, b []byte) bool {
		return loses("a", "b")(from, to, b) || loses("a", "c")(from, to, b)
	}
	for i := range 50 {
		f.kernel("a", conn(i))
	}
	f.run(HeartbeatInterval + 100*time.Millisecond)
	a := f.all["a"]
	for _, n := range []string{"b", "c", "d"} {
		d := f.all[n]
		if p := d.peers.Get(a.self); p.Missing() != 0 || d.table.Len() != 50 || len(d.injected) != 50 {
			t.Errorf("%s: %d missing, %d entries, %d injected", n, p.Missing(), d.table.Len(), len(d.injected))
		}
	}
	b, c, d := f.all["b"], f.all["c"], f.all["d"]
	if n := b.counters[RepairRequests] + c.counters[RepairRequests]; n < 1 || n > 2 { // two, if both ask in the same tick
		t.Errorf("%d requests", n)
	}
	a.want(t, RepairDatagrams, 50)
	b.want(t, RepairRecovered, 50)
	d.want(t, RepairKnown, 50)
	d.want(t, DropReplayed, 0)
}

// A short overtaking is no loss.
func TestReorderingAsksForNothing(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	late := f.capture(func() { f.kernel("a", conn(1)) })[0]
	f.kernel("a", conn(2))
	f.run(TickInterval)
	f.all["b"].FromNetwork(f.now, 0, stockA, late.b)
	f.run(time.Second)
	f.all["b"].want(t, RepairRequests, 0)
	if f.all["b"].table.Len() != 2 {
		t.Errorf("%d entries", f.all["b"].table.Len())
	}
}

// What cannot be sent again is pulled.
func TestBeyondTheBacklog(t *testing.T) {
	f := newFarm(t)
	f.start("a", func(c *Config) { c.Backlog = 2000 })
	f.start("b", nil)
	f.run(2 * time.Second)
	f.drop = loses("a", "b")
	for i := range 100 {
		f.kernel("a", conn(i))
	}
	f.run(200 * time.Millisecond)
	f.drop = nil
	b := f.all["b"]
	if p := b.peers.Get(f.all["a"].self); p.GivenUp() == 0 {
		t.Error("nothing was given up")
	}
	f.run(10 * time.Second)
	if p := b.peers.Get(f.all["a"].self); p.Missing() != 0 || b.table.Len() != 100 || len(b.injected) != 100 {
		t.Errorf("%d missing, %d entries, %d injected", p.Missing(), b.table.Len(), len(b.injected))
	}
	if st := b.Status(f.now); st.Audit.Total == 0 || st.Audit.Peer != "a" {
		t.Errorf("audit %+v", st.Audit)
	}
}

// What cannot be repeated any more was asked for too: repair_gone is a part of repair_asked.
func TestGoneIsPartOfAsked(t *testing.T) {
	f := newFarm(t)
	a := f.start("a", func(c *Config) { c.Backlog = 2000 })
	f.run(2 * time.Second)
	for i := range 100 {
		f.kernel("a", conn(i))
	}
	oldest := a.backlog.oldest(a.stream)
	if oldest < 10 {
		t.Fatalf("all from %d can be repeated", oldest)
	}
	a.repeat(f.now, mirror.Range{First: 1, Count: uint32(oldest)}) // the last one of them can be
	a.want(t, RepairGone, oldest-1)
	a.want(t, RepairAsked, oldest)
}

// A peer that asks for everything all the time gets each datagram once in a while, and no more than the rate.
func TestRequestsAreLimited(t *testing.T) {
	f := pair(t, "enforce")
	a := f.all["a"]
	for i := range 3000 {
		f.kernel("a", conn(i))
	}
	before := a.counters[RepairDatagrams]
	for range 50 {
		f.now = f.now.Add(TickInterval)
		a.Tick(f.now)
		for range 20 {
			a.repeat(f.now, mirror.Range{First: 1, Count: 1 << 31})
		}
		f.wire = nil
	}
	if n := a.counters[RepairDatagrams] - before; n > repeatBurst+repeatRate || n < repeatRate/2 {
		t.Errorf("%d datagrams repeated in a second", n)
	}
	before = a.counters[RepairDatagrams]
	a.repeat(f.now, mirror.Range{First: ^uint64(0) - 5, Count: 1 << 31})
	a.want(t, RepairDatagrams, before)
}

// flush waits until the others' kernels have everything.
func TestConfirmation(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	a, b := f.all["a"], f.all["b"]
	f.drop = func(from, to string, d []byte) bool { return to == "b" && from == "a" && loses("a", "b")(from, to, d) }
	f.kernel("a", conn(1))
	n := a.AskConfirmation(f.now)
	f.deliver()
	if have, lack := a.Confirmation(n); len(have) != 0 || len(lack) != 2 {
		t.Fatalf("before any kernel has said so: %v have it, %v do not", have, lack)
	}
	c := f.all["c"]
	c.enter(f.now)
	b.enter(f.now) // it lacks the datagram
	f.deliver()
	if have, lack := a.Confirmation(n); len(have) != 1 || have[0] != "c" || len(lack) != 1 {
		t.Fatalf("%v have it, %v do not", have, lack)
	}
	f.run(300 * time.Millisecond) // b is sent it again
	if have, lack := a.Confirmation(n); len(have) != 2 || len(lack) != 0 {
		t.Errorf("%v have it, %v do not", have, lack)
	}
	a.EndConfirmation()
	// A director that is gone is not waited for.
	c.down = true
	f.run(DeadTime + 2*time.Second)
	f.kernel("a", conn(2))
	n = a.AskConfirmation(f.now)
	f.run(100 * time.Millisecond)
	if have, lack := a.Confirmation(n); len(have) != 1 || len(lack) != 0 {
		t.Errorf("one is gone: %v have it, %v do not", have, lack)
	}
}

// A newcomer says nothing of its own before it is taught, and its teacher may die.
func TestTeacherDies(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	for i := range 2000 {
		f.kernel("a", conn(i))
	}
	c := f.start("c", nil)
	sent := c.stream
	f.kernel("c", conn(5000))
	var asked []peer.ID
	for range 300 {
		f.now = f.now.Add(TickInterval)
		for _, n := range f.names() {
			d := f.all[n]
			d.Tick(f.now)
			if pull, ok := d.NextPull(f.now); ok {
				fail := 0
				if n == "c" {
					if asked = append(asked, pull.ID); len(asked) == 1 {
						fail = 1000
					}
				}
				session(f.now, f.now, d.Engine, f.teacher(n, pull), pull, fail)
				if n == "c" && c.Synced() {
					t.Fatal("synced with its kernel's entries still to come")
				}
			}
			if c.join.state == Learning && c.stream != sent {
				t.Fatal("a newcomer has published something")
			}
			d.enter(f.now)
		}
		f.deliver()
	}
	if len(asked) < 2 || asked[0] == asked[1] {
		t.Errorf("asked %v", asked)
	}
	if !c.Synced() || c.table.Len() != 2001 || f.all["a"].table.Len() != 2001 {
		t.Errorf("synced %v, %d entries; a has %d", c.Synced(), c.table.Len(), f.all["a"].table.Len())
	}
	if st := c.Status(f.now).Join; st.State != Synced || st.Partial || st.Attempts != 2 || st.Total != st.Entries {
		t.Errorf("join %+v", st)
	}
}
