package scenarios

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/lib/ipvs"
	"saru/proto/ipvssync"
)

// comparison is what `saructl sync compare --json` says.
type comparison struct {
	differences []control.Difference
	summary     control.CompareSummary
	took        time.Duration
}

// tryCompare runs `saructl sync compare`, whose exit status must be 0 if and only if it says that everything is equal.
func (s *daemon) tryCompare() (c comparison, err error) {
	began := time.Now()
	out, bad := s.node.Run("saructl", "sync", "compare", "--json", "--control", controlSocket)
	c.took = time.Since(began)
	ended := false
	for line := range strings.Lines(out) {
		var l control.CompareLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			return c, fmt.Errorf("saructl sync compare --json says %q: %w", line, err)
		}
		if l.Difference != nil {
			c.differences = append(c.differences, *l.Difference)
		}
		if l.Summary != nil {
			c.summary, ended = *l.Summary, true
		}
	}
	if !ended || c.summary.Equal != (bad == nil) {
		return c, fmt.Errorf("saructl sync compare on %s: %w, it says:\n%s", s.node.Name, bad, out)
	}
	return c, nil
}

func (s *daemon) compare(t *testing.T) comparison {
	t.Helper()
	c, err := s.tryCompare()
	must(t, err)
	return c
}

// allEqual fails unless all directors say that their kernel, their table and those of all others are equal.
func allEqual(t *testing.T, what string, daemons []*daemon) {
	t.Helper()
	all := make([]comparison, len(daemons))
	var g errgroup.Group
	for i, s := range daemons {
		g.Go(func() (err error) {
			all[i], err = s.tryCompare()
			return err
		})
	}
	must(t, g.Wait())
	var text []string
	for i, c := range all {
		text = append(text, fmt.Sprintf("%s %d entries in %v", daemons[i].node.Name, c.summary.Kernel.Compared, c.took.Round(100*time.Millisecond)))
		if !c.summary.Equal || len(c.summary.Peers) != len(daemons)-1 {
			t.Errorf("%s: saructl sync compare on %s: %+v\n%+v", what, daemons[i].node.Name, c.summary, c.differences)
		}
	}
	t.Logf("RESULT %s: saructl sync compare on every director: %s", what, strings.Join(text, ", "))
}

