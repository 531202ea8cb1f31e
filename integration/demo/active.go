package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

// The story of the active farm: three directors share one address and one MAC address, and all of them work. One is killed, one drained, one rolled.
const (
	activeName      = "saru and syncd, all active"
	activeDownloads = 60
	activePace      = 500 * time.Millisecond
	activeLast      = 75 * time.Second
	saruSocket      = "/run/saru/saru.sock"
	wholeLimit      = 60 * time.Second // until a farm is whole again, in an emulated guest
)

// activeTimers are ten times saru's defaults: the guest is emulated, and three directors share two processors.
var activeTimers = []string{"--keepalive", "1s", "--warntime", "2500ms", "--deadtime", "5s", "--lease", "3s", "--start_delay", "20s"}

// active is the state of the telling.
type active struct {
	*teller
	sync  *syncdMirror
	sarus map[string]*farm.Process
}

// tellActive tells it, and returns how many downloads there were and how many were cut.
func tellActive(ctx context.Context, s *screen) (all, cut int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*runLimit)
	defer cancel()
	f, err := farm.Start(farm.Spec{
		Name: "demo-active", Directors: 3, RealServers: 2, Clients: 2, SyncSegment: true, DirectReturn: true, SharedMAC: true,
		BeforeLinks: func(n *farm.Node) error { // closed from boot on
			_, err := n.Run("saru", "--close", "--virtual", farm.VIP.String(), "--inside", string(farm.Inside))
			return err
		},
	})
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for _, r := range f.RealServers {
		for _, port := range []uint16{natPort, drPort} {
			srv, err := load.Serve(r, port)
			if err != nil {
				return 0, 0, err
			}
			defer srv.Close()
		}
	}
	a := &active{
		teller: &teller{screen: s, farm: f, fleet: load.NewFleet(), began: time.Now()}, sync: &syncdMirror{}, sarus: map[string]*farm.Process{},
	}
	fleetCtx, end := context.WithCancel(ctx)
	defer func() {
		end()
		a.fleet.Wait(context.Background()) //nolint:errcheck // cannot fail without a limit
	}()
	s.say("")
	s.say("=== %s: %v on d1, d2 and d3, which have one MAC address", activeName, farm.VIP)
	stop := s.follow(a.line)
	defer stop()
	if err := a.tell(ctx, fleetCtx); err != nil {
		return 0, 0, err
	}
	return activeDownloads, a.fleet.Count(load.Cut), nil
}

