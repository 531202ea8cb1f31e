package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

const (
	natPort = 80
	drPort  = 81
	chunk   = 1200 // below the segment size: one packet, acknowledged by one
	stall   = 14 * time.Second
)

// group is a number of downloads of one kind.
type group struct {
	name  string
	count int // half by NAT, half by DR
	pace  time.Duration
	last  time.Duration // how long each runs undisturbed
	every time.Duration // between two starts
}

// The groups, by when they are opened. All but the finished ones are still
// running when the second director loses power; the slow ones send fewer than
// 50 packets between the return of the first director and that moment, the
// fast ones more: at its defaults the kernel sends a connection at its third
// client packet and then at every fiftieth.
var groups = []group{
	{name: "on d1, slow", count: 80, pace: time.Second, last: 58 * time.Second, every: 40 * time.Millisecond},
	{name: "on d1, fast", count: 30, pace: 200 * time.Millisecond, last: 55 * time.Second, every: 40 * time.Millisecond},
	{name: "on d1, 1 s before it is cut off", count: 10, pace: time.Second, last: 50 * time.Second, every: 20 * time.Millisecond},
	{name: "on d2, while d1 is away", count: 70, pace: time.Second, last: 40 * time.Second, every: 40 * time.Millisecond},
	{name: "on d2, 1 s before it is cut off", count: 10, pace: time.Second, last: 14 * time.Second, every: 20 * time.Millisecond},
}

func total() int {
	n := 0
	for _, g := range groups {
		n += g.count
	}
	return n
}

// Times of the story.
const (
	settle   = 4 * time.Second  // the kernel's own mirror lags 2 to 3 s: it is given the time
	fresh    = time.Second      // between the last group and the power cut
	detect   = time.Second      // until the other director notices (keepalived's default: 3 s)
	regain   = 4 * time.Second  // traffic finds its pace again
	learning = 16 * time.Second // for the returned director: more than the refresh period of 10 s and the lag
	runLimit = 3 * time.Minute
)

// result is what became of the downloads of one telling.
type result struct {
	mirror    mirror
	second    time.Time // when the second director lost power
	downloads []load.Download
	learned   int // entries that the returned director had before the second cut
	alive     int // downloads that ran at that moment
}

func (r *result) cut() int { return r.count(func(load.Download) bool { return true }) }

// count counts the cut downloads that match.
func (r *result) count(match func(load.Download) bool) int {
	n := 0
	for _, d := range r.downloads {
		if d.State == load.Cut && match(d) {
			n++
		}
	}
	return n
}

// first tells that a cut download was lost at the first fail-over: it heard
// nothing any more well before the second. (With DR, data still comes until
// the client's acknowledgement is answered by a reset.)
func (r *result) first(d load.Download) bool { return d.Last.Before(r.second.Add(-3 * time.Second)) }

// teller is the state of one telling.
type teller struct {
	screen *screen
	mirror mirror
	farm   *farm.Farm
	fleet  *load.Fleet
	began  time.Time
	active string
}

// tell tells the story once.
func tell(ctx context.Context, s *screen, m mirror) (_ *result, err error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	f, err := farm.Start(farm.Spec{Name: "demo-" + strings.NewReplacer(", ", "-", " ", "-").Replace(m.name()), Directors: 2, RealServers: 2, Clients: 2, SyncSegment: true, DirectReturn: true})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, r := range f.RealServers {
		for _, port := range []uint16{natPort, drPort} {
			srv, err := load.Serve(r, port)
			if err != nil {
				return nil, err
			}
			defer srv.Close()
		}
	}
	t := &teller{screen: s, mirror: m, farm: f, fleet: load.NewFleet(), began: time.Now(), active: "d1"}
	// Downloads must not outlive the telling.
	fleetCtx, end := context.WithCancel(ctx)
	defer func() {
		end()
		t.fleet.Wait(context.Background()) //nolint:errcheck // cannot fail without a limit
	}()
	stop := s.follow(t.status)
	defer stop()
	return t.tell(ctx, fleetCtx)
}

