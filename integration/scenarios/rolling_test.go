package scenarios

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// The streams of a rolling restart: 200 where it goes twice around. Each packet is one chunk, and is acknowledged by one: the kernel's
// sync threads count those, and send a connection at its third and then at every fiftieth.
const (
	steadySlow = 100 // opened at the beginning
	steadyFast = 40
	freshSlow  = 10 // opened a second before each director is cut off
	slowPace   = time.Second
	fastPace   = 200 * time.Millisecond
	freshLast  = 60 // packets of a fresh one: a long run ends them, a short one is over before

	rollingChunk = 1000
	// rollingStall is when a silent stream counts as cut: some times what TCP's retransmissions need after a take-over.
	rollingStall = 12 * time.Second
	// detectTime is between a director's end and its successor's take-over.
	detectTime = 500 * time.Millisecond
	// kernelLearn is what a director that is back has to learn by the kernel's own threads, which never say when they are done. syncd is
	// given no time at all: the next move begins as soon as it says that it is synced.
	kernelLearn = 5 * time.Second
)

// keeper is what makes connections known on all directors.
type keeper struct {
	name string
	// start sets up directors that have just been switched on and have their services. It returns when they may take over, as far as
	// anybody can tell.
	start func(t *testing.T, directors ...*farm.Node)
	// strict: a director that is ready knows every stream.
	strict bool
}

// syncdKeeper is the daemon, the same on every director.
func syncdKeeper() keeper {
	var keys string
	return keeper{name: "syncd", strict: true, start: func(t *testing.T, directors ...*farm.Node) {
		t.Helper()
		if keys == "" {
			keys = genkey(t, directors[0])
		}
		var all []*daemon
		for _, d := range directors {
			all = append(all, launchSyncd(t, d, keys))
		}
		for _, s := range all {
			s.waitSynced(t)
		}
	}}
}

// kernelKeeper is the kernel's own: master and backup on every director.
func kernelKeeper(name string, learn time.Duration, sysctls ...[2]string) keeper {
	return keeper{name: name, start: func(t *testing.T, directors ...*farm.Node) {
		t.Helper()
		for _, d := range directors {
			for _, s := range sysctls {
				must(t, d.Sysctl(s[0], s[1]))
			}
			for _, role := range []string{"backup", "master"} {
				_, err := d.Run("ipvsadm", "--start-daemon", role, "--mcast-interface", string(farm.Sync), "--syncid", "1")
				must(t, err)
			}
		}
		time.Sleep(learn)
	}}
}

// rollingResult is what became of a farm's streams.
type rollingResult struct {
	streams, cut, moves int
	why                 map[string]int // of the cut ones
	ready               []time.Duration
	took                time.Duration
}

// rolling tells the story of a rolling restart: each director in turn has the addresses, loses power, comes back empty, and is made
// ready by the keeper, so many times around.
type rolling struct {
	t     *testing.T
	farm  *farm.Farm
	fleet *load.Fleet
	ctx   context.Context
	seed  uint64
}

func rollAround(t *testing.T, k keeper, around int) (r rollingResult) {
	t.Helper()
	spec := basic
	spec.Directors, spec.Clients = 3, 2
	f := farm.New(t, spec)
	serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	x := &rolling{t: t, farm: f, fleet: load.NewFleet(), ctx: ctx, seed: 1}
	t.Cleanup(func() {
		cancel()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, x.fleet.Wait(limit))
	})
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	k.start(t, f.Directors...)
	began := time.Now()
	must(t, f.Directors[0].TakeVIP())
	x.open("steady, slow", steadySlow, slowPace, 1<<20)
	x.open("steady, fast", steadyFast, fastPace, 1<<20)

	var taken time.Time
	for move := range around * len(f.Directors) {
		from, to := f.Directors[move%len(f.Directors)], f.Directors[(move+1)%len(f.Directors)]
		x.open(fmt.Sprintf("fresh before move %d", move+1), freshSlow, slowPace, freshLast)
		time.Sleep(time.Second)
		must(t, from.PowerOff())
		time.Sleep(detectTime)
		must(t, to.TakeVIP())
		taken = time.Now()
		must(t, from.PowerOn())
		must(t, from.AddServices(services...))
		on := time.Now()
		k.start(t, from)
		r.ready = append(r.ready, time.Since(on))
		lacks := x.lacking(from)
		if k.strict && len(lacks) > 0 {
			t.Errorf("move %d: %s says that it is ready and lacks %d streams: %v", move+1, from.Name, len(lacks), lacks)
		}
		t.Logf("move %d, from %s to %s: %s is ready after %v and lacks %d streams; %d run, %d are cut", move+1, from.Name, to.Name,
			from.Name, r.ready[move].Round(time.Millisecond), len(lacks), x.fleet.Count(load.Running), x.fleet.Count(load.Cut))
		r.moves++
	}
	x.carriedOn(taken)
	r.took = time.Since(began)
	r.why = map[string]int{}
	for _, d := range x.fleet.Downloads() {
		r.streams++
		if d.State == load.Cut {
			r.cut++
			r.why[d.Why]++
			if k.strict {
				t.Errorf("a stream by %s is cut (%s) %v after the beginning: %+v", d.Job, d.Why, d.Ended.Sub(began), d)
			}
		}
	}
	return r
}

