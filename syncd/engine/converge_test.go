package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"saru/proto/ipvssync"
)

// kernelEntry is what a director's kernel has of a connection.
type kernelEntry struct {
	real netip.AddrPort
	sync bool // made by an injection, so reported with FlagSync
}

// node is a director of the simulation: an engine and a model of its kernel.
type node struct {
	*director
	kernel map[int]kernelEntry // by connection
	seen   int                 // of director.injected
	skew   time.Duration       // of its clock
}

// flight is a datagram on its way.
type flight struct {
	at       time.Time
	from, to string
	link     int
	b        []byte
}

// segment is a farm whose network delays, reorders and duplicates, and loses when told to.
type segment struct {
	*farm
	nodes  map[string]*node
	air    []flight
	side   map[string]int
	loss   int       // of 100 datagrams
	parted time.Time // zero: no partition
	rnd    *rand.Rand
	real   int // real servers that were ever chosen
}

const (
	simConns      = 6
	maxDelay      = 60 * time.Millisecond     // a second copy takes as long again
	quiet         = JoinTime + 15*time.Second // an audit with each
	auditInterval = time.Second
)

// skews are by how much clocks are wrong.
var skews = []time.Duration{0, 0, time.Second, -time.Second, 3 * time.Hour, -40 * time.Hour, 30 * time.Hour}

func newSegment(t testing.TB, seed uint64, names ...string) *segment {
	s := &segment{farm: newFarm(t), nodes: map[string]*node{}, side: map[string]int{}, rnd: rand.New(rand.NewPCG(seed, 1))}
	for _, n := range names {
		s.boot(n, false)
	}
	return s
}

// boot starts a director, again or for the first time.
func (s *segment) boot(name string, kept bool) {
	skew := skews[s.rnd.IntN(len(skews))]
	n := &node{director: s.start(name, func(c *Config) { c.Now, c.AuditInterval = s.now.Add(skew), auditInterval }), kernel: map[int]kernelEntry{}, skew: skew}
	if old := s.nodes[name]; kept && old != nil {
		n.kernel = old.kernel
	}
	s.nodes[name] = n
}

// crash takes a director down at any moment.
func (s *segment) crash(name string) { s.nodes[name].down = true }

// turn is what a director does every 20 ms. A pull that reaches its teacher may still break off.
func (s *segment) turn(n *node) {
	now := s.now.Add(n.skew)
	n.Tick(now)
	if pull, ok := n.NextPull(now); ok {
		var teacher *Engine
		var there time.Time
		for name, other := range s.nodes {
			if !other.down && other.cfg.Teaches == pull.Addr && s.side[name] == s.side[n.name] {
				teacher, there = other.Engine, s.now.Add(other.skew)
			}
		}
		fail := 0
		if s.rnd.IntN(4) == 0 {
			fail = 1 + s.rnd.IntN(4000)
		}
		session(now, there, n.Engine, teacher, pull, fail)
	}
	n.director.enter(now)
}

// after takes up what the engines have put out.
func (s *segment) after() {
	for _, p := range s.wire {
		for _, to := range s.farm.names() {
			if to == p.from || s.side[to] != s.side[p.from] {
				continue
			}
			if s.rnd.IntN(100) < s.loss {
				continue
			}
			fl := flight{s.now.Add(time.Duration(s.rnd.Int64N(int64(maxDelay)))), p.from, to, s.rnd.IntN(2), p.b}
			s.air = append(s.air, fl)
			if s.rnd.IntN(4) == 0 {
				fl.at, fl.link = fl.at.Add(time.Duration(s.rnd.Int64N(int64(maxDelay)))), s.rnd.IntN(2)
				s.air = append(s.air, fl)
			}
		}
	}
	s.wire = nil
	for _, n := range s.nodes {
		for ; n.seen < len(n.injected); n.seen++ {
			n.enter(&n.injected[n.seen])
		}
	}
}

// enter is ip_vs_proc_conn: an entry of the same real server keeps its flags, one of another real server makes room unless the
// record is of an inactive connection.
func (n *node) enter(r *ipvssync.Record) {
	i := int(r.Client.Addr().As4()[3])
	if e, ok := n.kernel[i]; ok && (e.real == r.Real || r.Flags&ipvssync.FlagInactive != 0) {
		return
	}
	n.kernel[i] = kernelEntry{r.Real, true}
}

// packet is a packet of a client that a director forwards: its kernel reports the connection, and makes it where it is new.
func (s *segment) packet(name string, i int) {
	n := s.nodes[name]
	e, ok := n.kernel[i]
	if !ok {
		s.real++
		e = kernelEntry{real: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(s.real >> 8), byte(s.real)}), 8080)}
		n.kernel[i] = e
	}
	r := conn(i)
	r.Real = e.real
	if e.sync {
		r.Flags |= ipvssync.FlagSync
	}
	n.FromTap(s.now.Add(n.skew), kernelMessage(s.t, r))
	if s.rnd.IntN(2) == 0 {
		n.Flush() // else the next tick does it
	}
	s.after()
}

