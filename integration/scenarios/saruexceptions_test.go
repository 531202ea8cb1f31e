package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// TestForeignFlush is exception 5 of docs/SAFETY.md: somebody flushes the ruleset of a director. Below Linux 6.9 that removes the filter until saru mends it; what the director
// takes meanwhile of the others' packets is counted, the alarm is in status and log, no stream is cut, and the farm is whole again.
func TestForeignFlush(t *testing.T) {
	a := newActiveFarm(t)
	fleet := load.NewFleet()
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, fleet.Wait(limit))
	}()
	for i, s := range services[:2] {
		must(t, fleet.Launch(ctx, load.Job{
			Name: fmt.Sprintf("%s %v", s.Method, s.VIPPort()), Host: a.farm.Clients[i], Target: s.VIPPort(), Count: 20, Every: 5 * time.Millisecond,
			Stall: guestStall, Order: load.Order{Seed: uint64(i * 100), Bytes: 1 << 30, Chunk: rollingChunk, Pace: 50 * time.Millisecond},
		}))
	}
	time.Sleep(2 * time.Second) // mirrored
	d, saru := a.farm.Directors[0], a.saru[0]
	protected, err := d.Run("sh", "-c", "nft list table inet saru | grep -c 'flags.*owner' || true")
	must(t, err)
	const times = 5
	var flushed []time.Time
	for range times {
		flushed = append(flushed, time.Now())
		_, err := d.RunInput("flush ruleset\n"+farm.WitnessRules(), "nft", "-f", "-") // in one transaction: what the witness sees is not interrupted
		must(t, err)
		if strings.TrimSpace(protected) == "0" {
			eventually(t, readyLimit, func() string {
				s, err := saru.status()
				if err != nil {
					return err.Error()
				}
				for _, alarm := range s.Alarms {
					if strings.HasPrefix(alarm, "filter: ") {
						return ""
					}
				}
				return fmt.Sprintf("no alarm: %q", s.Alarms)
			})
		}
		eventually(t, readyLimit, func() string {
			open := 0
			for _, c := range a.saru[:a.always] {
				s, err := c.status()
				if err != nil {
					return err.Error()
				}
				open += s.Buckets.Open
			}
			if open != 4096 {
				return fmt.Sprintf("%d buckets are open", open)
			}
			return ""
		})
		time.Sleep(time.Second)
	}
	if out := saru.Output(); strings.TrimSpace(protected) == "0" && !strings.Contains(out, "the filter was changed by somebody") {
		t.Errorf("the log of saru says nothing:\n%s", out)
	}
	packets, twice := a.seen.twice()
	longest := time.Duration(0)
	for _, p := range twice {
		since := time.Hour
		for _, at := range flushed {
			if d := p.at.Sub(at); d >= 0 {
				since = min(since, d)
			}
		}
		longest = max(longest, since)
	}
	t.Logf("RESULT nft flush ruleset by somebody else, %d times (table protected by the kernel: %v): %d of %d packets were taken by two directors, the last one %v after the flush; streams cut: %d",
		times, strings.TrimSpace(protected) != "0", len(twice), packets, longest.Round(time.Millisecond), fleet.Count(load.Cut))
	switch {
	case strings.TrimSpace(protected) != "0" && len(twice) > 0:
		t.Errorf("the kernel protects the table, and %d packets were taken twice", len(twice))
	case longest > 5*time.Second:
		t.Errorf("a packet is taken twice %v after the flush", longest)
	case packets < 100:
		t.Errorf("the witnesses have seen %d packets: they show nothing", packets)
	}
	if n := fleet.Count(load.Cut); n > 0 {
		t.Errorf("%d streams are cut", n)
	}
}
