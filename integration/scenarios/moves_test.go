package scenarios

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// A move takes the share away from a director, until it is let back.
type move struct {
	from     string
	at, back time.Time
}

// TestMoves drains directors of a farm that carries streams, one after the other, and then switches each off, and measures from packets for how long nobody takes those of its share.
// None is cut. SARU_ROUNDS has more than one director, SARU_STREAMS more streams.
func TestMoves(t *testing.T) {
	a := newActiveFarm(t)
	fleet := load.NewFleet()
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, fleet.Wait(limit))
	}()
	steady, measured := number(t, "SARU_STREAMS", 60), 24
	pace := time.Duration(steady) * time.Second / 60 // 60 chunks a second together
	for i, s := range services[:2] {
		job := load.Job{
			Name: fmt.Sprintf("%s %v", s.Method, s.VIPPort()), Host: a.farm.Clients[i], Target: s.VIPPort(), Count: steady / 2, Every: 2 * pace / time.Duration(steady),
			Stall: guestStall, Order: load.Order{Seed: uint64(i * 10_000), Bytes: 1 << 30, Chunk: rollingChunk, Pace: pace},
		}
		must(t, fleet.Launch(ctx, job))
		job.Name, job.Count, job.Every, job.Order.Seed, job.Order.Pace = "measured", measured/2, 5*time.Millisecond, uint64(5_000+i*10_000), 100*time.Millisecond
		must(t, fleet.Launch(ctx, job))
	}
	time.Sleep(3 * time.Second) // mirrored
	n := min(rounds(t, 1), a.always)
	var drains, deaths []move
	for i, d := range a.farm.Directors[:n] {
		m := move{from: d.Name, at: time.Now()}
		a.saructl(i, "drain") // until it is done
		time.Sleep(2 * time.Second)
		m.back = time.Now()
		drains = append(drains, m)
		a.saructl(i, "undrain")
		a.whole()
		time.Sleep(2 * time.Second)
	}
	if cut := fleet.Count(load.Cut); cut > 0 {
		t.Errorf("drains: %d streams are cut", cut)
	}
	for i, d := range a.farm.Directors[:n] {
		m := move{from: d.Name, at: time.Now()}
		must(t, d.PowerOff())
		time.Sleep(15 * time.Second)
		m.back = time.Now()
		deaths = append(deaths, m)
		a.switchOn(i)
		a.whole()
		time.Sleep(2 * time.Second)
	}
	if cut := fleet.Count(load.Cut); cut > 0 {
		t.Errorf("deaths: %d streams are cut", cut)
	}
	carriedOn(t, guestStall+readyLimit, time.Now(), fleet)
	if cut := fleet.Count(load.Cut); cut > 0 {
		t.Errorf("%d streams are cut in the end", cut)
	}
	clients := map[netip.AddrPort]bool{}
	for _, d := range fleet.Downloads() {
		if d.Job == "measured" {
			clients[d.Local] = true
		}
	}
	by := map[netip.AddrPort][]taken{}
	a.seen.read(func(director string, at time.Time, p farm.Taken) {
		if clients[p.Client] {
			by[p.Client] = append(by[p.Client], taken{director, at})
		}
	})
	for _, kind := range []struct {
		name  string
		moves []move
		bar   time.Duration // deadtime is 5 s, and TCP's retransmissions wait twice as long each time
	}{{"drain", drains, 5 * time.Second}, {"death", deaths, 15 * time.Second}} {
		gaps, never := gapsOf(by, kind.moves)
		if len(gaps) == 0 {
			t.Fatalf("%s: no stream was moved", kind.name)
		}
		if worst := gaps[len(gaps)-1]; never > 0 || worst > kind.bar {
			t.Errorf("%s: %d streams were served by nobody else, and one came to another director after %v only", kind.name, never, worst)
		}
		t.Logf("RESULT %s of %d directors with %d streams (timers ten times the defaults, a packet each 100 ms): %d streams moved, time without service p50 %v, p99 %v; cut: %d",
			kind.name, len(kind.moves), steady+measured, len(gaps), gaps[len(gaps)/2].Round(time.Millisecond), gaps[min(len(gaps)-1, len(gaps)*99/100)].Round(time.Millisecond), fleet.Count(load.Cut))
	}
}

// taken is when a director took a packet of a stream.
type taken struct {
	director string
	at       time.Time
}

// gapsOf returns, in ascending order, how long each stream that a move took from its director was without service: from the last packet there to the first one elsewhere; and
// how many were not served elsewhere before the director was back.
func gapsOf(by map[netip.AddrPort][]taken, moves []move) (gaps []time.Duration, never int) {
	for _, all := range by {
		slices.SortFunc(all, func(a, b taken) int { return a.at.Compare(b.at) })
		for _, m := range moves {
			i, _ := slices.BinarySearchFunc(all, m.at, func(p taken, at time.Time) int { return p.at.Compare(at) })
			if i == 0 || all[i-1].director != m.from {
				continue // another's
			}
			for i < len(all) && all[i].director == m.from && all[i].at.Before(m.back) {
				i++
			}
			if i == len(all) || !all[i].at.Before(m.back) {
				never++
				continue
			}
			gaps = append(gaps, all[i].at.Sub(all[i-1].at))
		}
	}
	slices.Sort(gaps)
	return gaps, never
}
