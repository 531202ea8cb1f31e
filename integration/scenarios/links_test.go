package scenarios

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
)

// steadyRate is the load, in connections a second on each of two directors, of scenarios in which something else is looked at.
const steadyRate = 100

// silent is how long a link must be silent here to be called so: ten heartbeats.
const silent = time.Second

// heardOn waits until a director hears its only peer on some links and has not heard it for a while on the others.
func (s *daemon) heardOn(t *testing.T, links map[farm.Segment]bool) {
	t.Helper()
	eventually(t, readyLimit, func() string {
		st := s.ask(t)
		if len(st.Peers) != 1 || len(st.Peers[0].Links) != len(links) {
			return fmt.Sprintf("%s has peers %+v", s.node.Name, st.Peers)
		}
		for _, l := range st.Peers[0].Links {
			heard := l.LastHeardMS != control.Never && l.LastHeardMS < silent.Milliseconds()
			if want, known := links[farm.Segment(l.Interface)]; !known || heard != want {
				return fmt.Sprintf("%s: heard on %s: %v, want %v (%+v)", s.node.Name, l.Interface, heard, want, st.Peers[0])
			}
		}
		return ""
	})
}

// nothingLacks fails unless every director has all connections a second after the load has ended.
func nothingLacks(t *testing.T, f *farm.Farm, c *churn, what string) {
	t.Helper()
	stopped := time.Now()
	time.Sleep(time.Second)
	total, missing, stale, at := shortfall(t, f.Directors, c.keys(span{0, c.next}))
	t.Logf("RESULT %s: of %d entries %d missing and %d stale at the other directors %v after the load",
		what, total, missing, stale, at.Sub(stopped).Round(100*time.Millisecond))
	if total != c.next || missing+stale > 0 {
		t.Errorf("%s: %d entries, want %d; %d missing, %d stale", what, total, c.next, missing, stale)
	}
}

// TestRedundantLinks: with two interfaces nothing is lost, and nothing has to be repaired, while either is silent, has no carrier, or is
// deleted and comes back as another one; and the status shows which it is.
func TestRedundantLinks(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 2, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	d1, d2 := f.Directors[0], f.Directors[1]
	c := newChurn(t, f.Directors...)
	daemons := startSyncds(t, f.Directors, "--interface", string(farm.Inside))
	both := func(how string) {
		t.Helper()
		for _, s := range daemons {
			s.heardOn(t, map[farm.Segment]bool{farm.Sync: true, farm.Inside: true})
		}
		for _, s := range daemons {
			if p := s.ask(t).Peers[0]; p.GivenUp != 0 || p.Lost {
				t.Errorf("%s: %s has %+v", how, s.node.Name, p)
			}
		}
		t.Logf("%s: both links are heard again", how)
	}
	both("at first")
	before := countersOf(t, daemons)
	stop := c.start(t, steadyRate)

	for _, x := range []struct {
		name    string
		segment farm.Segment
		cut     func() error
		mend    func() error
		deaf    []int // directors that do not hear the segment meanwhile
	}{
		{"packets are lost on the way to d2", farm.Sync, func() error { return d2.Impair(farm.Sync, "loss 100%") }, func() error { return d2.Impair(farm.Sync, "") }, []int{1}},
		{"cable pulled at d1", farm.Inside, func() error { return d1.SetLink(farm.Inside, false) }, func() error { return d1.SetLink(farm.Inside, true) }, []int{0, 1}},
		{"interface of d1 set down", farm.Sync, func() error {
			_, err := d1.Run("ip", "link", "set", string(farm.Sync), "down")
			return err
		}, func() error {
			_, err := d1.Run("ip", "link", "set", string(farm.Sync), "up")
			return err
		}, []int{0, 1}},
	} {
		must(t, x.cut())
		for i, s := range daemons {
			links := map[farm.Segment]bool{farm.Sync: true, farm.Inside: true}
			links[x.segment] = !slices.Contains(x.deaf, i)
			s.heardOn(t, links)
		}
		must(t, x.mend())
		both(x.name)
	}
	must(t, d2.RenewLink(farm.Sync))
	must(t, daemons[1].WaitFor("interface joined again interface="+string(farm.Sync), readyLimit))
	both("interface of d2 deleted and made anew")

	rate := stop()
	nothingLacks(t, f, c, fmt.Sprintf("links cut one after the other at %.0f connections/s", rate))
	after := countersOf(t, daemons)
	for _, name := range []string{"repair_requests", "repair_gone", "drop_forged", "drop_replayed", "drop_unsigned"} {
		if n := after[name] - before[name]; n != 0 {
			t.Errorf("%s is %d", name, n)
		}
	}
	out, err := d1.Run("saructl", "sync", "peers", "--control", controlSocket)
	must(t, err)
	t.Logf("saructl sync peers:\n%s", out)
}

