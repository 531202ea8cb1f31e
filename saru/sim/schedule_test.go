package sim

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"saru/saru/core"
)

// fault is something that is done to a world at a time.
type fault struct {
	at   time.Duration
	text string
	do   func(*World)
}

// faultKinds are what can be done to a director; those of gentle schedules come first.
var faultKinds = []string{"crash", "kill", "pause", "drain", "leave", "weight", "one-way", "pause", "one-way", "link", "deaf", "mute", "isolate", "split"}

const gentle = 7

// schedule draws faults of some seconds: what they break stays so for a while and is mended at last.
func schedule(t *rapid.T, n int, kinds []string, shortest, longest int) []fault {
	ms := func(low, high int, label string) time.Duration {
		return time.Duration(rapid.IntRange(low, high).Draw(t, label)) * time.Millisecond
	}
	who := rapid.IntRange(0, n-1)
	var out []fault
	at := 4 * time.Second
	for range rapid.IntRange(1, 8).Draw(t, "faults") {
		at += ms(0, 1500, "gap")
		kind, d, length := rapid.SampledFrom(kinds).Draw(t, "kind"), who.Draw(t, "who"), ms(shortest, longest, "length")
		add := func(text string, begin, end func(*World)) {
			out = append(out, fault{at, text, begin}, fault{at + length, text + " ends", end})
		}
		cuts := func(pairs ...[2]int) (begin, end func(*World)) {
			set := func(on bool) func(*World) {
				return func(w *World) {
					for _, p := range pairs {
						if p[0] != p[1] {
							w.Cut(p[0], p[1], on)
						}
					}
				}
			}
			return set(true), set(false)
		}
		name := fmt.Sprintf("%s d%d for %v", kind, d+1, length)
		var pairs [][2]int
		switch kind {
		case "crash":
			add(name, func(w *World) { w.Directors[d].Crash() }, func(w *World) { w.Directors[d].Start() })
			continue
		case "kill":
			add(name, func(w *World) { w.Directors[d].Kill() }, func(w *World) { w.Directors[d].Start() })
			continue
		case "pause":
			add(name, func(w *World) { w.Directors[d].Pause() }, func(w *World) { w.Directors[d].Resume() })
			continue
		case "leave":
			add(name, func(w *World) { w.Directors[d].Leave() }, func(w *World) { w.Directors[d].Crash(); w.Directors[d].Start() })
			continue
		case "weight":
			set := func(weight uint16) func(*World) {
				return func(w *World) {
					w.Directors[d].Do(func(now time.Time, c *core.Core) { c.SetWeight(now, weight) })
				}
			}
			add(name, set(uint16(rapid.IntRange(0, 300).Draw(t, "weight"))), set(100))
			continue
		case "drain":
			add(name, func(w *World) { w.Directors[d].Drain(true) }, func(w *World) { w.Directors[d].Drain(false) })
			continue
		case "one-way":
			pairs = append(pairs, [2]int{d, who.Draw(t, "whom")})
		case "link":
			o := who.Draw(t, "whom")
			pairs = append(pairs, [2]int{d, o}, [2]int{o, d})
		case "deaf":
			for o := range n {
				pairs = append(pairs, [2]int{o, d})
			}
		case "mute":
			for o := range n {
				pairs = append(pairs, [2]int{d, o})
			}
		case "isolate":
			for o := range n {
				pairs = append(pairs, [2]int{d, o}, [2]int{o, d})
			}
		case "split":
			side := rapid.SliceOfN(rapid.Bool(), n, n).Draw(t, "side")
			for a := range n {
				for b := range n {
					if side[a] != side[b] {
						pairs = append(pairs, [2]int{a, b})
					}
				}
			}
		}
		begin, end := cuts(pairs...)
		add(name, begin, end)
	}
	return out
}
