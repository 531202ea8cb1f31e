package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
	"saru/syncd/table"
)

// wantConfirmation checks who has confirmed a number of a director's stream, and who has not.
func wantConfirmation(t *testing.T, d *director, number uint64, have, lack []string) {
	t.Helper()
	gotHave, gotLack := d.Confirmation(number)
	slices.Sort(gotHave)
	slices.Sort(gotLack)
	if diff := cmp.Diff([][]string{have, lack}, [][]string{gotHave, gotLack}, equate...); diff != "" {
		t.Errorf("confirmation of %d (-want +got):\n%s", number, diff)
	}
}

// Directors that wait for confirmation at the same time are each answered once by each other: an answer asks for nothing. Whoever was
// answered and asks again is not answered again, as the next heartbeat tells it anyhow.
func TestAnswersDoNotAsk(t *testing.T) {
	for _, names := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
		f := newFarm(t, names...)
		f.run(3 * time.Second)
		for i, n := range names {
			f.kernel(n, conn(i))
			f.all[n].AskConfirmation(f.now)
		}
		f.deliver() // all in the same instant; no kernel has entered anything
		before := len(f.tape)
		for _, n := range names {
			f.all[n].enter(f.now)
		}
		f.deliver()
		if got := len(f.tape) - before; got != len(names) {
			t.Errorf("%v: %d heartbeats, want one from each", names, got)
		}
		for _, n := range names {
			others := slices.DeleteFunc(slices.Clone(names), func(o string) bool { return o == n })
			wantConfirmation(t, f.all[n], f.all[n].stream, others, nil)
			before := len(f.tape)
			f.all[n].AskConfirmation(f.now)
			f.deliver()
			if got := len(f.tape) - before; got != 1 {
				t.Errorf("%s asks for what was confirmed: %d heartbeats, want its own", n, got)
			}
		}
	}
}

// Nothing above what was given up is confirmed until it was made good.
func TestGivenUpIsNotConfirmed(t *testing.T) {
	f := newFarm(t)
	f.start("a", func(c *Config) { c.Backlog = 2000 })
	f.start("b", nil)
	f.run(2 * time.Second)
	f.drop = loses("a", "b")
	for i := range 100 {
		f.kernel("a", conn(i))
	}
	f.drop = nil
	a, b := f.all["a"], f.all["b"]
	n := a.AskConfirmation(f.now)
	for range 500 {
		f.run(TickInterval)
		if have, _ := a.Confirmation(n); len(have) == 1 {
			break
		}
	}
	wantConfirmation(t, a, n, []string{"b"}, nil) // some time
	if l := b.table.Len(); l != 100 {
		t.Errorf("b confirms number %d and has %d of 100 connections", n, l)
	}
}

// Who has not joined yet confirms nothing, not even of one who has not sent anything since it was admitted.
func TestNewcomerDoesNotConfirm(t *testing.T) {
	f := newFarm(t, "a", "b", "quiet")
	f.run(2 * time.Second)
	for i := range 100 {
		f.kernel("a", conn(i))
	}
	for _, n := range f.names() { // so that the pull takes its time
		f.all[n].SetTeaches(netip.AddrPort{})
	}
	c := f.start("c", nil)
	f.run(time.Second)
	for _, n := range []string{"a", "quiet"} {
		d := f.all[n]
		number := d.AskConfirmation(f.now)
		f.run(200 * time.Millisecond)
		wantConfirmation(t, d, number, slices.DeleteFunc([]string{"a", "b", "quiet"}, func(o string) bool { return o == n }), []string{"c"})
	}
	if c.join.state != Learning {
		t.Errorf("c is %v: nothing was tested", c.join.state)
	}
	if a := f.all["a"]; c.Published() || !a.Published() {
		t.Errorf("has published what it has: c, which joins, %v; a %v", c.Published(), a.Published())
	}
}

