package scenarios

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// activeFarm is a farm of three directors with one MAC, all working, each with its syncd and its saru.
type activeFarm struct {
	t     *testing.T
	farm  *farm.Farm
	keys  string
	syncd []*daemon
	saru  []*coordinator
	seen  *witnesses
}

func newActiveFarm(t *testing.T) *activeFarm {
	t.Helper()
	spec := basic
	spec.Directors, spec.Clients, spec.SharedMAC = 3, 2, true
	spec.BeforeLinks = func(d *farm.Node) error { // closed from boot on, as the packaging does it: or its own stack would answer everybody with resets
		_, err := d.Run("saru", "--close", "--virtual", farm.VIP.String(), "--virtual", farm.VIP6.String(), "--inside", string(farm.Inside))
		return err
	}
	a := &activeFarm{t: t, farm: farm.New(t, spec)}
	a.syncd, a.saru = make([]*daemon, spec.Directors), make([]*coordinator, spec.Directors)
	serve(t, a.farm)
	a.keys = genkey(t, a.farm.Directors[0])
	for i := range a.farm.Directors {
		a.prepare(i)
	}
	a.seen = watchAll(t, a.farm.Directors)
	for _, s := range a.syncd {
		s.waitSynced(t)
	}
	ownAll(t, 3*readyLimit, a.saru...)
	return a
}

// prepare brings up a director that was switched on, closed: services, syncd, saru.
func (a *activeFarm) prepare(i int) {
	a.t.Helper()
	d := a.farm.Directors[i]
	must(a.t, d.AddServices(services...))
	a.syncd[i] = launchSyncd(a.t, d, a.keys)
	a.saru[i] = launchSaru(a.t, d)
}

// A farmFault is done to director i, and undone.
type farmFault struct {
	name string
	do   func(a *activeFarm, i int, length time.Duration)
}

func signalled(p *farm.Process, length time.Duration) {
	_ = p.Signal(syscall.SIGSTOP)
	time.Sleep(length)
	_ = p.Signal(syscall.SIGCONT)
}

var farmFaults = []farmFault{
	{"SIGKILL of saru", func(a *activeFarm, i int, length time.Duration) {
		_ = a.saru[i].Signal(syscall.SIGKILL)
		time.Sleep(length)
		a.saru[i] = launchSaru(a.t, a.farm.Directors[i])
	}},
	{"SIGSTOP of saru", func(a *activeFarm, i int, length time.Duration) { signalled(a.saru[i].Process, length) }},
	{"SIGKILL of syncd", func(a *activeFarm, i int, length time.Duration) {
		_ = a.syncd[i].Signal(syscall.SIGKILL)
		time.Sleep(length)
		a.syncd[i] = launchSyncd(a.t, a.farm.Directors[i], "")
		a.syncd[i].waitSynced(a.t)
	}},
	{"SIGSTOP of syncd", func(a *activeFarm, i int, length time.Duration) { signalled(a.syncd[i].Process, length) }},
	{"death and return", func(a *activeFarm, i int, length time.Duration) {
		d := a.farm.Directors[i]
		must(a.t, d.PowerOff())
		time.Sleep(length)
		must(a.t, d.PowerOn())
		a.seen.watch(d)
		a.prepare(i)
		a.syncd[i].waitSynced(a.t)
	}},
	{"cut of one heartbeat link", func(a *activeFarm, i int, length time.Duration) {
		d := a.farm.Directors[i]
		must(a.t, d.SetLink(farm.Sync, false))
		time.Sleep(length)
		must(a.t, d.SetLink(farm.Sync, true))
	}},
	{"drain and undrain", func(a *activeFarm, i int, length time.Duration) {
		d := a.farm.Directors[i]
		if out, err := d.Run("saructl", "drain", "--control", saruSocket); err != nil {
			a.t.Errorf("drain %s: %v\n%s", d.Name, err, out)
		}
		time.Sleep(length)
		if out, err := d.Run("saructl", "undrain", "--control", saruSocket); err != nil {
			a.t.Errorf("undrain %s: %v\n%s", d.Name, err, out)
		}
	}},
	{"orderly restart of saru", func(a *activeFarm, i int, length time.Duration) {
		_ = a.saru[i].Signal(syscall.SIGTERM)
		if err := a.saru[i].Wait(); err != nil {
			a.t.Errorf("saru on %s: %v", a.farm.Directors[i].Name, err)
		}
		time.Sleep(length)
		a.saru[i] = launchSaru(a.t, a.farm.Directors[i])
	}},
}

// TestSingleOwner has three directors carry streams together, and does random things to them: no packet is taken by two, and no mirrored stream is cut.
// SARU_SEED replays rounds, SARU_ROUNDS has more of them.
func TestSingleOwner(t *testing.T) {
	seed := uint64(51) // ten rounds from here have each kind of fault
	if text := os.Getenv("SARU_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	a := newActiveFarm(t)
	fleet := load.NewFleet()
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, fleet.Wait(limit))
	}()
	streams := 0
	open := func(count int) {
		for i, s := range services[:2] { // IPv4: the witness knows those apart
			must(t, fleet.Launch(ctx, load.Job{
				Name: fmt.Sprintf("%s %v", s.Method, s.VIPPort()), Host: a.farm.Clients[i], Target: s.VIPPort(), Count: count / 2, Every: 5 * time.Millisecond,
				Stall: guestStall, Order: load.Order{Seed: uint64(streams), Bytes: 1 << 30, Chunk: rollingChunk, Pace: time.Second},
			}))
			streams += count / 2
		}
	}
	count := 40
	if os.Getenv("SARU_ROUNDS") != "" {
		count = 300
	}
	open(count)
	time.Sleep(3 * time.Second) // mirrored
	if n := fleet.Count(load.Cut); n > 0 {
		t.Fatalf("%d streams do not even begin", n)
	}
	n := rounds(t, 10)
	for round := range n {
		rng := rand.New(rand.NewPCG(seed+uint64(round), 7))
		f, i, length := farmFaults[rng.IntN(len(farmFaults))], rng.IntN(len(a.saru)), time.Duration(50+rng.IntN(2500))*time.Millisecond
		begin := time.Now()
		f.do(a, i, length)
		ownAll(t, 3*readyLimit, a.saru...)
		t.Logf("round %d, seed %d: %s on %s for %v; whole again %v after its beginning; %d streams run, %d are cut", round, seed+uint64(round), f.name,
			a.farm.Directors[i].Name, length, time.Since(begin).Round(time.Millisecond), fleet.Count(load.Running), fleet.Count(load.Cut))
	}
	time.Sleep(2 * time.Second)
	packets, twice := a.seen.twice()
	cut := fleet.Count(load.Cut)
	t.Logf("RESULT single owner: %d rounds of faults, %d streams: %d packets taken by IPVS, %d by two directors; %d streams cut", n, streams, packets, len(twice), cut)
	if len(twice) > 0 {
		t.Errorf("%d packets were taken by two directors, the first %s", len(twice), twice[0])
	}
	if packets < streams {
		t.Errorf("the witnesses have seen %d packets of %d streams: they show nothing", packets, streams)
	}
	if cut > 0 {
		for _, d := range fleet.Downloads() {
			if d.State == load.Cut {
				t.Errorf("a stream is cut (%s): %+v", d.Why, d)
			}
		}
	}
}
