package scenarios

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/integration/load"
)

// rounds is SARU_ROUNDS, or what a short run does.
func rounds(t testing.TB, short int) int {
	t.Helper()
	v := os.Getenv("SARU_ROUNDS")
	if v == "" {
		return short
	}
	n, err := strconv.Atoi(v)
	must(t, err)
	return n
}

// state is everything of a director that syncd may change: it must be the same after a stop as before the start. Connections
// are not part of it.
func state(t *testing.T, d *farm.Node) map[string]string {
	t.Helper()
	must(t, d.WriteFile("/run/saru/.keep", nil, 0o600)) // as launchSyncd does
	s := map[string]string{}
	must(t, d.Do(func() error {
		return filepath.WalkDir("/proc/sys/net/ipv4/vs", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			text, err := os.ReadFile(name)
			s[name] = string(text)
			return err
		})
	}))
	if len(s) < 20 {
		t.Fatalf("%d IPVS sysctls", len(s))
	}
	out, err := d.Run("sh", "-c", `for c in "ip -br link" "ip -br address" "ip route" "ip rule" "nft -s list ruleset" "ipvsadm -Sn" "ipvsadm -ln --daemon" "find /run"; do echo "%%$c"; $c; done`)
	must(t, err)
	for part := range strings.SplitSeq(out, "%%") {
		name, text, _ := strings.Cut(part, "\n")
		s[name] += text
	}
	return s
}

// unchanged fails with what differs from an earlier state.
func unchanged(t *testing.T, d *farm.Node, before map[string]string, what string) {
	t.Helper()
	if diff := cmp.Diff(before, state(t, d)); diff != "" {
		t.Errorf("%s: something is left behind (-before +after):\n%s", what, diff)
	}
}

// kill ends a syncd without a chance to clean up.
func (s *daemon) kill(t *testing.T) {
	t.Helper()
	must(t, s.Signal(unix.SIGKILL))
	<-s.Done()
}

// probePort is that of the UDP services which probe uses: one on each director's own address.
const probePort = 5000

// addProbes lets every director take probes.
func addProbes(t *testing.T, f *farm.Farm) {
	t.Helper()
	for _, d := range f.Directors {
		var b strings.Builder
		for _, at := range f.Directors {
			v := netip.AddrPortFrom(at.Addr(farm.Front), probePort)
			fmt.Fprintf(&b, "-A -u %v -s rr\n-a -u %v -r %v -m\n", v, v, netip.AddrPortFrom(f.RealServers[0].Addr(farm.Inside), probePort))
		}
		_, err := d.RunInput(b.String(), "ipvsadm", "-R")
		must(t, err)
	}
}

// probe makes a UDP connection through one director and returns its client: the kernel reports it at its first packet.
func probe(t *testing.T, f *farm.Farm, through *farm.Node) netip.AddrPort {
	t.Helper()
	var local netip.AddrPort
	must(t, f.Clients[0].Do(func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(through.Addr(farm.Front), probePort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if local, err = netip.ParseAddrPort(c.LocalAddr().String()); err != nil {
			return err
		}
		_, err = c.Write([]byte("probe"))
		return err
	}))
	return local
}

// waitEntry waits until a director's kernel has an entry of the client.
func waitEntry(t *testing.T, d *farm.Node, client netip.AddrPort, state string) {
	t.Helper()
	eventually(t, readyLimit, func() string {
		all := kernelConns(t, d)
		for _, c := range all {
			if c.Client == client && c.State == state {
				return ""
			}
		}
		return fmt.Sprintf("%s has no entry of %v in state %s among %d", d.Name, client, state, len(all))
	})
}

// mirrorsBothWays proves that what happens on each director comes to the kernel of the other.
func mirrorsBothWays(t *testing.T, f *farm.Farm) {
	t.Helper()
	d1, d2 := f.Directors[0], f.Directors[1]
	from1, from2 := probe(t, f, d1), probe(t, f, d2)
	waitEntry(t, d2, from1, "UDP")
	waitEntry(t, d1, from2, "UDP")
}