// A peer that is started again while it is waited for has confirmed nothing, whatever its earlier incarnation said.
func TestRestartedDoesNotConfirm(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.run(time.Second)
	a := f.all["a"]
	n := a.AskConfirmation(f.now)
	wantConfirmation(t, a, n, []string{"b"}, nil)
	a.SetTeaches(netip.AddrPort{}) // the pull takes its time
	f.start("b", nil)
	f.run(500 * time.Millisecond)
	wantConfirmation(t, a, n, nil, []string{"b"})
	a.SetTeaches(teaches("a"))
	f.run(2 * time.Second)
	a.AskConfirmation(f.now)
	wantConfirmation(t, a, n, []string{"b"}, nil)
}

// Directors that ran apart confirm nothing when they meet until they have compared: what was published before is not in their windows.
func TestStrangersDoNotConfirm(t *testing.T) {
	f := newFarm(t, "a", "b")
	apart, unreachable := true, true
	f.drop = func(_, _ string, b []byte) bool { return apart || b == nil && unreachable } // nil: a session
	f.run(2 * time.Second)
	f.kernel("a", conn(1))
	f.run(3 * time.Second)
	a, b := f.all["a"], f.all["b"]
	apart = false
	f.run(500 * time.Millisecond)
	n := a.AskConfirmation(f.now)
	f.run(500 * time.Millisecond)
	if b.table.Len() > 0 {
		t.Fatal("b has what a knows already: nothing is tested")
	}
	wantConfirmation(t, a, n, nil, []string{"b"})
	unreachable = false
	f.run(20 * time.Second)
	a.AskConfirmation(f.now)
	if b.table.Len() != 1 {
		t.Errorf("b has %d entries", b.table.Len())
	}
	wantConfirmation(t, a, n, []string{"b"}, nil)
}

// While everything is injected again, as the kernel has lost some of it, nothing is confirmed.
func TestReinjectedIsNotConfirmed(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	for i := range 2*rebindPerTick + 1 {
		r := conn(i)
		b := f.all["b"]
		b.table.Put(f.now, &r, peer.IDOf("a"), table.Stamp{Clock: 1}, 0)
	}
	a, b := f.all["a"], f.all["b"]
	f.kernel("a", conn(1))
	b.Reinject()
	n := a.AskConfirmation(f.now)
	for b.Reinjecting() {
		wantConfirmation(t, a, n, nil, []string{"b"})
		f.run(TickInterval)
	}
	if len(b.injected) <= 2*rebindPerTick {
		t.Errorf("%d injected", len(b.injected))
	}
	f.run(200 * time.Millisecond)
	wantConfirmation(t, a, n, []string{"b"}, nil)
}

// A live peer that does not hear this director is named as one that has not confirmed.
func TestDeafIsMissing(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	a, b := f.all["a"], f.all["b"]
	f.drop = func(from, to string, _ []byte) bool { return from == "a" && to == "b" }
	for _, wait := range []time.Duration{0, 5 * time.Second} { // before b holds a for lost and after
		f.run(wait)
		f.kernel("a", conn(int(wait)))
		n := a.AskConfirmation(f.now)
		f.run(time.Second)
		if p := a.peers.Get(peer.IDOf("b")); p.Lost || b.table.Len() > 0 {
			t.Fatalf("b is lost: %v; it has %d", p.Lost, b.table.Len())
		}
		wantConfirmation(t, a, n, nil, []string{"b"})
	}
}

// With more peers than a heartbeat has room for echoes, everybody is answered for.
func TestConfirmationOfMany(t *testing.T) {
	f := newFarm(t)
	var others []string
	f.start("d00", nil)
	for i := range 31 {
		others = append(others, fmt.Sprintf("d%02d", i+1))
		f.start(others[i], nil)
	}
	f.run(4 * time.Second)
	a := f.all["d00"]
	f.drop = loses("d00", "d01")
	f.kernel("d00", conn(1))
	f.drop = func(from, to string, _ []byte) bool { return from == "d00" && to == "d01" } // it is deaf
	n := a.AskConfirmation(f.now)
	for range 5 {
		f.run(200 * time.Millisecond)
		wantConfirmation(t, a, n, others[1:], others[:1])
	}
	f.drop = nil
	a.AskConfirmation(f.now)
	f.run(200 * time.Millisecond)
	wantConfirmation(t, a, n, others, nil)
}