// open begins streams through whoever has the addresses: by NAT and by DR, on IPv4 and IPv6.
func (x *rolling) open(name string, count int, pace time.Duration, packets int) {
	x.t.Helper()
	ways := services[:4]
	for i, s := range ways {
		n := (count + i) / len(ways)
		must(x.t, x.fleet.Launch(x.ctx, load.Job{
			Name: fmt.Sprintf("%s, %s %v", name, s.Method, s.VIPPort()), Host: x.farm.Clients[i%len(x.farm.Clients)], Target: s.VIPPort(),
			Count: n, Every: 5 * time.Millisecond, Stall: rollingStall,
			Order: load.Order{Seed: x.seed, Bytes: packets * rollingChunk, Chunk: rollingChunk, Pace: pace},
		}))
		x.seed += uint64(n)
	}
}

// lacking lists the running streams that a director's kernel does not have as ESTABLISHED.
func (x *rolling) lacking(d *farm.Node) (lacks []string) {
	x.t.Helper()
	open := map[string]bool{}
	for _, s := range x.fleet.Downloads() {
		if s.State == load.Running {
			open[fmt.Sprint(s.Local, s.Target)] = true
		}
	}
	for range 3 { // what the kernel lists is no snapshot: it may miss one
		for _, c := range kernelConns(x.t, d) {
			if c.State == "ESTABLISHED" {
				delete(open, fmt.Sprint(c.Client, c.Virtual))
			}
		}
	}
	for s := range open {
		lacks = append(lacks, s)
	}
	slices.Sort(lacks)
	return lacks
}

// carriedOn waits until each stream has received something since a take-over, or is cut.
func (x *rolling) carriedOn(since time.Time) {
	x.t.Helper()
	carriedOn(x.t, 2*rollingStall, since, x.fleet)
}

// carriedOn waits until each stream of a fleet has received something since a time, or is cut.
func carriedOn(t testing.TB, limit time.Duration, since time.Time, fleet *load.Fleet) {
	t.Helper()
	eventually(t, limit, func() string {
		for _, s := range fleet.Downloads() {
			if s.State == load.Running && !s.Last.After(since) {
				return fmt.Sprintf("a stream by %s is neither carried on nor cut: %+v", s.Job, s)
			}
		}
		return ""
	})
}

// TestRollingRestart: each of three directors in turn has the addresses, loses power, comes back empty, is taught, and takes them again;
// twice around. With syncd no stream is cut. The same farm with the kernel's own sync threads shows how many they lose.
func TestRollingRestart(t *testing.T) {
	around := rounds(t, 2)
	mine := rollAround(t, syncdKeeper(), around)
	line := fmt.Sprintf("RESULT rolling moves=%d streams=%d syncd_cut=%d syncd_ready_p50_ms=%d syncd_ready_max_ms=%d syncd_s=%.0f",
		mine.moves, mine.streams, mine.cut, quantile(mine.ready, 50).Milliseconds(), quantile(mine.ready, 100).Milliseconds(), mine.took.Seconds())

	// Without a refresh period a threshold of "0 0" sends nothing at all on ESTABLISHED (ip_vs_sync.c, ip_vs_sync_conn_needed).
	tuned := [][2]string{{"net/ipv4/vs/sync_threshold", "0 0"}, {"net/ipv4/vs/sync_refresh_period", "10"}}
	kernels := []keeper{
		kernelKeeper("kernel_defaults", kernelLearn, [2]string{"net/ipv4/vs/sync_threshold", "3 50"}, [2]string{"net/ipv4/vs/sync_refresh_period", "0"}),
		kernelKeeper("kernel_tuned", kernelLearn, tuned...),
	}
	if os.Getenv("SARU_ROUNDS") != "" {
		// Longer than the refresh period and the 3 s for which the kernel holds records back.
		kernels = append(kernels, kernelKeeper("kernel_tuned_patient", 3*kernelLearn, tuned...))
	}
	results := make([]rollingResult, len(kernels))
	t.Run("kernel", func(t *testing.T) {
		for i, k := range kernels { // at the same time: they mostly wait
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				r := rollAround(t, k, 2)
				t.Logf("%s: %d of %d streams are cut after %d moves, %v", k.name, r.cut, r.streams, r.moves, r.why)
				if r.cut == 0 {
					t.Errorf("%s loses nothing in %d moves: the comparison shows nothing", k.name, r.moves)
				}
				results[i] = r
			})
		}
	})
	for i, r := range results {
		if r.moves > 0 { // it was run, and went to the end
			line += fmt.Sprintf(" %s_cut=%d of %d", kernels[i].name, r.cut, r.streams)
		}
	}
	t.Log(line)
}
