package sim

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/saru/core"
)

// TestBrokenRules shows that the simulation finds what it looks for: each rule that is broken on purpose leads to two owners of one bucket within a few
// schedules, of the kind that a rule is there for.
func TestBrokenRules(t *testing.T) {
	for _, tt := range []struct {
		rule              Rule
		kinds             []string
		shortest, longest int     // of faults, ms
		late              float64 // share of late renewals
		limit             int     // schedules
		script            []fault // instead of drawn faults
	}{
		{LeaseFromNow, []string{"pause", "isolate"}, 400, 1500, 0, 1000, nil},
		{NoFence, []string{"isolate", "deaf"}, 1000, 2000, 0.3, 300, nil},
		{SupportsDead, nil, 0, 0, 0, 50, revenant()},
		{ReleasesAtOnce, faultKinds, 20, 3000, 0.02, 50, nil},
		{OpensAtOnce, faultKinds, 20, 3000, 0.02, 50, nil},
	} {
		t.Run(string(tt.rule), func(t *testing.T) {
			circumstances := rapid.Custom(func(t *rapid.T) drawn {
				opt := options(t, core.WithQuorum)
				opt.Directors, opt.Expect, opt.Late = 3, 3, tt.late
				if tt.script != nil {
					return drawn{opt, rapid.Uint64().Draw(t, "seed"), tt.script}
				}
				return drawn{opt, rapid.Uint64().Draw(t, "seed"), schedule(t, 3, tt.kinds, tt.shortest, tt.longest)}
			})
			tries := func(rule Rule, limit int) (found int, what string) {
				for i := range limit {
					d := circumstances.Example(i)
					d.opt.Broken = rule
					if w, _ := run(d.seed, d.opt, d.faults, false); len(w.Violations) > 0 && !strings.Contains(w.Violations[0], "storm") {
						return i, w.Violations[0]
					}
				}
				return -1, ""
			}
			start := time.Now()
			found, what := tries(tt.rule, tt.limit)
			if found < 0 {
				t.Fatalf("not found in %d schedules, %v", tt.limit, time.Since(start))
			}
			t.Logf("found in schedule %d, %v: %s", found, time.Since(start).Round(time.Millisecond), what)
			if i, what := tries(None, found+1); i >= 0 {
				t.Errorf("found in schedule %d with no rule broken as well: %s", i, what)
			}
		})
	}
}

// revenant is a schedule in which d3, counted dead by both others, is heard again by d2 just before d2 learns that d1's table names d3 dead. Drawn faults practically never
// do this: d3 must have lost its lease, and have got a new table that it has held nothing by, before it is counted dead.
func revenant() []fault {
	cut := func(at int, from, to int, on bool) fault {
		return fault{time.Duration(at) * time.Millisecond, "cut", func(w *World) { w.Cut(from, to, on) }}
	}
	return []fault{
		cut(4000, 2, 0, true), cut(4000, 2, 1, true),
		{4330 * time.Millisecond, "drain d2", func(w *World) { w.Directors[1].Drain(true) }},
		cut(4870, 0, 1, true),
		cut(4960, 2, 1, false),
		cut(5250, 0, 1, false),
		cut(5600, 2, 0, false),
	}
}
