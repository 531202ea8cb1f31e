package scenarios

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// activeFarm is a farm of three directors with one MAC, all working, each with its syncd and its saru, and one more that is off, unless a fault has it join.
type activeFarm struct {
	t      *testing.T
	farm   *farm.Farm
	keys   string
	always int // directors that work all the time, but for faults: the first ones
	syncd  []*daemon
	saru   []*coordinator // nil: off
	seen   *witnesses
}

func newActiveFarm(t *testing.T) *activeFarm {
	t.Helper()
	spec := basic
	spec.Directors, spec.Clients, spec.SharedMAC = 4, 2, true
	spec.BeforeLinks = func(d *farm.Node) error { // closed from boot on, as the packaging does it: or its own stack would answer everybody with resets
		_, err := d.Run("saru", "--close", "--virtual", farm.VIP.String(), "--virtual", farm.VIP6.String(), "--inside", string(farm.Inside))
		return err
	}
	a := &activeFarm{t: t, farm: farm.New(t, spec), always: spec.Directors - 1}
	a.syncd, a.saru = make([]*daemon, spec.Directors), make([]*coordinator, spec.Directors)
	must(t, a.farm.Directors[a.always].PowerOff())
	serve(t, a.farm)
	a.keys = genkey(t, a.farm.Directors[0])
	a.seen = watchAll(t, a.farm.Directors[:a.always])
	for i := range a.always {
		a.prepare(i)
	}
	for _, s := range a.syncd[:a.always] {
		s.waitSynced(t)
	}
	a.whole()
	return a
}

// on returns the directors that are switched on.
func (a *activeFarm) on() (out []*farm.Node) {
	for _, d := range a.farm.Directors {
		if d.On() {
			out = append(out, d)
		}
	}
	return out
}

// whole waits until the directors that are on own everything together.
func (a *activeFarm) whole() {
	a.t.Helper()
	var all []*coordinator
	for _, c := range a.saru {
		if c != nil {
			all = append(all, c)
		}
	}
	ownAll(a.t, 3*readyLimit, all...)
}

// switchOn boots a director, with a witness, and waits until its syncd is synced.
func (a *activeFarm) switchOn(i int) {
	a.t.Helper()
	d := a.farm.Directors[i]
	must(a.t, d.PowerOn())
	a.seen.watch(d)
	a.prepare(i)
	a.syncd[i].waitSynced(a.t)
}

// prepare brings up a director that was switched on, closed: services, syncd, saru.
func (a *activeFarm) prepare(i int) {
	a.t.Helper()
	d := a.farm.Directors[i]
	must(a.t, d.AddServices(services...))
	a.syncd[i] = launchSyncd(a.t, d, a.keys)
	a.saru[i] = launchSaru(a.t, d)
}

// young is how soon before the loss of a director a connection may have been opened to be lost with it: it was younger than the mirror, whose lag in a guest is some
// 50 ms, and a second while the guest stands still.
const young = time.Second

// rowStall is when a silent stream counts as cut here. Several faults in a row may hit the same share, and between two attempts TCP waits for up to 120 s
// (include/net/tcp.h, TCP_RTO_MAX): what is cut does not go on at all.
const rowStall = 150 * time.Second

