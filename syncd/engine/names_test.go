package engine

import (
	"fmt"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/syncd/table"
)

// Hosts that are named anew at each start do not fill the memory of those that run on.
func TestPartnersAreBounded(t *testing.T) {
	f := newFarm(t, "a")
	f.run(time.Second)
	a := f.all["a"]
	for i := range maxPartners + 20 {
		n := fmt.Sprintf("host-%d", i)
		f.start(n, nil)
		f.run(time.Second)
		if a.peers.Get(peer.IDOf(n)) == nil {
			t.Fatalf("%s is not admitted", n)
		}
		delete(f.all, n)
		f.run(3 * time.Second)
	}
	if n := len(a.partners); n > maxPartners {
		t.Errorf("accounts of %d partners", n)
	}
	for p := range a.peers.Peers {
		if a.partners[p.ID] == nil {
			t.Errorf("no account of %s", p.Name)
		}
	}
}

// Names of origins are kept as long as there are entries of theirs; those of no use make room.
func TestNamesAreBounded(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("b", conn(0))
	a := f.all["a"]
	learn := func(origin string, i int, timeout uint32) {
		r := conn(i)
		r.Timeout = timeout
		en := table.Entry{Record: r, Origin: peer.IDOf(origin), Stamp: table.Stamp{Clock: wall(f.now)}, Remaining: time.Duration(timeout) * time.Second}
		a.Learned(f.now, []table.Entry{en}, map[peer.ID]string{en.Origin: origin})
	}
	for i := range 10 {
		learn(fmt.Sprintf("lives-%d", i), 1+i, 900)
	}
	for i := range 2 * maxNames {
		learn(fmt.Sprintf("gone-%d", i), 100+i%1000, 10)
		if i%100 == 99 {
			f.run(11 * time.Second)
		}
		if len(a.names) > maxNames {
			t.Fatalf("%d names", len(a.names))
		}
	}
	learn("last", 50, 900)
	for _, n := range []string{"a", "b", "lives-0", "lives-9", "last"} {
		if got := a.OriginName(peer.IDOf(n)); got != n {
			t.Errorf("the name of %s is forgotten: %s", n, got)
		}
	}
	if n := a.OriginName(peer.IDOf("gone-0")); n == "gone-0" {
		t.Error("the name of gone-0 is kept though nothing is known of it any more")
	}
}