func (t *teller) tell(ctx, fleetCtx context.Context) (*result, error) {
	r := &result{mirror: t.mirror}
	d1, d2 := t.farm.Directors[0], t.farm.Directors[1]
	t.screen.say("")
	t.screen.say("=== %s", t.mirror.name())
	for _, d := range t.farm.Directors {
		if err := t.raise(d, d == d1); err != nil {
			return nil, err
		}
	}
	if err := d1.TakeVIP(); err != nil {
		return nil, err
	}
	for _, line := range t.mirror.about() {
		t.screen.say("  %s", line)
	}
	t.began = time.Now()

	t.event("d1 has the VIP; %d downloads begin", groups[0].count+groups[1].count)
	if err := t.launch(fleetCtx, 0, 1); err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	if err := t.launch(fleetCtx, 2); err != nil {
		return nil, err
	}
	if err := pause(ctx, fresh); err != nil {
		return nil, err
	}
	if err := t.failOver(ctx, d1, d2); err != nil {
		return nil, err
	}
	if err := pause(ctx, regain); err != nil {
		return nil, err
	}
	t.event("%d more downloads begin on d2", groups[3].count)
	if err := t.launch(fleetCtx, 3); err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	t.event("d1 comes back, empty")
	if err := d1.PowerOn(); err != nil {
		return nil, err
	}
	if err := t.raise(d1, false); err != nil {
		return nil, err
	}
	t.event("d1 is ready, and has %v to learn", learning)
	if err := pause(ctx, learning); err != nil {
		return nil, err
	}
	if err := t.launch(fleetCtx, 4); err != nil {
		return nil, err
	}
	if err := pause(ctx, fresh); err != nil {
		return nil, err
	}
	var err error
	if r.learned, err = connections(d1); err != nil {
		return nil, err
	}
	r.alive = t.fleet.Count(load.Running)
	t.event("d1 knows %d connections; %d downloads run", r.learned, r.alive)
	r.second = time.Now()
	if err := t.failOver(ctx, d2, d1); err != nil {
		return nil, err
	}
	if err := t.fleet.Wait(ctx); err != nil {
		return nil, err
	}
	r.downloads = t.fleet.Downloads()
	t.event("all downloads have ended: %d complete, %d cut", total()-r.cut(), r.cut())
	return r, nil
}

// raise configures a director that has just been switched on.
func (t *teller) raise(d *farm.Node, active bool) error {
	err := d.AddServices(farm.Service{Port: natPort, Method: farm.NAT}, farm.Service{Port: drPort, Method: farm.DR})
	if err != nil {
		return err
	}
	return t.mirror.start(d, active)
}

// failOver cuts one director off and gives the VIP to the other.
func (t *teller) failOver(ctx context.Context, from, to *farm.Node) error {
	t.event("POWER CUT: %s is gone, with all its processes", from.Name)
	t.active = "nobody"
	if err := from.PowerOff(); err != nil {
		return err
	}
	if err := pause(ctx, detect); err != nil {
		return err
	}
	if err := to.TakeVIP(); err != nil {
		return err
	}
	t.active = to.Name
	t.event("%s takes the VIP", to.Name)
	return t.mirror.promote(to)
}

// launch opens the downloads of some groups, each half by NAT, half by DR,
// from both clients.
func (t *teller) launch(ctx context.Context, which ...int) error {
	for _, i := range which {
		g := groups[i]
		for j, part := range []struct {
			how  string
			port uint16
		}{{"NAT", natPort}, {"DR", drPort}} {
			err := t.fleet.Launch(ctx, load.Job{
				Name: g.name + "/" + part.how, Host: t.farm.Clients[(i+j)%len(t.farm.Clients)],
				Target: farm.Service{Port: part.port}.VIPPort(), Count: g.count / 2, Every: g.every, Stall: stall,
				Order: load.Order{Seed: uint64(1000*i + 500*j + 1), Chunk: chunk, Bytes: chunk * int(g.last/g.pace), Pace: g.pace},
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *teller) event(format string, args ...any) {
	t.screen.say("%5.1f s  %s", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// status is the live line.
func (t *teller) status() string {
	var running, done, cut, bytes int
	for _, d := range t.fleet.Downloads() {
		bytes += d.Bytes
		switch d.State {
		case load.Running:
			running++
		case load.Done:
			done++
		case load.Cut:
			cut++
		case load.Waiting:
		}
	}
	return fmt.Sprintf("%5.1f s    active: %-6s  %s %3d running  %3d done  %3d cut  %6.1f MB", time.Since(t.began).Seconds(), t.active,
		bar(running, done, cut, total()), running, done, cut, float64(bytes)/1e6)
}

// connections counts the TCP entries of a director.
func connections(d *farm.Node) (int, error) {
	proc, err := d.Proc()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(proc + "/net/ip_vs_conn")
	if err != nil {
		return 0, fmt.Errorf("connections of %s: %w", d.Name, err)
	}
	return bytes.Count(text, []byte("ESTABLISHED")), nil
}

// pause waits, or not if the telling is over.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