// byHand enters records into a director's kernel behind syncd's back, as root can: by messages to the backup thread that claim to come
// from syncd's end of the tap.
func byHand(t *testing.T, d *farm.Node, records ...ipvssync.Record) {
	t.Helper()
	must(t, d.Do(func() error {
		daemons, err := ipvs.OpenDaemons()
		if err != nil {
			return err
		}
		defer daemons.Close()
		running, err := daemons.List()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(running, func(d ipvs.Daemon) bool { return d.State == ipvs.Backup })
		if i < 0 {
			return fmt.Errorf("no backup thread on %s", d.Name)
		}
		link, err := net.InterfaceByName(tapGuard.Device)
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)}); err != nil {
			return err
		}
		for k := range records {
			packet := udpPacket(tapGuard.Peer, tapGuard.Group, stockMessage(t, running[i].SyncID, &records[k]))
			if err := unix.Sendto(s, packet, 0, &unix.SockaddrInet4{Addr: tapGuard.Group.Addr().As4()}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// record is what a director would say of an entry of the churn.
func record(k entry, h held) ipvssync.Record {
	return ipvssync.Record{Protocol: k.protocol, State: ipvssync.TCPEstablished, Flags: ipvssync.FlagDRoute | ipvssync.FlagNoOutput,
		Timeout: 900, Client: k.client, Virtual: k.virtual, Real: h.real}
}

// deletion is the record that ends an entry.
func deletion(k entry, h held) ipvssync.Record {
	r := record(k, h)
	r.State, r.Flags, r.Timeout = ipvssync.TCPClose, r.Flags|ipvssync.FlagInactive, 1
	return r
}

// find reads a director's table once, for some entries.
func find(t *testing.T, d *farm.Node, wanted ...entry) map[entry]held {
	t.Helper()
	found := map[entry]held{}
	for _, c := range kernelConns(t, d) {
		if k := (entry{c.Protocol, c.Client, c.Virtual}); slices.Contains(wanted, k) {
			found[k] = held{c.Real, c.State, c.Synced}
		}
	}
	return found
}

// TestCompare: `saructl sync compare` says equal on a farm under load; with an entry deleted and one altered by hand in one kernel it
// names these two; and the audit mends them.
func TestCompare(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 3, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
		must(t, d.WriteFile(configFile, []byte("audit_interval 0\n"), 0o600)) // nothing is mended yet
	}
	victim := f.Directors[2]
	c := newChurn(t, f.Directors[:2]...)
	daemons := startSyncds(t, f.Directors)
	c.runFor(t, churnRate, time.Second)
	stop := c.start(t, steadyRate)
	eventually(t, readyLimit, func() string {
		if st := daemons[2].ask(t); st.Connections.Remote < 2*churnRate {
			return fmt.Sprintf("%s has %+v", victim.Name, st.Connections)
		}
		return ""
	})
	allEqual(t, "under load", daemons)

	all, _ := survey(t, []*farm.Node{victim})
	// Numbers 2 and 3 modulo 4 stay open.
	keys := c.keys(span{0, 4})
	gone, other := keys[2], keys[3]
	changed := all[0][other]
	for _, r := range f.RealServers {
		if at := netip.AddrPortFrom(r.Addr(farm.Inside), drPort); at != all[0][other].real {
			changed.real = at
		}
	}
	byHand(t, victim, deletion(gone, all[0][gone]), record(other, changed))
	eventually(t, readyLimit, func() string {
		now := find(t, victim, gone, other)
		if _, still := now[gone]; still || now[other].real != changed.real {
			return fmt.Sprintf("the kernel of %s has %v: %v, and %+v", victim.Name, gone, still, now[other])
		}
		return ""
	})
	found := daemons[2].compare(t)
	var names []string
	for _, d := range found.differences {
		names = append(names, fmt.Sprintf("%s %s %s %s", d.With, d.Kind, d.Client, d.Virtual))
		t.Logf("saructl sync compare on %s: %s %s: %s", victim.Name, d.Client, d.Kind, d.Why)
	}
	slices.Sort(names)
	want := []string{
		fmt.Sprintf("%s %s %v %v", control.WithKernel, control.Differs, other.client, other.virtual),
		fmt.Sprintf("%s %s %v %v", control.WithKernel, control.MissingThere, gone.client, gone.virtual),
	}
	if !slices.Equal(names, want) || found.summary.Equal || found.summary.Kernel.Differ != 2 {
		t.Errorf("saructl sync compare on %s names\n%s\nwant\n%s\n%+v", victim.Name, strings.Join(names, "\n"), strings.Join(want, "\n"), found.summary)
	}
	out, err := victim.Run("saructl", "sync", "compare", "--control", controlSocket)
	if err == nil || !strings.Contains(out, gone.client.String()) || !strings.Contains(out, other.client.String()) {
		t.Errorf("saructl sync compare on %s: %v\n%s", victim.Name, err, out)
	}
	t.Logf("RESULT one entry deleted and one altered by hand: saructl sync compare names both in %v:\n%s", found.took.Round(100*time.Millisecond), out)

	rate := stop()
	must(t, victim.WriteFile(configFile, []byte("audit_interval 10s\n"), 0o600))
	began := time.Now()
	must(t, daemons[2].Signal(unix.SIGHUP))
	eventually(t, auditLimit, func() string {
		now := find(t, victim, gone, other)
		if h, is := now[gone]; !is || h.state != "ESTABLISHED" || now[other].real != all[0][other].real {
			return fmt.Sprintf("the kernel of %s has %v: %v %+v, and %+v", victim.Name, gone, is, h, now[other])
		}
		return ""
	})
	t.Logf("RESULT one entry deleted and one altered by hand: mended %v after audits were switched on", time.Since(began).Round(100*time.Millisecond))
	t.Logf("%d connections at %.0f/s: %+v", c.next, rate, daemons[2].ask(t).KernelAudit)
	allEqual(t, "after the load", daemons)
	out, err = f.Directors[0].Run("saructl", "sync", "compare", "--control", controlSocket)
	must(t, err)
	t.Log(out)
}
