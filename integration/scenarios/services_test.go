package scenarios

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"saru/integration/farm"
)

// active is how many active connections a director's destinations of a TCP service have, as ipvsadm counts them: entries that
// are bound to their real server.
func active(t *testing.T, d *farm.Node, s farm.Service) int {
	t.Helper()
	out, err := d.Run("ipvsadm", "-Ln", "-t", s.VIPPort().String())
	must(t, err)
	n := 0
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "->" && strings.Contains(f[1], "10.0.") {
			a, err := strconv.Atoi(f[4])
			must(t, err)
			n += a
		}
	}
	return n
}

// waitActive waits until so many entries are bound.
func waitActive(t *testing.T, d *farm.Node, s farm.Service, want int) {
	t.Helper()
	eventually(t, readyLimit, func() string {
		if n := active(t, d, s); n != want {
			return fmt.Sprintf("%d of %d entries on %s are bound to their real server", n, want, d.Name)
		}
		return ""
	})
}

// TestServicesComeAndGo: entries that came before their service existed are bound to it once it does; and after `ipvsadm -C` under a
// running syncd the tick's service comes back, mirroring goes on, and what comes back is bound again.
func TestServicesComeAndGo(t *testing.T) {
	f := farm.New(t, basic)
	serve(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]
	must(t, d1.AddServices(services...))
	must(t, d1.TakeVIP())
	daemons := startSyncds(t, f.Directors)
	down := startTraffic(t, f, 8)
	nat, dr := services[0], services[1]
	allHere := func(d *farm.Node) {
		t.Helper()
		for _, x := range down.Downloads() {
			waitEntry(t, d, x.Local, "ESTABLISHED")
		}
	}

	allHere(d2)
	must(t, d2.AddServices(services...))
	waitActive(t, d2, nat, 8)
	waitActive(t, d2, dr, 8)

	// The passive director first.
	tick := netip.MustParseAddrPort("169.254.81.1:8848")
	flush := func(s *daemon) {
		t.Helper()
		_, err := s.node.Run("ipvsadm", "-C")
		must(t, err)
		eventually(t, readyLimit, func() string {
			out, err := s.node.Run("ipvsadm", "-Ln", "-t", tick.String())
			if err != nil {
				return err.Error()
			}
			if !strings.Contains(out, "169.254.81.2:8848") {
				return "the tick's service has no destination:\n" + out
			}
			return ""
		})
		must(t, s.WaitFor("the tick's virtual service was added again", readyLimit))
	}
	flush(daemons[1])
	down.launch("while d2 has no services", nat, 4)
	down.launch("while d2 has no services", dr, 4)
	allHere(d2)
	must(t, d2.AddServices(services...))
	waitActive(t, d2, nat, 12)
	waitActive(t, d2, dr, 12)

	// The other director carries on all of them, and now it is the first that loses its services. (ipvsadm -C on a director that has the
	// VIP ends connections by itself: without a service IPVS is not asked, and the host answers with resets.)
	must(t, d1.DropVIP())
	must(t, d2.TakeVIP())
	down.unharmed(t, "after the take-over")
	flush(daemons[0])
	down.launch("while d1 has no services", nat, 4)
	allHere(d1)
	must(t, d1.AddServices(services...))
	waitActive(t, d1, nat, 16)
	waitActive(t, d1, dr, 12)
	must(t, d2.DropVIP())
	must(t, d1.TakeVIP())
	down.unharmed(t, "after the way back")
}

// TestDropPolicy: a firewall whose input policy is drop keeps the kernel from hearing its own sync threads' messages. Such a director does not
// call itself synced, and flush names it.
func TestDropPolicy(t *testing.T) {
	f := farm.New(t, basic)
	serve(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	addProbes(t, f)
	must(t, d1.TakeVIP())
	const rules = `table inet firewall {
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		iifname "front" accept
		iifname "inside" accept
		iifname "sync" udp dport 8848 accept comment "syncd"
		iifname "sync" tcp dport 8848 accept comment "syncd teaches, as README says"
		iifname "sync" tcp sport 8848 accept
	}
}
`
	_, err := d2.RunInput(rules, "nft", "-f", "-")
	must(t, err)
	keys := genkey(t, d1)
	daemons := []*daemon{launchSyncd(t, d1, keys), launchSyncd(t, d2, keys)}
	daemons[0].waitSynced(t)
	down := startTraffic(t, f, 2)
	// What syncd knows, its kernel does not; whoever looks at the log or the counters learns why.
	quiet := probe(t, f, d1)
	eventually(t, readyLimit, func() string {
		if n := len(daemons[1].connections(t)); n < 5 {
			return fmt.Sprintf("syncd on d2 knows %d of 5 connections", n)
		}
		return ""
	})
	must(t, daemons[1].WaitFor(`iifname \"syncd0\" udp dport 8848 accept`, readyLimit))
	if st := daemons[1].ask(t); st.Counters["input_blocked"] != 1 || st.Synced {
		t.Errorf("input_blocked is not 1, or d2 calls itself synced: %+v", st)
	}
	if sum := daemons[0].flush(t, "all"); sum.Complete || len(sum.Confirmed) != 0 || !slices.Equal(sum.Missing, []string{d2.Name}) {
		t.Errorf("flush on d1, while nothing reaches d2's kernel: %+v", sum)
	}
	if all := kernelConns(t, d2); len(all) > 0 {
		t.Errorf("the kernel has entries although its firewall drops what is injected: %v", all)
	}

	for _, proto := range []string{"tcp", "udp"} { // the rules that the log proposes
		_, err = d2.Run("nft", "add", "rule", "inet", "firewall", "input", "iifname", "syncd0", proto, "dport", "8848", "accept")
		must(t, err)
	}
	must(t, daemons[1].WaitFor("reaches the kernel again", readyLimit))
	daemons[1].waitSynced(t)
	x := probe(t, f, d1)
	waitEntry(t, d2, x, "UDP")
	for _, x := range down.Downloads() {
		waitEntry(t, d2, x.Local, "ESTABLISHED")
	}
	down.unharmed(t, "at the end")
	if st := daemons[1].status(t); st.Counters["input_blocked"] != 0 {
		t.Errorf("input_blocked is not 0: %v", st.Counters)
	}
	// It sends nothing any more: what was lost is injected again.
	waitEntry(t, d2, quiet, "UDP")
	daemons[1].waitSynced(t)
}