func (a *active) tell(ctx, fleetCtx context.Context) error {
	d := a.farm.Directors
	for _, n := range d {
		if err := a.raise(n); err != nil {
			return err
		}
	}
	a.began = time.Now()
	steps := []struct {
		text string
		do   func() error
	}{
		{"the three directors divide 4096 buckets between them", nil},
		{fmt.Sprintf("%d downloads begin; each director carries its share", activeDownloads), func() error { return a.downloads(fleetCtx) }},
		{"POWER CUT: d1 is gone, with all its processes", d[0].PowerOff},
		{"d1 comes back, empty, and joins", func() error {
			if err := d[0].PowerOn(); err != nil {
				return err
			}
			return a.raise(d[0])
		}},
		{"d2 is drained: saructl drain d2", func() error { return a.order(d[1], "drain") }},
		{"d2 takes part again: saructl undrain d2", func() error { return a.order(d[1], "undrain") }},
		{"d3's saru is stopped in good order, and started again", func() error {
			p := a.sarus[d[2].Name]
			if err := p.Signal(syscall.SIGTERM); err != nil {
				return err
			}
			if err := p.Wait(); err != nil {
				return err
			}
			return a.saru(d[2])
		}},
	}
	for _, step := range steps {
		a.event("%s", step.text)
		if step.do != nil {
			if err := step.do(); err != nil {
				return err
			}
		}
		if err := a.whole(ctx); err != nil {
			return err
		}
		a.showMap()
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	if err := a.fleet.Wait(ctx); err != nil {
		return err
	}
	a.event("all downloads have ended: %d complete, %d cut", activeDownloads-a.fleet.Count(load.Cut), a.fleet.Count(load.Cut))
	return nil
}

// raise brings up a director, which is closed: services, syncd, saru.
func (a *active) raise(n *farm.Node) error {
	if err := n.AddServices(farm.Service{Port: natPort, Method: farm.NAT}, farm.Service{Port: drPort, Method: farm.DR}); err != nil {
		return err
	}
	if err := a.sync.start(n, false); err != nil {
		return err
	}
	return a.saru(n)
}

func (a *active) saru(n *farm.Node) error {
	args := append([]string{
		"--node", n.Name, "--interface", string(farm.Sync), "--interface", string(farm.Front), "--key_file", keyFile, "--log_facility", "-",
		"--control", saruSocket, "--syncd", socket, "--virtual", farm.VIP.String(), "--inside", string(farm.Inside),
	}, activeTimers...)
	p, err := n.Start("saru", args...)
	a.sarus[n.Name] = p
	return err
}

func (a *active) order(n *farm.Node, verb string) error {
	out, err := n.Run("saructl", verb, "--control", saruSocket)
	if err != nil {
		return fmt.Errorf("saructl %s on %s: %w: %s", verb, n.Name, err, out)
	}
	return nil
}

// downloads opens all downloads, half by NAT, half by DR.
func (a *active) downloads(ctx context.Context) error {
	for j, port := range []uint16{natPort, drPort} {
		err := a.fleet.Launch(ctx, load.Job{
			Name: fmt.Sprintf("active/%d", port), Host: a.farm.Clients[j], Target: farm.Service{Port: port}.VIPPort(), Count: activeDownloads / 2,
			Every: 20 * time.Millisecond, Stall: stall,
			Order: load.Order{Seed: uint64(9000 + 500*j), Chunk: chunk, Bytes: chunk * int(activeLast/activePace), Pace: activePace},
		})
		if err != nil {
			return err
		}
	}
	return pause(ctx, 3*time.Second) // mirrored
}

// share is what a director says of itself.
type share struct {
	State   string `json:"state"`
	Buckets struct {
		Owned, Open int
	} `json:"buckets"`
	Members []struct {
		Node  string
		State string
		Owned int
	} `json:"members"`
}

func (a *active) ask(n *farm.Node) (s share, err error) {
	out, err := n.Run("sh", "-c", "saructl status --json --control "+saruSocket+"; true")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// whole waits until all directors that are on hold all buckets between them.
func (a *active) whole(ctx context.Context) error {
	for end := time.Now().Add(wholeLimit); ; {
		open := 0
		for _, n := range a.farm.Directors {
			if s, err := a.ask(n); err == nil {
				open += s.Buckets.Open
			} else if errors.Is(err, farm.ErrOff) {
				continue
			}
		}
		if open == 4096 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("only %d of 4096 buckets are open after %v", open, wholeLimit)
		}
		if err := pause(ctx, readyPoll); err != nil {
			return err
		}
	}
}

// showMap shows who owns which bucket, as saructl draws it.
func (a *active) showMap() {
	for _, n := range a.farm.Directors {
		out, err := n.Run("saructl", "buckets", "--map", "--control", saruSocket)
		if err != nil {
			continue
		}
		for line := range strings.Lines(out) {
			a.screen.say("      %s", strings.TrimRight(line, "\n"))
		}
		return
	}
}

// line is the state in one line.
func (a *active) line() string {
	var shares []string
	for _, n := range a.farm.Directors {
		text := "off"
		if s, err := a.ask(n); err == nil {
			text = fmt.Sprintf("%s %d", s.State, s.Buckets.Open)
		}
		shares = append(shares, n.Name+": "+text)
	}
	running, done, cut := a.fleet.Count(load.Running), a.fleet.Count(load.Done), a.fleet.Count(load.Cut)
	return fmt.Sprintf("%5.1f s  %-60s %s %d run, %d done, %d cut", time.Since(a.began).Seconds(), strings.Join(shares, "  "),
		bar(running, done, cut, activeDownloads), running, done, cut)
}