// traffic are downloads that run until the test ends.
type traffic struct {
	*load.Fleet
	launch func(name string, s farm.Service, count int)
}

func startTraffic(t *testing.T, f *farm.Farm, each int) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	x := &traffic{Fleet: load.NewFleet()}
	x.launch = func(name string, s farm.Service, count int) {
		must(t, x.Launch(ctx, load.Job{Name: name, Host: f.Clients[0], Target: s.VIPPort(), Count: count,
			Order: load.Order{Seed: 11, Bytes: 10_000_000, Chunk: 500, Pace: 200 * time.Millisecond}}))
	}
	t.Cleanup(func() {
		cancel()
		limit, end := context.WithTimeout(context.Background(), readyLimit)
		defer end()
		must(t, x.Wait(limit))
	})
	x.launch("nat", services[0], each)
	x.launch("dr", services[1], each)
	return x
}

// unharmed proves that every download runs and goes on.
func (x *traffic) unharmed(t *testing.T, what string) {
	t.Helper()
	before := map[netip.AddrPort]int{}
	for _, d := range x.Downloads() {
		before[d.Local] = d.Bytes
	}
	eventually(t, readyLimit, func() string {
		for _, d := range x.Downloads() {
			if d.State != load.Running {
				t.Fatalf("%s: a download by %s is %v (%s) after %d bytes", what, d.Job, d.State, d.Why, d.Bytes)
			}
			if d.Bytes <= before[d.Local] {
				return fmt.Sprintf("%s: a download by %s stands still at %d bytes", what, d.Job, d.Bytes)
			}
		}
		return ""
	})
}

// TestKillAndRestart: no transfer notices that syncd is killed and started again, and the tap works again without manual steps.
func TestKillAndRestart(t *testing.T) {
	f := farm.New(t, basic)
	serve(t, f)
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	addProbes(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]
	before := map[*farm.Node]map[string]string{d1: state(t, d1), d2: state(t, d2)}
	daemons := startSyncds(t, f.Directors)
	must(t, d1.TakeVIP())
	down := startTraffic(t, f, 15)
	mirrorsBothWays(t, f)

	for i := range rounds(t, 3) {
		who := i / 2 % 2 // the active director twice in a row, then the other
		what := fmt.Sprintf("round %d, SIGKILL of %s", i+1, daemons[who].node.Name)
		daemons[who].kill(t)
		daemons[who] = startSyncd(t, daemons[who].node, "")
		out := daemons[who].Output()
		for _, want := range []string{"kernel thread found state=master", "kernel thread found state=backup", "reattached=true"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the log does not say %q:\n%s", what, want, out)
			}
		}
		mirrorsBothWays(t, f)
		down.launch(what, services[0], 1)
		all := down.Downloads()
		waitEntry(t, d2, all[len(all)-1].Local, "ESTABLISHED")
		down.unharmed(t, what)
	}

	// At any moment of a start, and of a stop.
	random := rand.New(rand.NewPCG(2, 1))
	daemons[0].kill(t)
	for i := range rounds(t, 6) {
		daemons[0] = launchSyncd(t, d1, "")
		wait := time.Duration(random.Int64N(int64(1200 * time.Millisecond)))
		what := fmt.Sprintf("SIGKILL %v after the start", wait)
		if i%2 == 1 {
			must(t, daemons[0].WaitFor("info started", readyLimit))
			wait /= 3
			what = fmt.Sprintf("SIGKILL %v after SIGTERM", wait)
			must(t, daemons[0].Signal(unix.SIGTERM))
		}
		select {
		case <-time.After(wait):
		case <-daemons[0].Done():
		}
		t.Log(what)
		daemons[0].Signal(unix.SIGKILL) // it may have ended
		<-daemons[0].Done()
		down.unharmed(t, what)
	}
	daemons[0] = startSyncd(t, d1, "")
	mirrorsBothWays(t, f)
	down.unharmed(t, "at the end")
	for _, s := range daemons {
		s.stopSyncd(t)
	}
	down.unharmed(t, "after the stop")
	must(t, d1.DropVIP()) // the address is no part of the state
	for d, s := range before {
		unchanged(t, d, s, d.Name+" after kills and a stop")
	}
}

