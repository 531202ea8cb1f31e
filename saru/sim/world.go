package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"saru/proto/coord"
	"saru/saru/core"
)

// Buckets is how many buckets the farms of the simulation have: few, as each event looks at all of them.
const Buckets = 16

// Options describe a world.
type Options struct {
	Directors int
	Partition core.Partition
	PingNodes int
	Expect    int
	Delay     time.Duration // longest delay of a datagram
	Loss      float64       // of datagrams
	Twice     float64       // of datagrams that come twice
	Rate      float64       // clocks run at 1 ± Rate
	Commit    time.Duration // longest time of a kernel transaction, usually
	Stuck     float64       // share of transactions that take up to 10 times that
	Late      float64       // share of renewals before which the process is stopped after it has read the clock
	Broken    Rule          // a rule that is broken on purpose; the simulation must find it
}

// Rule names a rule of docs/SAFETY.md that can be broken.
type Rule string

// Rules that can be broken.
const (
	None           Rule = ""
	LeaseFromNow   Rule = "a lease is counted from when an echo comes instead of from when the heartbeat was sent"
	NoFence        Rule = "a renewal that is late prolongs the lease all the same"
	SupportsDead   Rule = "a member goes on to support whom it counts dead"
	ReleasesAtOnce Rule = "a director says that it has released before its kernel has closed"
	OpensAtOnce    Rule = "a bucket is opened without the wait of rule 3"
)

// event is something that happens at a time of the world.
type event struct {
	at  time.Duration
	n   uint64
	run func()
}

type queue []*event

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at || q[i].at == q[j].at && q[i].n < q[j].n }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*event)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// World is a farm with its network.
type World struct {
	opt       Options
	rng       *rand.Rand
	now       time.Duration
	queue     queue
	events    uint64
	Directors []*Director
	cut       map[[2]int]bool // directed
	delivered map[[2]int]time.Duration
	split     map[[2]int]time.Duration // by pair: when they were last cut off from each other

	Calm       bool // nothing is lost, stopped or delayed by chance any more
	Violations []string
	Trace      []string // when Tracing
	Tracing    bool
	Excused    int           // overlaps that are stated exceptions
	Datagrams  int           // that were to come to somebody
	Sent       int           // to all: each of them once
	Bytes      int           // of those
	Healing    time.Duration // how long it took until everything was owned again
}

// New makes a world whose directors are all started at about the same time.
func New(seed uint64, opt Options) *World {
	w := &World{opt: opt, rng: rand.New(rand.NewPCG(seed, 0x5a1)), cut: map[[2]int]bool{}, delivered: map[[2]int]time.Duration{}, split: map[[2]int]time.Duration{}}
	for i := range opt.Directors {
		d := &Director{
			w: w, index: i, name: fmt.Sprintf("d%d", i+1), met: map[int]*contact{}, rate: 1 + opt.Rate*(2*w.rng.Float64()-1), events: map[string]int{},
			local: core.Local{Synced: true, Usable: true, Pings: opt.PingNodes, Function: Function()},
		}
		w.Directors = append(w.Directors, d)
		w.After(time.Duration(w.rng.Int64N(int64(500*time.Millisecond))), d.Start)
	}
	return w
}

// Config is what the directors of the simulation are configured to: the defaults of the contract.
func (w *World) config(d *Director) core.Config {
	cfg := core.Config{
		Node: d.name, Links: 1,
		Keepalive: 100 * time.Millisecond, Warntime: 250 * time.Millisecond, Deadtime: 500 * time.Millisecond, Lease: 300 * time.Millisecond,
		Guard: 20 * time.Millisecond, StartDelay: 2 * time.Second,
		Partition: w.opt.Partition, SurvivorDelay: 5 * time.Second, Expect: w.opt.Expect, Weight: 100, PingNodes: w.opt.PingNodes,
		Jitter: func(x time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(x))) },
	}
	if d.Deadtime != 0 {
		cfg.Deadtime = d.Deadtime
	}
	if w.opt.Broken == OpensAtOnce {
		cfg.Guard = -(cfg.Lease + 50*time.Millisecond) // of which the wait is the sum
	}
	return cfg
}

