package table

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/lib/peer"
	"saru/proto/ipvssync"
)

// A slot that other changes have made out of date still leads to the right entry.
func TestSlotOutOfDate(t *testing.T) {
	later := t0.Add(20 * time.Second)
	for name, record := range map[string]func(int, uint32) *ipvssync.Record{"IPv4": tcp, "IPv6": udp6} {
		t.Run(name, func(t *testing.T) {
			tab, r := New(t0), record(1, 10)
			check := func(what string, s Slot, now time.Time, want Outcome, stamp Stamp) {
				t.Helper()
				if _, newest, known := tab.NewestAt(s, r); known != (want != Inserted) || newest.Clock >= stamp.Clock {
					t.Errorf("%s: known %v, newest %d", what, known, newest.Clock)
				}
				if out := tab.PutAt(s, now, r, 2, stamp, 0); out != want {
					t.Errorf("%s: outcome %v, want %v", what, out, want)
				}
				if from, newest, _ := tab.NewestAt(tab.Slot(r), r); from != 2 || newest != stamp {
					t.Errorf("%s: then %v from %v", what, newest, from)
				}
			}
			check("zero slot of an empty table", Slot{}, t0, Inserted, at(5))

			empty := tab.Slot(record(2, 100))
			if empty.Known() || tab.Has(record(2, 100)) {
				t.Error("a connection is known that is not")
			}
			tab.Put(t0, record(2, 100), 1, at(1), 0)
			r = record(2, 100)
			check("entered meanwhile", empty, t0, Replaced, at(6))

			r = record(1, 10)
			old := tab.Slot(r)
			if !old.Known() {
				t.Error("a connection is not known that is")
			}
			tab.Expire(later)
			tab.Put(later, record(3, 10), 1, at(1), 0) // in the place of the one that expired
			check("expired meanwhile, its place taken", old, later, Inserted, at(7))
			if tab.Len() != 3 || tab.Origin(1) != 1 || tab.Origin(2) != 2 {
				t.Errorf("%d entries, %d of origin 1, %d of origin 2", tab.Len(), tab.Origin(1), tab.Origin(2))
			}
		})
	}
}

// Whoever was taught a connection, by whatever chain of teachers, keeps it until its time is over, and no longer than expirySlack for each
// of them.
func TestTaughtExpiry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const timeout = 60
		r, now := tcp(1, timeout), t0.Add(time.Minute)
		over := now.Add(timeout * time.Second)
		fresh := func() *Table { return New(t0.Add(drawTime(t, "epoch", time.Second))) }
		tab := fresh()
		tab.Put(now, r, 1, at(1), 0)
		for teachers := range rapid.IntRange(1, 4).Draw(t, "teachers") {
			end := tab.epoch.Add(time.Duration(tab.v4.at(tab.Slot(r).i).expires) * time.Second)
			if late := end.Sub(over); late < 0 || late > time.Duration(teachers+1)*expirySlack*time.Second {
				t.Fatalf("behind %d teachers it expires %v after its end", teachers, late)
			}
			now = now.Add(drawTime(t, "pause", 10*time.Second))
			e, ok := tab.Get(now, r)
			if !ok {
				t.Fatal("it is gone")
			}
			pupil := fresh()
			if out := pupil.Put(now, &e.Record, peer.ID(1), e.Stamp, e.Age()); out != Inserted {
				t.Fatalf("the pupil does not take it: %v", out)
			}
			tab = pupil
		}
	})
}
