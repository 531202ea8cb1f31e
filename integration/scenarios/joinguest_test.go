package scenarios

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/lib/control"
)

// joinEntries is how many connections the directors have when another one comes; SARU_JOIN_ENTRIES changes it. Below Linux 6.14 reading the
// kernel's list, as the test must, costs the square of the number.
const joinEntries = 20_000

// joinRate makes the transfer to the newcomer last for some seconds, so that it can be interrupted; joinBuffer lets little be on the way
// then, as what a killed teacher has handed to its kernel still arrives.
const (
	joinRate   = "rate 2mbit limit 10000"
	joinBuffer = "4096 16384 32768"
)

// TestJoinKernel: directors with many entries in real kernels teach a newcomer; one of them is killed when half is taught, and another
// one finishes: the newcomer's kernel has every entry, bound to its real server.
func TestJoinKernel(t *testing.T) {
	n := joinEntries
	if v := os.Getenv("SARU_JOIN_ENTRIES"); v != "" {
		var err error
		n, err = strconv.Atoi(v)
		must(t, err)
	}
	f := farm.New(t, farm.Spec{Directors: 3, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
		must(t, d.Sysctl("net/ipv4/tcp_wmem", joinBuffer))
	}
	keys := genkey(t, f.Directors[0])
	newcomer := f.Directors[2]

	// They are in the kernel before syncd is, which then reads them: no load that syncd could not follow in a guest.
	c := newChurn(t, f.Directors[0])
	began := time.Now()
	c.burst(t, 0, n)
	t.Logf("%d connections made in %v", n, time.Since(began).Round(100*time.Millisecond))
	all := map[string]*daemon{}
	join := func(d *farm.Node) (st control.SyncStatus, took time.Duration) {
		t.Helper()
		began := time.Now()
		s := launchSyncd(t, d, keys)
		all[d.Name] = s
		eventually(t, auditLimit, func() string {
			if _, err := s.node.ReadFile(controlSocket); os.IsNotExist(err) {
				return "no control socket"
			}
			if st = s.ask(t); !st.Synced {
				return fmt.Sprintf("%s is not synced: %+v", d.Name, st.Join)
			}
			return ""
		})
		return st, time.Since(began)
	}
	whole := func(d *farm.Node) {
		t.Helper()
		eventually(t, readyLimit, func() string {
			has, _ := survey(t, []*farm.Node{d})
			if a := absent(has[0], c.keys(span{0, n})); a > 0 {
				return fmt.Sprintf("the kernel of %s lacks %d of %d", d.Name, a, n)
			}
			return ""
		})
		waitActive(t, d, churnService, n)
	}
	st, took := join(f.Directors[0])
	t.Logf("%s read its own kernel: synced after %v, %+v", f.Directors[0].Name, took.Round(100*time.Millisecond), st.Connections)
	st, took = join(f.Directors[1])
	t.Logf("RESULT join of %d real kernel entries: synced %v after the start, %+v", n, took.Round(100*time.Millisecond), st.Join)
	whole(f.Directors[1])

	must(t, newcomer.Impair(farm.Sync, joinRate))
	s := launchSyncd(t, newcomer, keys)
	var at control.SyncJoin
	began = time.Now()
	eventually(t, readyLimit, func() string {
		if _, err := s.node.ReadFile(controlSocket); os.IsNotExist(err) {
			return "no control socket"
		}
		if at = s.ask(t).Join; at.State != control.JoinJoining || at.Percent < 40 {
			return fmt.Sprintf("%+v", at)
		}
		return ""
	})
	if at.State != control.JoinJoining || at.Percent > 80 {
		t.Fatalf("the teacher could not be killed half-way: %+v", at)
	}
	first := all[at.Teacher]
	if first == nil {
		t.Fatalf("the teacher is %+v", at)
	}
	first.kill(t)
	killed := time.Now()
	must(t, newcomer.Impair(farm.Sync, ""))
	eventually(t, auditLimit, func() string {
		if st = s.ask(t); !st.Synced {
			return fmt.Sprintf("%+v", st.Join)
		}
		return ""
	})
	t.Logf("RESULT join of %d real kernel entries, teacher %s killed at %d %% (%d of %d): %s finishes; synced %v after the kill, %v after the start: %+v",
		n, at.Teacher, at.Percent, at.Entries, at.Total, st.Join.Teacher,
		time.Since(killed).Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond), st.Join)
	if st.Join.State != control.JoinSynced || st.Join.Teacher == at.Teacher || all[st.Join.Teacher] == nil || st.Join.Attempts < 2 {
		t.Errorf("the newcomer ends with %+v", st.Join)
	}
	if st.Connections.Local+st.Connections.Remote != n {
		t.Errorf("the newcomer's replica has %+v, want %d", st.Connections, n)
	}
	whole(newcomer)
	t.Logf("the kernel of %s has all, bound to their real servers", newcomer.Name)
}