// TestSingleOwner has three directors carry streams together, and does random things to them: no packet is taken by two, and no mirrored stream is cut.
// Short downloads begin all the time besides. SARU_ROUNDS has more of them, with longer faults, SARU_STREAMS more streams;
// SARU_SEED begins with the round that said so, in a run that has SARU_ROUNDS or has not as the one before.
func TestSingleOwner(t *testing.T) {
	seed := uint64(number(t, "SARU_SEED", 51))
	a := newActiveFarm(t)
	fleet, short := load.NewFleet(), load.NewFleet()
	ctx, cancel := context.WithCancel(t.Context())
	var launches sync.WaitGroup
	defer func() {
		cancel()
		launches.Wait()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, fleet.Wait(limit))
		must(t, short.Wait(limit))
	}()
	streams := number(t, "SARU_STREAMS", 40)
	pace := time.Duration(streams) * time.Second / 40 // 40 chunks a second through four directors leave an emulated guest time for everything else
	for i, s := range services[:2] {                  // IPv4: the witness knows those apart
		job := load.Job{
			Name: fmt.Sprintf("%s %v", s.Method, s.VIPPort()), Host: a.farm.Clients[i], Target: s.VIPPort(), Count: streams / 2, Every: 2 * pace / time.Duration(streams),
			Stall: rowStall, Order: load.Order{Seed: uint64(i * streams), Bytes: 1 << 30, Chunk: rollingChunk, Pace: pace},
		}
		must(t, fleet.Launch(ctx, job))
		job.Count, job.Every, job.Order.Bytes, job.Order.Pace = 1<<20, 500*time.Millisecond, 4*rollingChunk, 400*time.Millisecond
		launches.Go(func() { _ = short.Launch(ctx, job) }) // until the end
	}
	time.Sleep(3 * time.Second) // mirrored
	if n := fleet.Count(load.Cut); n > 0 {
		t.Fatalf("%d streams do not even begin", n)
	}
	n := rounds(t, 10)
	var windows []window
	done := 0
	defer func() { a.judge(done, windows, fleet, short) }() // also when the farm does not become whole again
	for round := range n {
		rng := rand.New(rand.NewPCG(seed+uint64(round), 7))
		f, i, length := farmFaults[rng.IntN(len(farmFaults))], rng.IntN(a.always), time.Duration(50+rng.IntN(8000))*time.Millisecond
		if os.Getenv("SARU_ROUNDS") == "" {
			length /= 2 // `make test` is to be short; deadtime is 5 s
		}
		begin := time.Now()
		f.do(a, i, length)
		a.whole()
		windows, done = append(windows, window{f.loses, begin, time.Now()}), round+1
		t.Logf("round %d, seed %d: %s, %s for %v; whole again %v after its beginning; %d streams run, %d are cut, %d short ones", round, seed+uint64(round),
			a.farm.Directors[i].Name, f.name, length, time.Since(begin).Round(time.Millisecond), fleet.Count(load.Running), fleet.Count(load.Cut), short.Count(load.Cut))
	}
	carriedOn(t, rowStall+readyLimit, time.Now(), fleet) // what is not carried on is cut by then
	for _, c := range a.saru[:a.always] {
		for _, never := range []string{"its clock stood still", "follows another line of tables"} { // with a quorum, neither can be
			if strings.Contains(c.Output(), never) {
				t.Errorf("saru on %s says: %s", c.node.Name, never)
			}
		}
	}
}

// window is the time of a fault, until the farm was whole again; some faults lose a director.
type window struct {
	loses       bool
	begin, back time.Time
}

// judge fails the test if a packet was taken by two directors, or a connection cut that need not be, in some rounds.
func (a *activeFarm) judge(n int, windows []window, fleet, short *load.Fleet) {
	t := a.t
	t.Helper()
	streams := len(fleet.Downloads())
	packets, twice := a.seen.twice()
	all := append(fleet.Downloads(), short.Downloads()...)
	began, lost, unserved, cut := 0, 0, 0, 0
	in := func(t, from, to time.Time) bool { return t.After(from) && t.Before(to) }
	unowned := func(d *load.Download) bool { // nobody had its bucket while the client tried, which it does for 10 s
		return slices.ContainsFunc(windows, func(w window) bool { return in(d.Began, w.begin.Add(-10*time.Second), w.back) })
	}
	// A connection opens later than the client begins if its first packets came while nobody had its bucket: only from Opened on could it be mirrored.
	unmirrored := func(d *load.Download) bool {
		const dying = 50 * time.Millisecond // PowerOff takes that
		return slices.ContainsFunc(windows, func(w window) bool {
			return w.loses && d.Began.Before(w.begin.Add(dying)) && in(d.Opened, w.begin.Add(-young), w.begin.Add(young))
		})
	}
	for i := range all {
		d := &all[i]
		switch {
		case d.State == load.Waiting:
			continue
		case d.State != load.Cut:
		case i >= streams && strings.HasPrefix(d.Why, "no connection: ") && (strings.HasSuffix(d.Why, "stalled") || strings.HasSuffix(d.Why, "i/o timeout")) && unowned(d):
			t.Logf("no connection in 10 s: %s from %v on", d.Job, d.Began)
			unserved++ // it came while nobody had its bucket, for longer than a client tries
		case i >= streams && unmirrored(d):
			t.Logf("lost with a director: %+v", d)
			lost++
		default:
			cut++
			t.Errorf("a stream is cut (%s): %+v", d.Why, d)
		}
		began++
	}
	t.Logf("RESULT single owner: %d rounds of faults, %d streams and %d short downloads: %d packets taken by IPVS, %d by two directors; %d connections cut; %d lost with a director, younger than %v; %d got no connection in 10 s",
		n, streams, began-streams, packets, len(twice), cut, lost, young, unserved)
	if unserved > 0 && n <= 10 { // why
		for _, c := range a.saru[:a.always] {
			out, _ := c.node.Run("saructl", "history", "--control", saruSocket)
			t.Logf("history of %s:\n%s", c.node.Name, out)
		}
	}
	if len(twice) > 0 {
		t.Errorf("%d packets were taken by two directors, the first %+v", len(twice), twice[0])
	}
	if packets < streams {
		t.Errorf("the witnesses have seen %d packets of %d streams: they show nothing", packets, streams)
	}
}

// number is a number that the environment sets.
func number(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: not a number", name, text)
	}
	return n
}