// Function is the share function of the simulated farms.
func Function() coord.Function { return coord.Function{Buckets: Buckets, Seed: 1} }

// Now is the time of the world.
func (w *World) Now() time.Duration { return w.now }

// After lets something happen later.
func (w *World) After(d time.Duration, run func()) {
	w.events++
	heap.Push(&w.queue, &event{at: w.now + max(d, 0), n: w.events, run: run})
}

// Run lets the world go on until a time.
func (w *World) Run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && len(w.Violations) == 0 {
		e := heap.Pop(&w.queue).(*event)
		w.now = e.at
		if w.events > 3_000_000 {
			w.Violations = append(w.Violations, fmt.Sprintf("%d events by %v: a storm", w.events, w.now))
			return
		}
		e.run()
	}
	w.now = max(w.now, until)
}

// Cut breaks, or mends, a direction of a link.
func (w *World) Cut(from, to int, on bool) {
	w.trace("link d%d -> d%d cut: %v", from+1, to+1, on)
	w.cut[[2]int{from, to}] = on
}

// Heal mends all links.
func (w *World) Heal() {
	w.trace("all links mended")
	clear(w.cut)
}

func (w *World) trace(format string, args ...any) {
	if w.Tracing {
		w.Trace = append(w.Trace, fmt.Sprintf("%8.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// send carries a datagram to all others.
func (w *World) send(from *Director, m coord.Message) {
	h, beats := m.(*coord.Heartbeat)
	if beats {
		w.breakRule(h)
	}
	b := w.encode(m)
	_, incarnation := from.core.Self()
	for _, to := range w.Directors {
		if to == from {
			continue
		}
		sent, echoed := w.now, time.Duration(0)
		if c := from.knows(to); c != nil && beats {
			echoed = c.heard
		}
		copies := 1
		if w.rng.Float64() < w.opt.Twice {
			copies = 2
		}
		for range copies {
			w.Datagrams++
			if w.cut[[2]int{from.index, to.index}] || w.rng.Float64() < w.opt.Loss && !w.Calm {
				continue
			}
			delay := time.Duration(w.rng.ExpFloat64() * float64(w.opt.Delay) / 6)
			w.After(min(delay, w.opt.Delay)+50*time.Microsecond, func() {
				if w.cut[[2]int{from.index, to.index}] {
					return
				}
				to.arrive(b, from.index, incarnation, sent, echoed)
			})
		}
	}
}

// encode makes the datagram that goes over the wire, and counts it. What the wire refuses a real daemon could not send.
func (w *World) encode(m coord.Message) []byte {
	b, err := m.AppendBinary(nil)
	if err != nil {
		w.Violations = append(w.Violations, err.Error())
	}
	w.Sent++
	w.Bytes += len(b)
	return b
}

// breakRule makes a heartbeat say what the broken rule would let it say.
func (w *World) breakRule(h *coord.Heartbeat) {
	switch w.opt.Broken {
	case SupportsDead:
		for i := range h.Echoes {
			h.Echoes[i].Supports = h.Echoes[i].Counts
		}
	case ReleasesAtOnce:
		h.State |= coord.StateReleased
		if h.Released = h.Counts.Digest; h.Pending != (coord.Ref{}) {
			h.Released = h.Pending.Digest
		}
	}
}

// dark reports whether nothing has come from one director to the other, either way, for two keepalives and what is under way: they are cut
// off from each other completely (DESIGN section 1).
func (w *World) dark(a, b int) bool {
	const quiet = 230 * time.Millisecond
	return w.now-w.delivered[[2]int{a, b}] > quiet && w.now-w.delivered[[2]int{b, a}] > quiet
}

// Owners counts, for each number of directors that would accept a bucket now, the buckets.
func (w *World) Owners() (none, one, more int) {
	for b := range Buckets {
		n := 0
		for _, d := range w.Directors {
			if d.kernel.accepts(b, w.now) {
				n++
			}
		}
		switch n {
		case 0:
			none++
		case 1:
			one++
		default:
			more++
		}
	}
	return none, one, more
}