// configFile is read by every syncd where it is present.
const configFile = "/etc/saru/syncd.conf"

// TestRotation: a farm goes from unsigned messages to signed ones, and from one key to another, by SIGHUP under load: nothing is lost
// and nothing is refused on the way.
func TestRotation(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 2, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
		must(t, d.WriteFile(configFile, []byte("auth receive-only\n"), 0o600))
	}
	c := newChurn(t, f.Directors...)
	daemons := startSyncds(t, f.Directors)
	text, err := f.Directors[0].ReadFile(keyFile)
	must(t, err)
	first := string(text)
	second, err := f.Directors[0].Run("saructl", "genkey", "--id", "2")
	must(t, err)
	before := countersOf(t, daemons)
	stop := c.start(t, steadyRate)
	for _, step := range []struct{ auth, keys, name string }{
		{"permissive", first, "signing, unsigned accepted"},
		{"enforce", first, "signed only"},
		{"enforce", first + second, "both keys, the old one signs"},
		{"enforce", second + first, "both keys, the new one signs"},
		{"enforce", second, "the new key alone"},
	} {
		for _, s := range daemons {
			must(t, s.node.WriteFile(configFile, []byte("auth "+step.auth+"\n"), 0o600))
			must(t, s.node.WriteFile(keyFile, []byte(step.keys), 0o600))
			reloads := strings.Count(s.Output(), "info reloaded")
			must(t, s.Signal(unix.SIGHUP))
			eventually(t, readyLimit, func() string {
				if strings.Count(s.Output(), "info reloaded") == reloads {
					return "no reload: " + s.Output()
				}
				return ""
			})
			time.Sleep(300 * time.Millisecond) // some heartbeats and thirty connections between two directors' steps
		}
		t.Logf("%s: %+v", step.name, daemons[0].ask(t).Keys)
	}
	rate := stop()
	nothingLacks(t, f, c, fmt.Sprintf("receive-only, permissive, enforce and a new key under %.0f connections/s", rate))
	after := countersOf(t, daemons)
	raised := map[string]uint64{}
	for name, n := range after {
		if n -= before[name]; n != 0 && (strings.HasPrefix(name, "drop_") || strings.HasPrefix(name, "repair_") || name == "accepted_unsigned") {
			raised[name] = n
		}
	}
	t.Logf("counters raised: %v", raised)
	delete(raised, "accepted_unsigned")
	if len(raised) > 0 {
		t.Errorf("refused or lost on the way: %v", maps.Collect(maps.All(raised)))
	}
	if sent, came := after["sent_records"]-before["sent_records"], after["remote_records"]-before["remote_records"]; sent != came {
		t.Errorf("%d records were sent and %d received", sent, came)
	}
	for _, s := range daemons {
		if k := s.ask(t).Keys; k.Signing != 2 || k.Auth != "enforce" {
			t.Errorf("%s at the end: %+v", s.node.Name, k)
		}
		if p := s.ask(t).Peers; len(p) != 1 || p[0].Lost || p[0].Missing != 0 {
			t.Errorf("%s at the end: %+v", s.node.Name, p)
		}
	}
}
