package engine

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
)

// replayed is what a replay of a good datagram counts as: one that is sent again on request comes to all, who have it mostly.
func replayed(name string) Counter {
	if name == "repeat" {
		return RepairKnown
	}
	return DropReplayed
}

func TestReplay(t *testing.T) {
	f := pair(t, "enforce")
	b := f.all["b"]
	good := goodDatagrams(f)
	names := slices.Sorted(maps.Keys(good))
	for _, name := range []string{"records", "repeat", "heartbeat", "request"} {
		b.FromNetwork(f.now, 0, stockA, good[name])
	}
	for _, name := range names {
		b.refuses(t, name+" again", good[name], replayed(name))
	}
	f.run(time.Second)
	for _, name := range names {
		b.refuses(t, name+" a second later", good[name], replayed(name))
	}
	f.run(time.Hour) // everything has expired: it must not come back
	if b.table.Len() != 0 {
		t.Fatalf("%d entries after an hour", b.table.Len())
	}
	for _, name := range names {
		b.refuses(t, name+" an hour later", good[name], replayed(name))
	}
}

// A director's own datagrams come back to it.
func TestReflected(t *testing.T) {
	for mode := range modes {
		f := pair(t, mode)
		for n, p := range f.tape {
			f.all[p.from].refuses(t, fmt.Sprintf("%s: own datagram %d", mode, n), p.b, DropOwn)
		}
		// Those of an earlier life are no better, and are told from a namesake's.
		f.start(f.tape[0].from, modes[mode])
		d, before := f.all[f.tape[0].from], len(f.tape)
		f.run(2 * time.Second)
		for n, p := range f.tape[:before] {
			if p.from != d.name {
				continue
			}
			dump, counters := d.dump(), d.counters
			d.FromNetwork(f.now, 0, stockA, p.b)
			if diff := cmp.Diff(map[string]uint64{"drop_incarnation": 1}, d.changed(counters)); diff != "" {
				t.Errorf("%s: datagram %d of an earlier life: counters (-want +got):\n%s", mode, n, diff)
			}
			if diff := cmp.Diff(dump, d.dump()); diff != "" || d.failure != nil {
				t.Errorf("%s: datagram %d: failure %v\n%s", mode, n, d.failure, diff)
			}
		}
	}
}

// A whole life of a is taped. It is played to everybody after the restart of its receiver, of its sender and of both, forwards and
// backwards, quickly and slowly, while the farm goes on.
func TestTapeOfAnEarlierLife(t *testing.T) {
	orders := map[string]func([]packet) []packet{
		"in order": func(p []packet) []packet { return p },
		"reversed": func(p []packet) []packet { p = slices.Clone(p); slices.Reverse(p); return p },
	}
	restarts := map[string][]string{"receiver": {"b"}, "sender": {"a"}, "both": {"a", "b"}, "sender stays down": nil}
	for what, who := range restarts {
		for order, arrange := range orders {
			for _, pause := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond} {
				t.Run(fmt.Sprintf("%s/%s/%v", what, order, pause), func(t *testing.T) {
					f := newFarm(t, "a", "b")
					f.run(2 * time.Second)
					for i := range 20 {
						f.kernel("a", conn(i))
						f.run(40 * time.Millisecond)
					}
					var tape []packet
					for _, p := range f.tape {
						if p.from == "a" {
							tape = append(tape, p)
						}
					}
					f.all["a"].down = true
					f.run(20 * time.Minute) // the replica has expired
					for _, n := range who {
						f.start(n, nil)
					}
					b := f.all["b"]
					play := func(when string) {
						dump, before := b.dump(), b.counters
						for _, p := range arrange(tape) {
							b.FromNetwork(f.now, 1, stockA, p.b)
							if pause > 0 {
								f.run(pause)
							}
						}
						drops := b.counters[DropIncarnation] - before[DropIncarnation] + b.counters[DropReplayed] - before[DropReplayed] +
							b.counters[DuplicateLink] - before[DuplicateLink]
						if want := uint64(len(tape)); drops < want { // more when a lives: its own first heartbeats
							t.Errorf("%s: %d of %d dropped: %v", when, drops, want, b.changed(before))
						}
						if diff := cmp.Diff(dump, b.dump()); diff != "" {
							t.Errorf("%s: replica (-before +after):\n%s", when, diff)
						}
						p := b.peers.Get(peer.IDOf("a"))
						if f.all["a"].down && p != nil && !p.Lost {
							t.Errorf("%s: the dead lives: %+v", when, p.Echoed)
						}
						if !f.all["a"].down && (p == nil || p.Incarnation != f.all["a"].cfg.Incarnation) && pause > 0 {
							t.Errorf("%s: the living is not admitted: %+v", when, p)
						}
					}
					play("while starting")
					f.run(2 * time.Second)
					f.kernel("b", conn(100))
					play("while running")
				})
			}
		}
	}
}
