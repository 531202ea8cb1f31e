package engine

import (
	"net/netip"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/syncd/table"
)

// losesLive makes b give up for good what a's kernel reports of n connections.
func (f *farm) losesLive(n int) {
	drop := f.drop
	f.drop = loses("a", "b")
	for i := range n {
		f.kernel("a", conn(i))
	}
	f.drop = drop
}

// A peer whose address does not answer, each time only after a while, must not keep this director from auditing the others: by them it gets
// what it lacks, at once, though the audits are due once an hour.
func TestAuditsGoRoundWhoDoesNotAnswer(t *testing.T) {
	for _, interval := range []time.Duration{0, 10 * time.Second, time.Hour} {
		f := newFarm(t)
		for _, n := range []string{"a", "b", "c"} {
			f.start(n, func(c *Config) { c.AuditInterval, c.Backlog = interval, 2000 })
		}
		f.run(5 * time.Second)
		b := f.all["b"]
		f.losesLive(100)
		asked := map[string]int{}
		var until time.Time // when the way to a times out
		for end := f.now.Add(3 * time.Minute); f.now.Before(end); {
			f.now = f.now.Add(TickInterval)
			f.turn(f.all["a"])
			f.turn(f.all["c"])
			b.Tick(f.now)
			if !until.IsZero() && !f.now.Before(until) {
				until = time.Time{}
				b.PullEnded(f.now, PullResult{}, errUnreachable)
			}
			if pull, ok := b.NextPull(f.now); ok {
				if asked[pull.Name]++; pull.Name == "a" {
					until = f.now.Add(2 * time.Second)
				} else {
					session(f.now, f.now, b.Engine, f.teacher("b", pull), pull, 0)
				}
			}
			b.enter(f.now)
			f.deliver()
			if b.table.Len() < 100 && f.now.After(end.Add(-170*time.Second)) {
				t.Fatalf("audits each %v: b has %d of 100 entries after 10 s, c has %d; asked %v", interval, b.table.Len(), f.all["c"].table.Len(), asked)
			}
		}
		if most := 12 + int(3*time.Minute/max(interval, 10*time.Second)); asked["a"] < 5 || asked["a"] > most || asked["c"] > most {
			t.Errorf("audits each %v: asked %v in 3 minutes", interval, asked)
		}
		if b.peers.Get(peer.IDOf("a")).GivenUp() == 0 {
			t.Errorf("what a has told may be missing still, as a does not answer, and is not counted")
		}
	}
}

// What was lost of a peer that does not teach is looked for once, at all others, and counts as made good then: audits do not go on for ever.
func TestLossOfWhoDoesNotTeachIsMadeGood(t *testing.T) {
	for _, why := range []string{"gave up", "was lost"} {
		f := newFarm(t)
		for _, n := range []string{"a", "b", "c"} {
			f.start(n, nil) // audits after losses only
		}
		f.run(2 * time.Second)
		a, b := f.all["a"], f.all["b"]
		a.SetTeaches(netip.AddrPort{}) // --join none
		a.SetLimits(2000, 0)
		f.run(5 * time.Second)
		before, want, audits := b.pulls.latest.Count, 0, uint64(0)
		if why == "gave up" {
			f.losesLive(100)
			want, audits = 100, 2 // at once, and when everything is old enough
		} else {
			f.drop = func(from, to string, _ []byte) bool { return from == "a" && to == "b" }
			f.run(4 * time.Second)
			f.drop = nil
		}
		f.run(10 * time.Minute)
		if n := b.pulls.latest.Count - before; n != audits {
			t.Errorf("%s: %d audits in 10 minutes, want %d", why, n, audits)
		}
		if m := b.peers.Get(peer.IDOf("a")).Missing(); m != 0 || b.table.Len() != want {
			t.Errorf("%s: %d missing, b has %d of %d entries", why, m, b.table.Len(), want)
		}
	}
}

// Without anybody who teaches, what was lost stays missing, and nobody is asked.
func TestLossWithoutTeachersStaysMissing(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b"} {
		f.start(n, func(c *Config) { c.Backlog, c.Teaches = 2000, netip.AddrPort{} })
	}
	f.run(10 * time.Second)
	f.losesLive(100)
	f.run(time.Minute)
	b := f.all["b"]
	if m := b.peers.Get(peer.IDOf("a")).Missing(); m == 0 || b.pulls.latest.Count != 0 || b.table.Len() == 100 {
		t.Errorf("%d missing after %d audits, b has %d entries", m, b.pulls.latest.Count, b.table.Len())
	}
}

