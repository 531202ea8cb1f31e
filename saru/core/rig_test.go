package core

import (
	"slices"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// rig is a coordinator named a, and what others say to it.
type rig struct {
	*Core
	t      *testing.T
	at     time.Time
	newest uint64 // number of its newest datagram
	seqs   map[string]uint64
	sent   []coord.Message // since it was last looked
	events []string        // names of all
	slow   bool            // the kernel does nothing by itself
	filter Desired
	flush  *Flush
}

var epoch = time.Unix(1_000_000, 0)

const keepalive = 100 * time.Millisecond

func config() Config {
	return Config{
		Node: "a", Incarnation: 1, Links: 1, Keepalive: keepalive, Warntime: 250 * time.Millisecond, Deadtime: 500 * time.Millisecond,
		Lease: 300 * time.Millisecond, Guard: 20 * time.Millisecond, StartDelay: 30 * time.Second, SurvivorDelay: 5 * time.Second, Weight: 100,
		Incarnations: func() peer.Incarnation { return 2 }, Jitter: func(d time.Duration) time.Duration { return d / 2 },
	}
}

func function() coord.Function { return coord.Function{Buckets: 16, Seed: 1} }

func newRig(t *testing.T, change func(*Config)) *rig {
	cfg := config()
	if change != nil {
		change(&cfg)
	}
	r := &rig{Core: New(cfg, epoch), t: t, at: epoch, seqs: map[string]uint64{}}
	r.SetLocal(epoch, Local{Synced: true, Usable: true, Pings: cfg.PingNodes, Function: function()})
	r.obey()
	return r
}

// who returns the member that a name stands for: all but a have the incarnation 7.
func who(name string) member {
	if name == "a" {
		return member{uint64(peer.IDOf(name)), 1}
	}
	return member{uint64(peer.IDOf(name)), 7}
}

// obey does what the coordinator says, as a kernel and a syncd do that take no time.
func (r *rig) obey() {
	for {
		out := r.Take()
		for _, m := range out.Send {
			r.sent = append(r.sent, m)
			r.newest = m.Head().Sequence
		}
		for _, e := range out.Events {
			r.events = append(r.events, e.Name)
		}
		if out.Filter == nil && out.Flush == nil {
			return
		}
		if out.Filter != nil {
			r.filter = *out.Filter
		}
		if out.Flush != nil {
			r.flush = out.Flush
		}
		if r.slow {
			continue
		}
		r.Applied(r.at, r.filter.Gen)
		if r.flush != nil {
			r.Flushed(r.at, r.flush.Gen)
			r.flush = nil
		}
	}
}

// header returns the next header of a director.
func (r *rig) header(from string) coord.Header {
	r.seqs[from]++
	m := who(from)
	return coord.Header{Sender: m.node, Incarnation: m.incarnation, Sequence: r.seqs[from]}
}

// hear has the coordinator hear something.
func (r *rig) hear(m coord.Message) peer.Verdict {
	v := r.Hear(r.at, 0, m)
	r.obey()
	return v
}

// beat has it hear a heartbeat of a director that hears it and follows its tables, but for what is changed.
func (r *rig) beat(from string, change ...func(*coord.Heartbeat)) peer.Verdict {
	fn := function()
	h := &coord.Heartbeat{
		Header: r.header(from), Name: from, State: coord.StateSynced | coord.StateUsable | coord.StateFits, Weight: 100, Function: fn.Digest(), Timers: r.cfg.timers(),
		Echoes: []coord.Echo{{Node: r.self.node, Incarnation: r.self.incarnation, Sequence: r.newest, Supports: true, Counts: true}},
	}
	if r.counts != nil && r.counts.index(who(from)) >= 0 {
		h.Counts, h.Released = r.counts.ref, r.counts.ref.Digest
		h.State |= coord.StateReleased
	} else {
		h.State |= coord.StateJoins
	}
	for _, f := range change {
		f(h)
	}
	return r.hear(h)
}

// pass lets time pass in steps of 10 ms; those that are named are heard meanwhile.
func (r *rig) pass(d time.Duration, heard ...string) {
	for end := r.at.Add(d); r.at.Before(end); {
		r.at = r.at.Add(10 * time.Millisecond)
		r.Tick(r.at)
		r.obey()
		if r.at.UnixMilli()%100 == 50 {
			for _, name := range heard {
				r.beat(name)
			}
		}
	}
}

// table returns a table of members of which each owns as many buckets as the others, in order of the names that are given.
func tableOf(policy coord.Policy, names ...string) *coord.Table {
	t := &coord.Table{
		Line: coord.Line{Term: 1, Node: 9}, Version: 5, Parent: coord.Digest{1}, Term: 1, Master: who(names[0]).node, Policy: policy, Function: function(),
	}
	for _, name := range names {
		m := who(name)
		t.Members = append(t.Members, coord.Member{Node: m.node, Incarnation: m.incarnation, Weight: 100, Name: name})
	}
	slices.SortFunc(t.Members, byNode)
	for b := range int(t.Function.Buckets) {
		t.Owner = append(t.Owner, uint8(t.MemberIndex(who(names[b%len(names)]).node)))
		t.Next = append(t.Next, coord.NoMember)
	}
	return t
}

// follow returns a successor in which other members have the buckets, in turn.
func follow(t *coord.Table, names ...string) *coord.Table {
	out := tableOf(t.Policy, names...)
	out.Line, out.Version, out.Parent, out.Term, out.Master = t.Line, t.Version+1, t.Digest(), t.Term+1, who(names[0]).node
	return out
}

// farm returns a rig whose director is a member of a table that counts, and holds its buckets.
func farm(t *testing.T, policy coord.Policy, names ...string) *rig {
	r := newRig(t, func(c *Config) {
		if policy == coord.Quorum {
			c.Partition = WithQuorum
		} else {
			c.Partition = WithAvailable
		}
	})
	r.pass(300*time.Millisecond, names[1:]...)
	r.adopt(newTable(tableOf(policy, names...)))
	r.pass(600*time.Millisecond, names[1:]...)
	if got := count(r.filter.Open); got != r.ownedBy(r.counts, r.self) || got == 0 || !r.held {
		t.Fatalf("%d buckets are open, held %v", got, r.held)
	}
	r.sent, r.events = nil, nil
	return r
}

// last returns the newest message of a kind that was sent, or nil.
func last[M any](r *rig) *M {
	for _, m := range slices.Backward(r.sent) {
		if m, ok := any(m).(*M); ok {
			return m
		}
	}
	return nil
}
