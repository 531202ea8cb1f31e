package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/proto/mirror"
)

// live checks that what every director's kernel reports reaches all the others.
func (f *farm) live(t *testing.T, n *int, step string) {
	t.Helper()
	for _, from := range f.names() {
		for range 3 {
			*n++
			r := conn(*n)
			f.kernel(from, r)
			for _, to := range f.names() {
				if _, ok := f.all[to].table.Get(f.now, &r); !ok {
					t.Errorf("%s: %s lacks what %s sent: %v", step, to, from, f.all[to].counters)
				}
			}
			f.run(60 * time.Millisecond)
		}
	}
}

func TestKeyRotation(t *testing.T) {
	f := newFarm(t, "a", "b", "c")
	f.run(2 * time.Second)
	n, k1, k2 := 0, "1 "+strings.Repeat("ab", 32), "2 "+strings.Repeat("cd", 32)
	for _, step := range []struct {
		name, text string
		signer     uint8
	}{
		{"both keys, the old one signs", k1 + "\n" + k2, 1}, {"both keys, the new one signs", k2 + "\n" + k1, 2}, {"the new key alone", k2, 2},
	} {
		f.text = step.text
		for _, d := range f.names() {
			f.all[d].cfg.Ring = f.ring() // SIGHUP
			f.live(t, &n, step.name+", at "+d)
			f.run(300 * time.Millisecond)
		}
		f.tape = nil
		f.run(200 * time.Millisecond)
		for _, p := range f.tape {
			if tr, _, err := mirror.ParseTrailer(p.b); err != nil || tr.KeyID != step.signer {
				t.Fatalf("%s: key id %d", step.name, tr.KeyID)
			}
		}
	}
	f.settled(t)
}

// settled checks that nothing was dropped, nobody was lost and all replicas are equal.
func (f *farm) settled(t *testing.T) {
	t.Helper()
	f.run(time.Second)
	names := f.names()
	for _, name := range names {
		d := f.all[name]
		for c := DropForged; c <= DropStock; c++ {
			if c != DropIncarnation { // those are the first heartbeats of each
				d.want(t, c, 0)
			}
		}
		if diff := cmp.Diff(f.all[names[0]].dump(), d.dump()); diff != "" {
			t.Errorf("%s and %s differ:\n%s", names[0], name, diff)
		}
		for _, p := range d.Status(f.now).Peers {
			if p.Lost || p.Missing != 0 {
				t.Errorf("%s: %s lost %v, missing %d", name, p.Name, p.Lost, p.Missing)
			}
		}
	}
}

// The way from a farm without keys to one that believes only what is signed. Each director is started again for each step, as
// for any option.
func TestHitlessRollout(t *testing.T) {
	f := newFarm(t)
	for _, n := range []string{"a", "b", "c"} {
		f.start(n, modes["insecure"])
	}
	f.run(2 * time.Second)
	n := 0
	f.live(t, &n, "without keys")
	for _, mode := range []string{"receive-only", "permissive", "enforce"} {
		for _, name := range f.names() {
			lost := f.all[name].changed(Counters{})
			for _, c := range []Counter{DropUnknownKey, DropUnsigned, DropForged} {
				if lost[c.String()] != 0 {
					t.Errorf("before %s becomes %s: %v", name, mode, lost)
				}
			}
			old := f.all[name]
			f.start(name, modes[mode])
			f.all[name].injected = old.injected
			// What the others report while it is away or has just come must be there when it is synced.
			for _, other := range f.names() {
				if other != name {
					n++
					f.kernel(other, conn(n))
				}
			}
			f.run(1500 * time.Millisecond)
			if !f.all[name].Synced() {
				t.Fatalf("%s, %s: not synced\n%s", name, mode, f.log.String())
			}
			f.live(t, &n, name+" becomes "+mode)
		}
	}
	for _, name := range f.names() {
		if got := f.all[name].table.Len(); got != n {
			t.Errorf("%s has %d of %d connections", name, got, n)
		}
	}
	f.settled(t)
}
