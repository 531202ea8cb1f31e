package core

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/proto/coord"
)

// TestNamesake: of two directors with one name, the one that runs for a shorter time ends.
func TestNamesake(t *testing.T) {
	for _, tt := range []struct {
		name     string
		uptime   time.Duration // of the other one
		refuses  bool
		incarnat uint64
	}{
		{"the other one is older", time.Hour, true, 9},
		{"the other one is younger", 0, false, 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.pass(time.Second)
			for range 4 {
				r.beat("a", func(h *coord.Heartbeat) { h.Incarnation, h.UptimeMS = tt.incarnat, uint64(tt.uptime.Milliseconds()) })
				r.pass(100 * time.Millisecond)
			}
			if _, on := r.alarms["namesake"]; !on {
				t.Error("no alarm")
			}
			if err := r.Failure(); (err != nil) != tt.refuses || err != nil && !strings.Contains(err.Error(), "--node") {
				t.Errorf("failure: %v", err)
			}
		})
	}
}

// TestAddressesCloseBeforeTheyAreReleased: that a table is in effect is said only when the kernel has its addresses too, as the next table may open them with another
// share function.
func TestAddressesCloseBeforeTheyAreReleased(t *testing.T) {
	r := farm(t, coord.Quorum, "a", "b", "c")
	fn := function()
	fn.Virtuals = []coord.Virtual{{Address: netip.MustParseAddr("192.0.2.1"), Fields: 3, Mask: 32}}
	r.SetLocal(r.at, Local{Synced: true, Usable: true, Function: fn})
	next := *r.counts.Table
	next.Version, next.Parent, next.Function = next.Version+1, r.counts.ref.Digest, fn
	released := func() bool {
		r.sent = nil
		r.pass(100*time.Millisecond, "b", "c")
		h := last[coord.Heartbeat](r)
		return h != nil && h.Released == next.Digest()
	}
	r.accept(newTable(&next), coord.Ballot{Round: 1, Node: r.self.node})
	if !released() {
		t.Fatal("what it accepted closes nothing here: that is said at once")
	}
	r.slow = true
	r.adopt(newTable(&next))
	if released() {
		t.Error("said before the kernel has it")
	}
	r.slow = false
	r.Applied(r.at, r.filter.Gen)
	if r.obey(); !released() {
		t.Error("not said when the kernel has it")
	}
}

// TestJoinerThatDoesNotFit: who knows the table and has not all of its addresses, or another sense, would hold nothing, and gets nothing.
func TestJoinerThatDoesNotFit(t *testing.T) {
	for _, fits := range []bool{true, false} {
		r := farm(t, coord.Quorum, "a", "b")
		for range 3 { // until it has proved that it lives
			r.beat("c", func(h *coord.Heartbeat) {
				if h.Counts = r.counts.ref; !fits {
					h.State &^= coord.StateFits
				}
			})
			r.pass(keepalive, "b")
		}
		n := &need{joining: []*view{r.views[who("c").node]}}
		if n.joining[0] == nil {
			t.Fatal("the joiner is not heard")
		}
		r.weigh(n, func(bool, string, ...any) {})
		if got := n.weights[who("c")]; (got > 0) != fits {
			t.Errorf("fits %v: weight %d", fits, got)
		}
	}
}