// pass lets time pass.
func (s *segment) pass(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(5 * time.Millisecond)
		var due []flight
		s.air = slices.DeleteFunc(s.air, func(fl flight) bool {
			if fl.at.After(s.now) {
				return false
			}
			due = append(due, fl)
			return true
		})
		s.rnd.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
		for _, fl := range due {
			if n := s.nodes[fl.to]; !n.down {
				n.FromNetwork(s.now.Add(n.skew), fl.link, stockA, fl.b)
				s.after()
			}
		}
		if s.now.Sub(t0)%(20*time.Millisecond) == 0 {
			for _, name := range s.names() {
				if n := s.nodes[name]; !n.down {
					s.turn(n)
				}
			}
			s.after()
		}
	}
}

func (s *segment) up() []string {
	return slices.DeleteFunc(s.names(), func(n string) bool { return s.nodes[n].down })
}

// heal ends a partition, however short.
func (s *segment) heal() { s.parted, s.side = time.Time{}, map[string]int{} }

// agree checks that all that are up hold the same, and that their kernels do.
func (s *segment) agree(when string) error {
	up := s.up()
	if len(up) == 0 {
		return nil
	}
	first := s.nodes[up[0]].dump()
	for _, name := range up {
		n := s.nodes[name]
		if !n.Synced() {
			return fmt.Errorf("%s: %s is not synced", when, name)
		}
		if diff := cmp.Diff(first, n.dump()); diff != "" {
			return fmt.Errorf("%s: replicas differ (-%s +%s):\n%s", when, up[0], name, diff)
		}
		for i := range simConns {
			r := conn(i)
			en, ok := n.table.Get(s.now.Add(n.skew), &r)
			if k, has := n.kernel[i]; ok && (!has || k.real != en.Record.Real) {
				return fmt.Errorf("%s: connection %d goes to %v in %s's kernel, to %v in the replica", when, i, k.real, name, en.Record.Real)
			}
		}
		for c := range n.counters {
			switch Counter(c) {
			case DropForged, DropTruncated, DropUnknownKey, DropUnsigned, DropSyncID, DropVersion, DropKind, DropOwn, DropPeers, DropStock, Namesakes:
				if n.counters[c] != 0 {
					return fmt.Errorf("%s: %s: %d %v", when, name, n.counters[c], Counter(c))
				}
			}
		}
	}
	return nil
}

// TestConvergence lets directors handle connections, crash, come back and lose each other. When all is quiet, they agree; and who
// handles a connection then has it.
func TestConvergence(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		all := []string{"a", "b", "c", "d"}[:rapid.IntRange(2, 4).Draw(rt, "directors")]
		s := newSegment(t, rapid.Uint64().Draw(rt, "seed"), all...)
		s.pass(2 * time.Second)
		who := func(rt *rapid.T, from []string) string { return rapid.SampledFrom(from).Draw(rt, "director") }
		settle := func(rt *rapid.T, when string) {
			s.heal()
			s.loss = 0 // whose packets come to another director before it could hear of them is nobody's
			s.pass(quiet)
			if err := s.agree(when); err != nil {
				rt.Fatalf("%v\n", err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"packet": func(rt *rapid.T) {
				if up := s.up(); len(up) > 0 {
					s.packet(who(rt, up), rapid.IntRange(0, simConns-1).Draw(rt, "connection"))
				}
			},
			"flow": func(rt *rapid.T) { // packets of one connection that wander between the directors
				up, i := s.up(), rapid.IntRange(0, simConns-1).Draw(rt, "connection")
				if len(up) == 0 {
					return
				}
				for range 10 {
					s.packet(up[s.rnd.IntN(len(up))], i)
					s.pass(time.Duration(s.rnd.IntN(80)) * time.Millisecond)
				}
			},
			"wait": func(rt *rapid.T) {
				s.pass(time.Duration(rapid.IntRange(5, 400).Draw(rt, "ms")) * time.Millisecond)
			},
			"crash": func(rt *rapid.T) {
				if up := s.up(); len(up) > 1 {
					s.crash(who(rt, up))
				}
			},
			"boot": func(rt *rapid.T) {
				var down []string
				for _, n := range s.names() {
					if s.nodes[n].down {
						down = append(down, n)
					}
				}
				if len(down) > 0 {
					s.boot(who(rt, down), rapid.Bool().Draw(rt, "kernel's entries kept"))
				}
			},
			"part": func(rt *rapid.T) {
				if s.parted.IsZero() {
					for _, n := range s.names() {
						s.side[n] = rapid.IntRange(0, 1).Draw(rt, "side of "+n)
					}
					s.parted = s.now
				}
			},
			"heal":   func(*rapid.T) { s.heal() },
			"loss":   func(rt *rapid.T) { s.loss = rapid.SampledFrom([]int{0, 1, 5, 20, 50}).Draw(rt, "percent") },
			"settle": func(rt *rapid.T) { settle(rt, "settled") },
		})
		settle(rt, "at the end")
		last := map[int]string{}
		for range 2 * simConns {
			i := s.rnd.IntN(simConns)
			last[i] = s.up()[s.rnd.IntN(len(s.up()))]
			s.packet(last[i], i)
			s.pass(200 * time.Millisecond)
		}
		settle(rt, "after the last packets")
		for _, name := range s.up() {
			for i, handler := range last {
				if e := s.nodes[name].entry(t, conn(i)); e.Origin != s.nodes[handler].self || e.Record.Real != s.nodes[handler].kernel[i].real {
					rt.Fatalf("%s: connection %d is %s's, goes to %v; want %s, %v", name, i, s.nodes[name].Engine.origin(e.Origin), e.Record.Real,
						handler, s.nodes[handler].kernel[i].real)
				}
			}
		}
	})
}
