package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/proto/ipvssync"
)

// With whatever saru tells, and whenever, a kernel has in the end what it is to have, in its newest state.
func TestBring(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const conns = 12
		f := newFarm(t, "a")
		b := f.start("b", func(c *Config) { c.KernelNext = true })
		f.run(2 * time.Second)
		kernel, seen := map[int]uint32{}, 0 // fwmark is the version of a connection
		enter := func() {
			for ; seen < len(b.injected); seen++ {
				r := &b.injected[seen]
				kernel[int(r.Client.Addr().As4()[3])] = r.Fwmark
			}
		}
		version, mark := uint32(0), uint32(0)
		subset := func(rt *rapid.T, label string) []int {
			return rapid.SliceOfDistinct(rapid.IntRange(0, conns-1), rapid.ID[int]).Draw(rt, label)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"update": func(rt *rapid.T) {
				mark++
				r := conn(rapid.IntRange(0, conns-1).Draw(rt, "connection"))
				r.Fwmark = mark
				f.kernel("a", r)
			},
			"tell": func(rt *rapid.T) {
				version++
				owned := subset(rt, "owned")
				next := slices.DeleteFunc(subset(rt, "next"), func(n int) bool { return slices.Contains(owned, n) })
				b.tell(t, shareOf(1, version, owned, next, nil))
			},
			"tell again": func(*rapid.T) {
				if s := b.Share(); s != nil {
					b.tell(t, s)
				}
			},
			"another function": func(rt *rapid.T) {
				version++
				s := shareOf(1, version, subset(rt, "owned"), nil, nil)
				fn := s.Functions[vip]
				fn.Mask4 = uint8(rapid.IntRange(29, 32).Draw(rt, "mask"))
				s.Functions[vip] = fn
				b.tell(t, s)
			},
			"forget": func(*rapid.T) { b.tell(t, nil) },
			"bring":  func(rt *rapid.T) { b.BringOwned(f.now, rapid.IntRange(1, conns).Draw(rt, "limit")) },
			"step":   func(rt *rapid.T) { b.bringStep(f.now, rapid.IntRange(1, conns).Draw(rt, "limit")) },
			"owned": func(rt *rapid.T) { // what is owned comes first
				for b.BringOwned(f.now, conns) {
				}
				enter()
				for i := range conns {
					r := conn(i)
					if en, known := b.table.Get(f.now, &r); known && b.Share().owns(&r) && kernel[i] != en.Record.Fwmark {
						rt.Fatalf("connection %d, which b owns: the kernel has version %d, the replica %d", i, kernel[i], en.Record.Fwmark)
					}
				}
			},
			"": func(rt *rapid.T) {
				enter()
				if b.Bringing() {
					return
				}
				for i := range conns {
					r := conn(i)
					if en, known := b.table.Get(f.now, &r); known && b.kept(&r) && kernel[i] != en.Record.Fwmark {
						rt.Fatalf("connection %d: the kernel has version %d, the replica %d", i, kernel[i], en.Record.Fwmark)
					}
				}
			},
		})
		f.run(100 * time.Millisecond)
		if b.Bringing() || b.share.ready != b.share.ticket {
			rt.Fatal("it does not come to an end")
		}
	})
}

// shares is saru in the simulation: for each connection, which is a bucket of its own, who holds it and who is next.
type shares struct {
	*segment
	version     uint32
	owner, next []string
	told        map[string]bool // who has been told since it was started
}

// tell tells everybody who is up and was not left out.
func (s *shares) tell(except ...string) {
	for _, name := range s.up() {
		if slices.Contains(except, name) {
			continue
		}
		var owned, next []int
		for i := range simConns {
			if s.owner[i] == name {
				owned = append(owned, i)
			}
			if s.next[i] == name {
				next = append(next, i)
			}
		}
		n := s.nodes[name]
		if _, err := n.SetShare(s.now.Add(n.skew), shareOf(1, s.version, owned, next, owned)); err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		s.told[name] = true
	}
	s.after()
}

// bring waits until a director's kernel has what it owns.
func (s *shares) bring(name string) {
	n := s.nodes[name]
	for n.BringOwned(s.now.Add(n.skew), 100) {
	}
	s.after()
}

// move gives a bucket to a director. The one that had it has closed and flushed it, or is dead.
func (s *shares) move(i int, to string) {
	s.pass(200 * time.Millisecond) // flush: nothing is on its way any more
	s.version++
	s.owner[i] = to
	if s.next[i] == to {
		s.next[i] = ""
	}
	s.tell()
	s.bring(to)
}

// real is where the kernel of its holder sends a connection.
func (s *shares) real(i int) string {
	n := s.nodes[s.owner[i]]
	return n.kernel[i].real.String()
}

