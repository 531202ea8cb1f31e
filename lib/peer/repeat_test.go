package peer

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// delivery is one datagram of a stream as it comes in.
type delivery struct {
	seq    uint64
	link   int
	repeat bool
}

// TestRepeats has every order in which the copies of a datagram, first ones and repetitions, can come by two links.
func TestRepeats(t *testing.T) {
	first := func(link int) delivery { return delivery{1, link, false} }
	again := func(link int) delivery { return delivery{1, link, true} }
	for _, tt := range []struct {
		name string
		in   []delivery
		want []Verdict
	}{
		{"lost, repeated", []delivery{again(0)}, []Verdict{Accept}},
		{"by both links", []delivery{again(0), again(1)}, []Verdict{Accept, Known}},
		{"asked for twice", []delivery{again(0), again(0)}, []Verdict{Accept, Known}},
		{"others asked", []delivery{first(0), again(0), again(1)}, []Verdict{Accept, Known, Known}},
		{"others asked, before the other link brought it", []delivery{first(0), again(0), first(1)}, []Verdict{Accept, Known, Repeated}},
		{"overtaken by its repetition on the same link", []delivery{again(0), first(0)}, []Verdict{Accept, Repeated}},
		{"overtaken by its repetition on the other link", []delivery{again(1), first(0), first(1)}, []Verdict{Accept, Repeated, Repeated}},
		{"overtaken, then replayed", []delivery{again(0), first(0), first(0)}, []Verdict{Accept, Repeated, Replayed}},
		{"replayed after others asked", []delivery{first(0), again(0), first(0)}, []Verdict{Accept, Known, Replayed}},
		{"a replayed repetition", []delivery{first(0), again(1), again(1), again(1)}, []Verdict{Accept, Known, Known, Known}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newNode("a", 1, 2), newNode("b", 2, 2)
			meet(t, a, b)
			var got []Verdict
			for _, d := range tt.in {
				_, v := b.set.Stream(t0, a.id, a.inc, d.seq, d.link, d.repeat)
				got = append(got, v)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What is before the floor, behind the window or settled is a replay as a first copy, and of no interest as a repetition.
func TestRepeatsOfOldNumbers(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	for range 3 {
		h := a.heartbeat(t0, b)
		h.Stream = 100
		b.set.Heartbeat(t0, h)
		a.set.Heartbeat(t0, b.heartbeat(t0, a))
	}
	p := b.set.Get(a.id)
	verdict := func(seq uint64, repeat bool) Verdict {
		_, v := b.set.Stream(t0, a.id, a.inc, seq, 0, repeat)
		return v
	}
	if verdict(100, true) != Known || verdict(100, false) != Replayed || p.Missing() != 0 {
		t.Error("the floor counts")
	}
	verdict(110, false)
	p.GiveUp(106)
	if verdict(101, true) != Accept || verdict(102, false) != Accept || p.GivenUp() != 3 {
		t.Errorf("what was given up and comes all the same is not taken: %d given up", p.GivenUp())
	}
	p.Settle(3)
	if verdict(103, true) != Known || verdict(104, false) != Replayed || p.Missing() != 4 {
		t.Errorf("what was settled is taken: %d missing", p.Missing())
	}
	verdict(200000, false)
	if verdict(200000-streamWindow, true) != Known || verdict(200000-streamWindow, false) != Replayed || verdict(200000-streamWindow+1, true) != Accept {
		t.Error("the window ends elsewhere")
	}
	if verdict(0, true) != Known || verdict(0, false) != Replayed {
		t.Error("number 0 counts")
	}
}

// However datagrams are lost, doubled, repeated and reordered on three links, each number is accepted once at most, and none is called a
// replay unless the very same first copy came twice by a link or the number cannot be told any more. What an attacker recorded and sends
// again, by whatever link, is never accepted.
func TestStreamVerdicts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const links = 3
		set := NewSet(IDOf("b"), 2, links)
		p := &Peer{ID: 1, Links: make([]LinkState, links)}
		floor := rapid.SampledFrom([]uint64{0, 5, 1000}).Draw(t, "floor")
		p.admit(Heartbeat{Incarnation: 1, Control: 1, Stream: floor})
		set.peers[1], set.order = p, []ID{1}
		m := &model{size: streamWindow, floor: floor, newest: floor, announced: floor}
		var came [links]map[uint64]bool
		for i := range came {
			came[i] = map[uint64]bool{}
		}
		accepted := map[uint64]bool{}
		var tape []delivery
		for range rapid.IntRange(1, 200).Draw(t, "deliveries") {
			if rapid.IntRange(0, 20).Draw(t, "settle") == 0 {
				before := m.newest - rapid.Uint64Range(0, 3).Draw(t, "before")%(m.newest+1)
				p.GiveUp(before)
				m.giveUp(before)
				m.settle(p.GivenUp())
				p.Settle(p.GivenUp())
			}
			d := delivery{
				seq:    rapid.Uint64Range(floor-min(floor, 2), floor+30).Draw(t, "seq"),
				link:   rapid.IntRange(0, links-1).Draw(t, "link"),
				repeat: rapid.Bool().Draw(t, "repeat"),
			}
			want := Accept
			if !d.repeat && (d.seq <= floor || came[d.link][d.seq]) {
				want = Replayed
			} else {
				switch a := m.add(d.seq); {
				case a != New && d.repeat:
					want = Known
				case a == Old:
					want = Replayed
				case a == Duplicate:
					want = Repeated
				}
			}
			if !d.repeat {
				came[d.link][d.seq] = true
			}
			_, got := set.Stream(t0, 1, 1, d.seq, d.link, d.repeat)
			if got != want {
				t.Fatalf("%+v: %v, want %v", d, got, want)
			}
			if got == Accept && accepted[d.seq] {
				t.Fatalf("%+v: accepted twice", d)
			}
			accepted[d.seq] = accepted[d.seq] || got == Accept
			tape = append(tape, d)
		}
		missing := p.Missing()
		for _, d := range slices.Concat(tape, tape) {
			for link := range links {
				if _, v := set.Stream(t0, 1, 1, d.seq, link, d.repeat); v == Accept || d.repeat && v != Known {
					t.Fatalf("%+v, recorded and sent again by link %d: %v", d, link, v)
				}
			}
		}
		if p.Missing() != missing {
			t.Fatalf("%d missing before the attack, %d after", missing, p.Missing())
		}
	})
}

// A link that brings nothing but old news is not heard.
func TestLinkHeard(t *testing.T) {
	a, b := newNode("a", 1, 2), newNode("b", 2, 2)
	meet(t, a, b)
	link := &b.set.Get(a.id).Links[1]
	late := t0.Add(time.Second)
	b.set.Stream(late, a.id, a.inc, 1, 0, false)
	b.set.Stream(late, a.id, a.inc, 1, 1, true)
	if !link.LastHeard.IsZero() {
		t.Error("by a known repetition")
	}
	b.set.Stream(late, a.id, a.inc, 2, 1, true)
	if !link.LastHeard.Equal(late) {
		t.Error("not by a repetition that was missed")
	}
	later := late.Add(time.Second)
	b.set.Stream(later, a.id, a.inc, 1, 1, false)
	if !link.LastHeard.Equal(later) {
		t.Error("not by a copy of what came by another link")
	}
}

// Requests share the numbers of heartbeats.
func TestControl(t *testing.T) {
	a, b := newNode("a", 1, 2), newNode("b", 2, 2)
	if p, v := b.set.Control(t0, a.id, a.inc, 1, 0); v != WrongIncarnation || p != nil {
		t.Errorf("of a stranger: %v", v)
	}
	meet(t, a, b)
	h := a.heartbeat(t0, b)
	h.Stream, h.Entries = 7, 77
	n := a.set.NextControl()
	if p, v := b.set.Control(t0, a.id, a.inc, n, 0); v != Accept || p != b.set.Get(a.id) {
		t.Errorf("of a peer: %v", v)
	}
	// The request overtook the heartbeat, which says news all the same.
	if p, v, _ := b.set.Heartbeat(t0, h); v != Accept || p.Announced != 7 || p.Entries != 77 {
		t.Errorf("an overtaken heartbeat: %v, %+v", v, p)
	}
	for _, step := range []struct {
		link int
		want Verdict
	}{{1, Repeated}, {1, Replayed}, {0, Replayed}} {
		if _, v := b.set.Control(t0, a.id, a.inc, n, step.link); v != step.want {
			t.Errorf("again by link %d: %v, want %v", step.link, v, step.want)
		}
	}
	h.Control = n
	if _, v, _ := b.set.Heartbeat(t0, h); v != Replayed {
		t.Errorf("a heartbeat with the number of a request: %v", v)
	}
	if _, v := b.set.Control(t0, b.id, b.inc, 1, 0); v != Own {
		t.Errorf("own: %v", v)
	}
	if _, v := b.set.Control(t0, a.id, 9, n+1, 0); v != WrongIncarnation {
		t.Errorf("of another incarnation: %v", v)
	}
	b.set.Expire(t0.Add(time.Minute), time.Second, func(*Peer) {})
	if _, v := b.set.Control(t0, a.id, a.inc, n+1, 0); v != WrongIncarnation {
		t.Errorf("of a lost peer: %v", v)
	}
}

// What a peer says of itself is taken from the newest heartbeat, in whatever order they come.
func TestNewestHeartbeatCounts(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	older, newer := a.heartbeat(t0, b), a.heartbeat(t0, b)
	older.Stream, older.Oldest, older.Teaches, older.Entries, older.Clock, older.Synced = 20, 10, netip.MustParseAddrPort("192.0.2.1:1"), 1, 1, true
	newer.Stream, newer.Oldest, newer.Teaches, newer.Entries, newer.Clock, newer.Confirm = 30, 5, netip.MustParseAddrPort("192.0.2.2:2"), 2, 2, true
	newer.Echo.Confirmed = 8
	b.set.Heartbeat(t0, newer)
	if _, v, _ := b.set.Heartbeat(t0, older); v != Accept {
		t.Errorf("overtaken heartbeat: %v", v)
	}
	p := b.set.Get(a.id)
	if p.Announced != 30 || p.Oldest != 5 || p.Teaches != newer.Teaches || p.Entries != 2 || p.Clock != 2 || p.Synced || !p.Confirm || p.Echoed.Confirmed != 8 {
		t.Errorf("%+v", p)
	}
	if p.GivenUp() != 4 || p.Missing() != 30 {
		t.Errorf("%d given up, %d missing", p.GivenUp(), p.Missing())
	}
}

func TestConfirmedIsEchoed(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	b.set.Get(a.id).Confirmed = 12
	a.set.Heartbeat(t0, b.heartbeat(t0, a))
	if got := a.set.Get(b.id).Echoed.Confirmed; got != 12 {
		t.Errorf("confirmed up to %d", got)
	}
	again := newNode("a", 3, 1)
	meet(t, again, b)
	if got := b.set.Get(a.id).Confirmed; got != 0 {
		t.Errorf("confirmed up to %d of an incarnation that has not been confirmed anything", got)
	}
}

// Who is left out of a full heartbeat is still heard, for a while; who is left out of one that has room is not.
func TestPagedEcho(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	p := a.set.Get(b.id)
	beat := func(now time.Time, paged, echo bool) Echo {
		h := b.heartbeat(now, a)
		h.Paged = paged
		if !echo {
			h.Echo = Echo{}
		}
		a.set.Heartbeat(now, h)
		return p.Echoed
	}
	for _, step := range []struct {
		after       time.Duration
		paged, echo bool
		want        bool
	}{
		{time.Second, true, true, true}, {2 * time.Second, true, false, true}, {time.Second + echoAge, true, false, true},
		{time.Second + echoAge + 1, true, false, false}, {5 * time.Second, true, true, true}, {5 * time.Second, false, false, false},
	} {
		if got := beat(t0.Add(step.after), step.paged, step.echo); got.Counts != step.want {
			t.Errorf("after %v, paged %v, with echo %v: %+v", step.after, step.paged, step.echo, got)
		}
	}
	// What an earlier incarnation has echoed is not the new one's.
	beat(t0, true, true)
	p.Echoed.Confirmed = 77
	again := newNode("b", 3, 1)
	meet(t, again, a)
	if p.Incarnation != 3 || p.Echoed.Confirmed != 0 {
		t.Errorf("new incarnation: %v, %+v", p.Incarnation, p.Echoed)
	}
}

// Who waits for a confirmation is echoed in every heartbeat, however many there are; the others go round all the same.
func TestUrgentEchoes(t *testing.T) {
	const limit = 8
	for _, waiting := range []int{1, 4, 30} {
		self := newNode("self", 1, 1)
		for i := range 30 {
			n := newNode(string(rune('A'+i)), Incarnation(i+2), 1)
			meet(t, self, n)
			self.set.Get(n.id).Confirm = i >= 30-waiting
		}
		times := map[ID]int{}
		for range 30 {
			es := self.set.Echoes(nil, t0, limit)
			if len(es) != limit {
				t.Fatalf("%d echoes", len(es))
			}
			for _, e := range es {
				times[e.Node]++
			}
		}
		always := 0
		for _, n := range times {
			if n == 30 {
				always++
			}
		}
		if len(times) != 30 || always != min(waiting, limit/2) {
			t.Errorf("%d wait: %d of 30 were echoed, %d in every heartbeat", waiting, len(times), always)
		}
	}
}

func TestSilence(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	p := b.set.Get(a.id)
	if p.Silence != (Silence{}) {
		t.Errorf("at first: %v", p.Silence)
	}
	heard := t0
	for _, back := range []time.Duration{10 * time.Second, time.Minute} {
		now := t0.Add(back)
		b.set.Expire(now.Add(-time.Second), 2*time.Second, func(*Peer) {})
		if want := (Silence{From: heard}); p.Silence != want {
			t.Errorf("while it lasts: %v, want %v", p.Silence, want)
		}
		for range 2 {
			b.set.Heartbeat(now, a.heartbeat(now, b))
			a.set.Heartbeat(now, b.heartbeat(now, a))
		}
		if want := (Silence{From: heard, To: now}); p.Silence != want || p.Lost {
			t.Errorf("after it: %v, want %v; lost %v", p.Silence, want, p.Lost)
		}
		heard = now
	}
	again := newNode("a", 3, 1)
	meet(t, again, b)
	if p.Incarnation != 3 || p.Silence != (Silence{}) {
		t.Errorf("of a new incarnation: %v", p.Silence)
	}
}

// A new incarnation begins with nothing missing and nothing given up, whatever became of the earlier one.
func TestAdmissionForgetsGaps(t *testing.T) {
	a, b := newNode("a", 1, 1), newNode("b", 2, 1)
	meet(t, a, b)
	for range 50 {
		a.heartbeat(t0, b)
	}
	h := a.heartbeat(t0, b)
	h.Stream, h.Oldest = 1000, 500
	b.set.Heartbeat(t0, h)
	p := b.set.Get(a.id)
	if p.Missing() != 1000 || p.GivenUp() != 499 {
		t.Fatalf("%d missing, %d given up", p.Missing(), p.GivenUp())
	}
	again := newNode("a", 3, 1)
	meet(t, again, b)
	if diff := cmp.Diff(summary{}, p.summary()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Its control numbers begin anew, too.
	h = again.heartbeat(t0, b)
	h.Entries = 5
	if b.set.Heartbeat(t0, h); p.Entries != 5 {
		t.Errorf("heartbeat %d says %d entries, not %d", h.Control, h.Entries, p.Entries)
	}
}

// FuzzHeartbeat: whatever heartbeats a signed peer sends, its account adds up.
func FuzzHeartbeat(f *testing.F) {
	f.Add(uint64(1), uint64(10), uint64(5), uint64(9), uint64(3), uint64(2))
	f.Add(uint64(2), ^uint64(0), ^uint64(0), uint64(1), ^uint64(0), uint64(1)<<63)
	f.Fuzz(func(t *testing.T, control, stream, oldest, seq, seq2, settle uint64) {
		b := newNode("b", 2, 1)
		for i := range uint64(3) {
			h := Heartbeat{Node: 1, Incarnation: 1, Control: control + i, Stream: stream, Oldest: oldest, Echo: Echo{Incarnation: b.inc, Control: b.set.NextControl()}}
			if i == 2 {
				h.Stream, h.Oldest = oldest, stream
			}
			b.set.Heartbeat(t0, h)
			b.set.Stream(t0, 1, 1, seq, 0, i == 1)
			b.set.Stream(t0, 1, 1, seq2, 0, false)
			p := b.set.Get(1)
			if p == nil {
				continue
			}
			open, end := p.Missing()-p.GivenUp(), max(p.Announced, p.Stream.Newest())
			if p.Missing() < p.GivenUp() || p.Missing() > end || p.Complete() > end || p.Oldest > p.Announced && p.Oldest-1 > p.Announced {
				t.Fatalf("%+v", p.summary())
			}
			last, sum := p.Complete(), uint64(0)
			for first, count := range p.Gaps {
				if first <= last || count == 0 || first+uint64(count)-1 > end {
					t.Fatalf("gap of %d from %d behind %d: %+v", count, first, last, p.summary())
				}
				last = first + uint64(count) - 1
				sum += uint64(count)
			}
			if sum != open && last < 1<<32-1 {
				t.Fatalf("gaps of %d, %d open", sum, open)
			}
			n := p.GivenUp()
			if p.Settle(settle); p.GivenUp() != n-min(n, settle) {
				t.Fatalf("%d given up, %d settled, %d left", n, settle, p.GivenUp())
			}
		}
	})
}