// TestNothingLeft: after a stop everything is as before, also when syncd was killed in between; and by --cleanup alone.
func TestNothingLeft(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 1, RealServers: 1, Clients: 1, SyncSegment: true})
	d := f.Directors[0]
	addProbes(t, f)
	must(t, d.Sysctl("net/ipv4/vs/sync_threshold", "5 70")) // an operator's own
	must(t, d.WriteFile(keyFile, []byte(genkey(t, d)), 0o600))
	before := state(t, d)
	random := rand.New(rand.NewPCG(3, 1))
	cleanup := func(t *testing.T) {
		t.Helper()
		p, err := d.Start("syncd", append(syncdArgs(d), "--cleanup")...)
		must(t, err)
		if err := p.Wait(); err != nil {
			t.Errorf("--cleanup: %v\n%s", err, p.Output())
		}
	}
	start := func(t *testing.T, args ...string) *daemon {
		t.Helper()
		s := launchSyncd(t, d, "", args...)
		must(t, s.WaitFor("info started", readyLimit))
		return s
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"cleanup of nothing", cleanup},
		{"stop", func(t *testing.T) { start(t).stopSyncd(t) }},
		{"kill, start, stop", func(t *testing.T) {
			start(t).kill(t)
			start(t).stopSyncd(t)
		}},
		{"kill, cleanup, cleanup", func(t *testing.T) {
			start(t).kill(t)
			cleanup(t)
			unchanged(t, d, before, "cleanup")
			cleanup(t)
		}},
		{"kill in the start, cleanup", func(t *testing.T) {
			for range rounds(t, 3) {
				s := launchSyncd(t, d, "")
				wait := time.Duration(random.Int64N(int64(time.Second)))
				select {
				case <-time.After(wait):
				case <-s.Done():
					t.Fatalf("syncd ended: %s", s.Output())
				}
				s.kill(t)
				cleanup(t)
				unchanged(t, d, before, fmt.Sprintf("kill %v after the start, cleanup", wait))
			}
		}},
		{"kill in the stop, cleanup", func(t *testing.T) {
			for range rounds(t, 3) {
				s := start(t)
				must(t, s.Signal(unix.SIGTERM))
				wait := time.Duration(random.Int64N(int64(400 * time.Millisecond)))
				select {
				case <-time.After(wait):
				case <-s.Done():
				}
				s.Signal(unix.SIGKILL) // it may have ended
				<-s.Done()
				cleanup(t)
				unchanged(t, d, before, fmt.Sprintf("SIGTERM, kill %v later, cleanup", wait))
			}
		}},
		{"cleanup beside a living one", func(t *testing.T) {
			s := start(t)
			running := state(t, d)
			p, err := d.Start("syncd", append(syncdArgs(d), "--cleanup")...)
			must(t, err)
			if p.Wait() == nil || p.ExitCode() != 1 || strings.Count(p.Output(), "\n") != 1 {
				t.Errorf("--cleanup beside a living syncd: exit %d\n%s", p.ExitCode(), p.Output())
			}
			unchanged(t, d, running, "refused --cleanup")
			s.stopSyncd(t)
		}},
		{"a second syncd", func(t *testing.T) {
			for _, first := range [][]string{nil, {"--sysctl", "off"}} {
				s := start(t, first...)
				running := state(t, d)
				for _, args := range [][]string{nil, {"--control", "/run/saru/other.sock"}} {
					second := launchSyncd(t, d, "", args...)
					if err := second.Wait(); err == nil || second.ExitCode() <= 0 {
						t.Errorf("a second syncd with %v: exit %d, %v", args, second.ExitCode(), err)
					}
					unchanged(t, d, running, fmt.Sprintf("a second syncd with %v beside one with %v", args, first))
				}
				s.stopSyncd(t)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := probe(t, f, d)
			waitEntry(t, d, client, "UDP")
			c.do(t)
			unchanged(t, d, before, c.name)
			waitEntry(t, d, client, "UDP") // connections stay
		})
	}
}