// TestConvergenceWithSaru moves buckets between directors, which crash and are started again; kernels have only what they are to have. Packets
// come to whoever holds their bucket. No connection is cut that was mirrored, what other kernels report of it changes nothing, and in the
// end all agree.
func TestConvergenceWithSaru(t *testing.T) {
	cuts := 0
	rapid.Check(t, func(rt *rapid.T) {
		all := []string{"a", "b", "c", "d"}[:rapid.IntRange(2, 4).Draw(rt, "directors")]
		next := rapid.Bool().Draw(rt, "--kernel_entries next")
		s := &shares{segment: newSegment(t, rapid.Uint64().Draw(rt, "seed"), all...), version: 1, told: map[string]bool{}}
		s.owner, s.next = make([]string, simConns), make([]string, simConns)
		for _, name := range all {
			s.nodes[name].cfg.KernelNext, s.nodes[name].share.next = next, next
		}
		for i := range simConns {
			s.owner[i], s.next[i] = all[i%len(all)], all[(i+1)%len(all)]
		}
		s.pass(2 * time.Second)
		s.tell()
		goes := map[int]string{} // to which real server, of connections that are mirrored
		packet := func(rt *rapid.T, i int) {
			n := s.nodes[s.owner[i]]
			if n.down || !n.Synced() {
				return
			}
			if k, has := n.kernel[i]; goes[i] != "" && (!has || k.real.String() != goes[i]) {
				rt.Fatalf("connection %d is cut: it went to %v, and goes to %v (%v) at %s", i, goes[i], k.real, has, s.owner[i])
			}
			s.packet(s.owner[i], i)
			s.pass(200 * time.Millisecond)
			goes[i] = s.real(i)
			cuts++
		}
		pick := func(rt *rapid.T) int { return rapid.IntRange(0, simConns-1).Draw(rt, "connection") }
		rt.Repeat(map[string]func(*rapid.T){
			"packet": func(rt *rapid.T) { packet(rt, pick(rt)) },
			"move": func(rt *rapid.T) {
				if up := s.up(); len(up) > 0 {
					s.move(pick(rt), rapid.SampledFrom(up).Draw(rt, "director"))
				}
			},
			"next": func(rt *rapid.T) {
				i, n := pick(rt), rapid.SampledFrom(all).Draw(rt, "director")
				if n != s.owner[i] {
					s.version++
					s.next[i] = n
					s.tell()
				}
			},
			// A kernel reports what its director does not handle (ip_vs_conn_expire), and has not since another one has told of it.
			"noise": func(rt *rapid.T) {
				i, name := pick(rt), rapid.SampledFrom(all).Draw(rt, "director")
				n := s.nodes[name]
				if k, has := n.kernel[i]; has && !n.down && s.told[name] && n.Synced() && name != s.owner[i] {
					r := conn(i)
					before, known := n.table.Get(s.now.Add(n.skew), &r)
					r.Real = k.real
					if k.sync {
						r.Flags |= ipvssync.FlagSync
					}
					n.FromTap(s.now.Add(n.skew), kernelMessage(t, r))
					s.pass(200 * time.Millisecond)
					if after := n.entry(t, r); known && n.share.last[bucketOf(i)] < before.Stamp.Grant && (after.Origin != before.Origin || after.Record.Real != before.Record.Real) {
						rt.Fatalf("%s, which does not hold connection %d, has taken it over from %s", name, i, n.origin(before.Origin))
					}
				}
			},
			"crash": func(rt *rapid.T) {
				up := s.up()
				if len(up) < 2 {
					return
				}
				victim := rapid.SampledFrom(up).Draw(rt, "director")
				s.crash(victim)
				s.told[victim] = false
				s.pass(DeadTime)
				for i := range simConns {
					if s.next[i] == victim {
						s.next[i] = ""
					}
					if s.owner[i] != victim {
						continue
					}
					to := s.next[i]
					if to == "" || s.nodes[to].down {
						to = s.up()[i%len(s.up())]
					}
					s.move(i, to)
				}
			},
			"boot": func(rt *rapid.T) {
				for _, name := range s.names() {
					if s.nodes[name].down {
						s.boot(name, rapid.Bool().Draw(rt, "kernel's entries kept"))
						s.nodes[name].cfg.KernelNext, s.nodes[name].share.next = next, next
						if rapid.Bool().Draw(rt, "told at once") {
							s.tell()
						}
						for end := s.now.Add(quiet); !s.nodes[name].Synced() && s.now.Before(end); {
							s.pass(500 * time.Millisecond) // its teacher may fail, and until then it is not complete
						}
						s.tell()
						return
					}
				}
			},
			"wait": func(rt *rapid.T) {
				s.pass(time.Duration(rapid.IntRange(5, 400).Draw(rt, "ms")) * time.Millisecond)
			},
		})
		s.pass(8 * auditInterval)
		for i := range simConns {
			packet(rt, i)
		}
		s.pass(8 * auditInterval)
		if err := s.agreeOn(next); err != nil {
			rt.Fatalf("%v", err)
		}
		for i, want := range goes {
			for _, name := range s.up() {
				if e := s.nodes[name].entry(t, conn(i)); e.Record.Real.String() != want || e.Origin != s.nodes[s.owner[i]].self {
					rt.Fatalf("%s: connection %d is %v's, goes to %v; want %s, %s", name, i, s.nodes[name].origin(e.Origin), e.Record.Real, s.owner[i], want)
				}
			}
		}
	})
	if cuts == 0 {
		t.Error("no packet was ever handled")
	}
}

// agreeOn is segment.agree, and where kernels are to have only some entries, of these.
func (s *shares) agreeOn(next bool) error {
	if !next {
		return s.agree("at the end")
	}
	first := s.nodes[s.up()[0]].dump()
	for _, name := range s.up() {
		n := s.nodes[name]
		if diff := n.dump(); !slices.Equal(first, diff) || !n.Synced() {
			return fmt.Errorf("%s is synced: %v, and has\n%v\ninstead of\n%v", name, n.Synced(), diff, first)
		}
		for i := range simConns {
			r := conn(i)
			en, ok := n.table.Get(s.now.Add(n.skew), &r)
			if k, has := n.kernel[i]; ok && n.kept(&r) && (!has || k.real != en.Record.Real) {
				return fmt.Errorf("connection %d goes to %v in %s's kernel, to %v in the replica", i, k.real, name, en.Record.Real)
			}
		}
	}
	return nil
}