// Directors that ran apart and meet have each what the other one lacks: they compare at once. Audits are after losses only here.
func TestWhoMeetsLateCompares(t *testing.T) {
	f := newFarm(t)
	f.drop = func(string, string, []byte) bool { return true }
	f.start("a", nil)
	f.start("b", nil)
	f.run(10 * time.Second)
	f.kernel("a", conn(1))
	f.kernel("b", conn(2))
	f.run(10 * time.Second)
	f.kernel("b", conn(3)) // too young for the first audit
	f.drop = nil
	f.run(10 * time.Second)
	for _, n := range f.names() {
		if l := f.all[n].table.Len(); l != 3 {
			t.Errorf("%s has %d of 3 entries 10 s after they met", n, l)
		}
		if c := f.all[n].pulls.latest.Count; c > 2 {
			t.Errorf("%s has audited %d times", n, c)
		}
	}
}

// A director that was started again, and is heard late by one of the others, has published meanwhile what that one lacks.
func TestWhoIsAdmittedLateIsCompared(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	f.drop = func(from, to string, _ []byte) bool { return from == "b" && to == "a" }
	f.start("b", nil)
	f.run(10 * time.Second)
	f.kernel("b", conn(1))
	f.drop = nil
	f.run(10 * time.Second)
	for _, n := range f.names() {
		if l := f.all[n].table.Len(); l != 1 {
			t.Errorf("%s has %d of 1 entries; missing as b's %v", n, l, f.all[n].peers.Get(peer.IDOf("b")).Missing())
		}
	}
}

// What was missing of a peer that is started again is looked for at the others, as with a peer that is lost.
func TestMissingOfAnEarlierLifeIsLookedFor(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	f.drop = loses("a", "b")
	f.kernel("a", conn(1))
	f.all["a"].heartbeat()
	f.deliver()
	if m := f.all["b"].peers.Get(peer.IDOf("a")).Missing(); m != 1 {
		t.Fatalf("%d missing", m)
	}
	f.drop = nil
	f.start("a", nil)
	f.run(10 * time.Second)
	if n := f.all["b"].table.Len(); n != 1 {
		t.Errorf("b has %d of 1 entries; c has %d, a %d", n, f.all["c"].table.Len(), f.all["a"].table.Len())
	}
}

// A start in good order, of a farm or of one director, costs no audits: live updates and the join bring all there is.
func TestStartsCostNoAudits(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(10 * time.Second)
	f.kernel("a", conn(1))
	f.start("b", nil)
	f.run(10 * time.Second)
	for _, n := range f.names() {
		if c := f.all[n].pulls.latest.Count; c != 0 || f.all[n].table.Len() != 1 {
			t.Errorf("%s has audited %d times, has %d of 1 entries", n, c, f.all[n].table.Len())
		}
	}
}

// The join's figures are those of the join, and an audit's those of the audit: neither goes on counting what comes by other pulls, such as
// a resync at the same time.
func TestPullsAreCountedApart(t *testing.T) {
	f := newFarm(t)
	f.start("a", func(c *Config) { c.Backlog = 2000 })
	f.run(2 * time.Second)
	f.kernel("a", conn(1000))
	f.run(2 * time.Second)
	b := f.start("b", nil)
	f.run(2 * time.Second)
	before := b.Status(f.now).Join
	if before.Entries != 1 || before.Total != 1 {
		t.Errorf("join %+v", before)
	}
	f.losesLive(100)
	resynced := uint64(0)
	for end := f.now.Add(10 * time.Second); f.now.Before(end); {
		f.now = f.now.Add(TickInterval)
		f.turn(f.all["a"])
		b.Tick(f.now)
		if pull, ok := b.NextPull(f.now); ok {
			f.all["a"].Walk(f.now, table.Cursor{}, 50, func(en *table.Entry, _ string) bool {
				resynced += b.Learned(f.now, []table.Entry{*en}, nil)
				return true
			})
			session(f.now, f.now, b.Engine, f.all["a"].Engine, pull, 0)
		}
		f.deliver()
	}
	st := b.Status(f.now)
	if st.Join != before {
		t.Errorf("join %+v, was %+v when it ended", st.Join, before)
	}
	if got := st.Counter[LearnedChanged]; resynced == 0 || st.Audit.Total == 0 || got != 1+resynced+st.Audit.Total {
		t.Errorf("%d changed: 1 by the join, %d by a resync, %d by audits", got, resynced, st.Audit.Total)
	}
}

// A director that could not be taught in time compares with all whom it hears, as soon as it reaches them.
func TestWhoWasNotTaughtCompares(t *testing.T) {
	f := newFarm(t, "a")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.run(10 * time.Second)
	f.drop = func(_, _ string, b []byte) bool { return b == nil } // TCP
	b := f.start("b", nil)
	f.run(20 * time.Second)
	if st := b.Status(f.now); !st.Synced || !st.Join.Partial || st.Total != 0 {
		t.Fatalf("synced %v, join %+v, %d entries", st.Synced, st.Join, st.Total)
	}
	f.drop = nil
	f.run(time.Minute)
	if n := b.table.Len(); n != 1 {
		t.Errorf("b has %d of 1 entries", n)
	}
}
