package sim

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/saru/core"
)

// TestMain sets how many schedules there are for each policy; SARU_SCHEDULES, which is for soaks, is the number in total.
func TestMain(m *testing.M) {
	flag.Parse()
	set := func(name, value string) {
		if err := flag.Set(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	seen := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { seen[f.Name] = true })
	if !seen["rapid.checks"] {
		n := 2000
		s := os.Getenv("SARU_SCHEDULES")
		if s == "" && !seen["rapid.seed"] {
			set("rapid.seed", "1") // the same schedules each time
		}
		if s != "" {
			var err error
			if n, err = strconv.Atoi(s); err != nil || n < policies {
				fmt.Fprintf(os.Stderr, "SARU_SCHEDULES=%q: a number of schedules, at least %d\n", s, policies)
				os.Exit(2)
			}
		}
		set("rapid.checks", strconv.Itoa((n+policies-1)/policies))
		set("rapid.nofailfile", "true")
	}
	if !seen["rapid.shrinktime"] {
		set("rapid.shrinktime", "20s")
	}
	os.Exit(m.Run())
}

// policies is for how many policies there is a property.
const policies = 3

// run lets a world go through a schedule and heal, and says what was wrong.
func run(seed uint64, opt Options, faults []fault, tracing bool) (w *World, why string) {
	w = New(seed, opt)
	w.Tracing = tracing
	end := 4 * time.Second
	for _, f := range faults {
		w.After(f.at, func() { w.trace("fault: %s (%d events so far)", f.text, w.events); f.do(w) })
		end = max(end, f.at)
	}
	w.Run(end)
	// Everything is mended, and everybody is started.
	w.Heal()
	w.Calm = true
	for _, d := range w.Directors {
		d.Resume()
		if d.leaving {
			d.Crash()
		}
		d.Start()
		d.Drain(false)
	}
	healed := w.Now()
	for stable := 0; stable < 20 && len(w.Violations) == 0; {
		w.Run(w.Now() + 100*time.Millisecond)
		none, one, more := w.Owners()
		if stable++; none > 0 || w.members() < opt.Directors {
			stable = 0
		}
		if w.Now()-healed > 20*time.Second {
			return w, fmt.Sprintf("20 s after healing %d buckets are owned by nobody, %d by one, %d by several; %d members", none, one, more, w.members())
		}
	}
	w.Healing = w.Now() - healed - 2*time.Second
	if len(w.Violations) > 0 {
		return w, strings.Join(w.Violations, "\n")
	}
	return w, ""
}

// members is how many directors are members of the table that counts for them.
func (w *World) members() (n int) {
	for _, d := range w.Directors {
		if d.core != nil && d.core.Member() {
			n++
		}
	}
	return n
}

// options draws the circumstances of a run. Few directors weigh more: a run takes time with their square, and most of what can go wrong does so with three.
func options(t *rapid.T, partition core.Partition) Options {
	opt := Options{
		Directors: rapid.SampledFrom([]int{2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 9}).Draw(t, "directors"), Partition: partition, Delay: 30 * time.Millisecond,
		Loss: rapid.SampledFrom([]float64{0, 0.01, 0.03}).Draw(t, "loss"), Twice: 0.02, Rate: 0.01, Commit: 15 * time.Millisecond, Stuck: 0.02, Late: 0.02,
	}
	if partition == core.WithQuorum {
		opt.Directors = max(opt.Directors, 3)
		opt.Expect = opt.Directors
	}
	return opt
}

// drawn is all that a run depends on.
type drawn struct {
	opt    Options
	seed   uint64
	faults []fault
}

func draw(t *rapid.T, partition core.Partition) drawn {
	opt := options(t, partition)
	kinds := faultKinds
	if !rapid.Bool().Draw(t, "harsh") {
		kinds = faultKinds[:gentle]
	}
	return drawn{opt, rapid.Uint64().Draw(t, "seed"), schedule(t, opt.Directors, kinds, 20, 3000)}
}

// check tries a policy with as many schedules as TestMain says, and reports how long healing took.
func check(t *testing.T, partition core.Partition) {
	t.Parallel() // with the other policies
	var healing []time.Duration
	excused, datagrams, overlaps := 0, 0, 0
	start := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		d := draw(t, partition)
		w, why := run(d.seed, d.opt, d.faults, false)
		if why != "" {
			w, _ := run(d.seed, d.opt, d.faults, true)
			text := strings.Join(w.Trace[max(0, len(w.Trace)-150):], "\n")
			t.Fatalf("%s\n%s", why, text)
		}
		healing, datagrams, overlaps = append(healing, w.Healing), datagrams+w.Datagrams, overlaps+w.Excused
		if w.Excused > 0 {
			excused++
		}
	})
	slices.Sort(healing)
	t.Logf("%d schedules in %v, %d datagrams; healing took %v (median), at most %v; in %d schedules there were %d overlaps of stated exceptions",
		len(healing), time.Since(start).Round(time.Second), datagrams, healing[len(healing)/2], healing[len(healing)-1], excused, overlaps)
}

// TestQuorum has no exception: two directors never own one bucket.
func TestQuorum(t *testing.T) { check(t, core.WithQuorum) }

// TestByTableSize is the default: with two members left both sides of a complete cut go on.
func TestByTableSize(t *testing.T) { check(t, core.ByTableSize) }

// TestAvailable lets all sides go on.
func TestAvailable(t *testing.T) { check(t, core.WithAvailable) }
