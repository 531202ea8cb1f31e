package engine

import (
	"slices"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// window: the word of the newest number is cleared, but numbers of it up to 63 older than that still count as within the window.
func TestReplayNearTheWindowsEnd(t *testing.T) {
	f := pair(t, "enforce")
	b := f.all["b"]
	for f.all["a"].stream%64 != 0 {
		f.kernel("a", conn(1))
	}
	good := f.capture(func() { f.kernel("a", conn(2)) })[0].b
	b.FromNetwork(f.now, 0, stockA, good)
	for range 4095 {
		f.kernel("a", conn(1))
	}
	b.refuses(t, "replay of the datagram 4095 before the newest", good, DropReplayed)
	if m := b.peers.Get(peer.IDOf("a")).Missing(); m != 0 {
		t.Errorf("missing %d", m)
	}
}

// a tape that was never delivered revives a dead peer.
func TestUndeliveredTapeRevivesTheDead(t *testing.T) {
	f := pair(t, "enforce")
	b := f.all["b"]
	tape := len(f.tape)
	f.drop = func(string, string, []byte) bool { return true } // b's cable is out
	for i := range 20 {
		f.kernel("a", conn(i))
		f.run(200 * time.Millisecond)
	}
	f.all["a"].down = true
	f.drop = nil
	f.run(24 * time.Hour) // well before the entries' time in the kernel, say
	played := slices.Clone(f.tape[tape:])
	before, dump := b.counters, b.dump()
	for _, p := range played {
		if p.from == "a" {
			b.FromNetwork(f.now, 0, stockA, p.b)
		}
	}
	if p := b.peers.Get(peer.IDOf("a")); !p.Lost {
		t.Errorf("a day later the dead lives; counters %v", b.changed(before))
	}
	if len(dump) != len(b.dump()) || b.counters[Injected] != before[Injected] {
		t.Errorf("%d connections of yesterday are injected", b.counters[Injected]-before[Injected])
	}
}

// one way is cut: the side that heard nothing is not taught when it hears again.
func TestOneWayPartition(t *testing.T) {
	for name, d := range map[string]time.Duration{"1.5 s, both ways": 1500 * time.Millisecond, "10 s, one way": 10 * time.Second} {
		f := pair(t, "enforce")
		f.drop = func(from, to string, _ []byte) bool { return to == "b" || name == "1.5 s, both ways" }
		f.kernel("a", conn(1))
		f.kernel("b", conn(2))
		f.run(d)
		f.drop = nil
		f.run(10 * time.Second)
		for _, n := range []string{"a", "b"} {
			for i := 1; i <= 2; i++ {
				r := conn(i)
				if _, ok := f.all[n].table.Get(f.now, &r); !ok {
					t.Errorf("%s: %s lacks connection %d ten seconds after; %+v", name, n, i, f.all[n].Status(f.now).Peers[0].Missing)
				}
			}
		}
	}
}

// a connection's time is over in one replica and, by rounding, not yet in another: the new connection of the same ports is stale there.
func TestRebirthAtExpiry(t *testing.T) {
	for off := range 10 {
		f := newFarm(t, "a")
		f.run(time.Duration(off) * 100 * time.Millisecond)
		f.start("b", nil)
		f.run(3 * time.Second)
		f.run(time.Second - time.Duration(f.now.Nanosecond()) + 940*time.Millisecond)
		r := conn(1)
		r.State, r.Timeout = ipvssync.TCPTimeWait, 10
		f.kernel("b", r)
		f.kernel("a", r) // grant 1
		for f.all["a"].table.Len() > 0 {
			f.run(20 * time.Millisecond)
		}
		n := f.all["b"].table.Len()
		again := conn(1)
		f.kernel("a", again)
		f.run(5 * time.Second)
		if _, ok := f.all["b"].table.Get(f.now, &again); !ok {
			t.Errorf("clocks %d ms apart: b had %d, lacks the new connection; stale %d", 100*off, n, f.all["b"].counters[RemoteStale])
		}
	}
}

// reclaim with a lower grant than its own.
func TestReclaimBelowItself(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.drop = func(from, to string, b []byte) bool { return to == "c" }
	f.kernel("b", conn(1))
	f.kernel("a", conn(1))
	f.kernel("b", conn(1)) // b: grant 3, c: grant 0
	f.drop = nil
	f.all["a"].down = true
	f.run(time.Second)
	a := f.start("a", nil)
	f.kernel("a", conn(1))
	f.run(2 * time.Second)
	a.want(t, TapDamaged, 0)
	a.want(t, SentRecords, 1)
	for _, d := range f.all {
		if e := d.entry(t, conn(1)); e.Origin != a.self || e.Stamp.Grant != mirror.NewGrant(0, 4) {
			t.Errorf("%s: origin %v, grant %v", d.name, e.Origin, e.Stamp.Grant)
		}
	}
}

// a daemon is started again while its cable is out: it calls itself synced, and what it is taught later beats what its kernel does.
func TestReclaimAfterSyncedAlone(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.kernel("b", conn(1))
	f.kernel("a", conn(1)) // grant 2, a's
	f.drop = func(string, string, []byte) bool { return true }
	a := f.start("a", nil)
	f.run(3 * time.Second)
	moved := conn(1)
	moved.Real = conn(1).Virtual
	f.kernel("a", moved) // live at a, and only there
	f.run(2 * time.Second)
	f.drop = nil
	f.run(4 * time.Second)
	if e := a.entry(t, moved); e.Record.Real != moved.Real || len(a.injected) != 0 {
		t.Errorf("the older record of b wins over the live one: %v, %d injected", e.Stamp, len(a.injected))
	}
}

// taken over while it was not bound, then its service comes.
func TestRebindOfTakenOver(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	r := conn(1)
	r.Flags |= ipvssync.FlagSync
	f.kernel("b", r) // b's kernel forwards a packet of the entry that was injected before its service was there
	b := f.all["b"]
	b.injected = nil
	b.Rebind([]Service{{Protocol: 6, Virtual: conn(1).Virtual}})
	f.run(100 * time.Millisecond)
	if len(b.injected) != 1 {
		t.Errorf("injected %d times", len(b.injected))
	}
}

// heartbeats of many earlier lives, replayed, keep a living director from being admitted.
func TestCandidatesEvicted(t *testing.T) {
	f := newFarm(t, "a", "b")
	var old []packet
	for range 9 {
		f.run(500 * time.Millisecond)
		n := len(f.tape)
		f.all["a"].heartbeat()
		f.deliver()
		old = append(old, f.tape[n])
		f.start("a", nil)
	}
	b := f.all["b"]
	for range 250 {
		f.run(20 * time.Millisecond)
		for _, p := range old {
			b.FromNetwork(f.now, 1, stockA, p.b)
		}
	}
	if p := b.peers.Get(peer.IDOf("a")); p == nil || p.Incarnation != f.all["a"].cfg.Incarnation {
		t.Errorf("5 s after its start a is not admitted at b")
	}
}

// nothing allocates on the way out, nor with two links.
func TestAllocations(t *testing.T) {
	var sa, sb sink
	a, b := benchEngine(t, "a", &sa), benchEngine(t, "b", &sb)
	now := meet(t, a, b, &sa, &sb)
	sa.keep = false
	msgs := kernelMessages(t, 38)
	for _, m := range msgs {
		a.FromTap(now, m)
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() { a.FromTap(now, msgs[i%len(msgs)]); a.Flush(); i++ }); n != 0 {
		t.Errorf("out: %v", n)
	}
	for _, m := range msgs {
		b.FromTap(now, m)
	}
	batch, from := stream(t, a, &sa, now, msgs, 0, len(msgs))
	for _, d := range batch {
		b.FromNetwork(now, 0, stockA, d)
		b.FromNetwork(now, 1, stockA, d)
	}
	fresh, _ := stream(t, a, &sa, now, msgs, from, 200)
	if n := testing.AllocsPerRun(100, func() {
		b.FromNetwork(now, 0, stockA, fresh[0])
		b.FromNetwork(now, 1, stockA, fresh[0])
		fresh = fresh[1:]
	}); n != 0 {
		t.Errorf("in, two links: %v", n)
	}
}

// version 0 messages of the own kernel have no timeout.
func TestTapVersion0(t *testing.T) {
	f := pair(t, "enforce")
	r := conn(1)
	b := ipvssync.AppendHeaderV0(nil, 77)
	b, _ = ipvssync.AppendRecordV0(b, 0, &r)
	_ = ipvssync.FinishV0(b, 0, 1)
	f.all["a"].FromTap(f.now, b)
	f.all["a"].want(t, TapDamaged, 0)
}

// a heartbeat numbered 0.
func TestHeartbeatZero(t *testing.T) {
	f := newFarm(t, "a", "b")
	a := f.all["a"]
	a.peers.NextControl()
	f.run(100 * time.Millisecond)
	b := f.all["b"]
	f.all["a"].down = true
	for range 3 {
		f.run(100 * time.Millisecond)
		body, _ := mirror.AppendHeartbeat(nil, &mirror.Heartbeat{Name: "x"}, []mirror.Echo{{Node: uint64(b.self), Incarnation: uint64(b.cfg.Incarnation), Control: 1 << 40}})
		y := forgery{tr: mirror.Trailer{Kind: mirror.KindHeartbeat, Sender: uint64(peer.IDOf("x")), Incarnation: 5, Body: body}}
		y.before = func(d []byte) []byte { copy(d[len(d)-52:], make([]byte, 8)); return d }
		bf := b.counters
		b.FromNetwork(f.now, 0, stockA, f.forge(y))
		t.Log(b.changed(bf))
	}
	if p := b.peers.Get(peer.IDOf("x")); p != nil {
		t.Errorf("admitted with control floor %d", p.Control.Newest())
	}
}
