package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
)

// dropBurst is how many connections are opened while something overflows.
const dropBurst = 500

// auditLimit bounds the time until an audit has found and repaired something: two of the kernel's and one with each peer. These are 10 s
// apart, the kernel's ten times as long as it takes to read its list, which takes seconds where several guests share a host.
const auditLimit = 2 * time.Minute

// ask asks a director's syncd without a process for it, which costs 100 ms in a guest.
func (s *daemon) ask(t testing.TB) control.SyncStatus {
	t.Helper()
	path, err := s.node.Path(controlSocket)
	must(t, err)
	var st control.SyncStatus
	must(t, control.NewClient(path).Get(t.Context(), control.PathSyncStatus, &st))
	return st
}

// fault is a kernel that drops, and the connections of which it dropped the records.
type fault struct {
	name string
	span
	by    []int // directors whose kernels must lack some
	began time.Time
}

// lacks asks the kernels themselves how many connections of each fault they do not have: their lists may leave out some that they have.
func lacks(t *testing.T, directors []*farm.Node, c *churn, faults []fault) [][]int {
	t.Helper()
	var keys []entry
	out := make([][]int, len(faults))
	for i, x := range faults {
		keys = append(keys, c.keys(x.span)...)
		out[i] = make([]int, len(directors))
	}
	found := lookUpOnAll(t, directors, keys)
	for i, x := range faults {
		for k := range directors {
			for _, key := range c.keys(x.span) {
				if _, ok := found[k][key]; !ok {
					out[i][k]++
				}
			}
		}
	}
	return out
}

// overcome waits until every director's kernel and replica have all connections, and says how long after each fault that was.
func overcome(t *testing.T, f *farm.Farm, c *churn, daemons []*daemon, faults ...fault) {
	t.Helper()
	before, healed := make([]string, len(faults)), make([]time.Duration, len(faults))
	first := true
	eventually(t, auditLimit, func() string {
		var why []string
		lack := lacks(t, f.Directors, c, faults)
		for k, x := range faults {
			bad := 0
			var each []string
			for i, d := range f.Directors {
				n := lack[k][i]
				bad += n
				each = append(each, fmt.Sprintf("%s %d", d.Name, n))
				if n == 0 && first && slices.Contains(x.by, i) {
					t.Errorf("%s: nothing was dropped: %s lacks nothing", x.name, d.Name)
				}
			}
			after := time.Since(x.began)
			now := fmt.Sprintf("of %d connections the kernels lack: %s", x.count(), strings.Join(each, ", "))
			if now != before[k] {
				t.Logf("%s: after %v %s", x.name, after.Round(100*time.Millisecond), now)
			}
			before[k] = now
			switch {
			case bad > 0:
				healed[k] = 0
				why = append(why, x.name+": "+now)
			case healed[k] == 0:
				healed[k] = after
			}
		}
		first = false
		for _, s := range daemons {
			if st := s.ask(t); st.Connections.Local+st.Connections.Remote != c.next {
				why = append(why, fmt.Sprintf("the replica of %s has %+v, want %d", s.node.Name, st.Connections, c.next))
			}
		}
		return strings.Join(why, "\n")
	})
	for k, x := range faults {
		t.Logf("RESULT forced drop, %s: in all kernels %v after", x.name, healed[k].Round(100*time.Millisecond))
	}
	for _, s := range daemons {
		st := s.ask(t)
		t.Logf("%s: audit %+v, kernel audit %+v", s.node.Name, st.Audit, st.KernelAudit)
	}
}

// TestForcedDrops: what a kernel drops without a word on its way to syncd and back is found by the audits and repaired, on all directors: in
// the backup thread's socket, in the master thread's queue, in the tap that nobody reads.
func TestForcedDrops(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 3, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	c := newChurn(t, f.Directors...)
	daemons := startSyncds(t, f.Directors)

	// The backup thread's socket gets its size when it is made; the kernel takes 2,304 bytes at the least (SOCK_MIN_RCVBUF) and doubles it.
	const sockSize, qlen = "net/ipv4/vs/sync_sock_size", "net/ipv4/vs/sync_qlen_max"
	small := fault{name: "in the backup thread's socket of 4,608 bytes"}
	resize := func(size string, times int) {
		t.Helper()
		must(t, f.Directors[2].Sysctl(sockSize, size))
		_, err := f.Directors[2].Run("ipvsadm", "--stop-daemon", "backup")
		must(t, err)
		eventually(t, readyLimit, func() string {
			if n := strings.Count(daemons[2].Output(), "kernel threads started again"); n < times {
				return fmt.Sprintf("the backup thread was started again %d times, want %d", n, times)
			}
			return ""
		})
	}
	was, err := f.Directors[2].ReadSysctl(sockSize)
	must(t, err)
	resize("1", 1)
	// lost is how many of a burst the kernel has dropped for good: what is on the way has arrived half a second later.
	lost := func() (n int) {
		for range 2 {
			time.Sleep(500 * time.Millisecond)
			if n = small.count() - len(lookUp(t, f.Directors[2], c.keys(small.span))); n == 0 {
				break
			}
		}
		return n
	}
	eventually(t, auditLimit, func() string {
		small.span, small.began = c.burst(t, 0, dropBurst), time.Now()
		n := lost()
		if n == 0 {
			return "it takes it all"
		}
		t.Logf("%s: of %d connections the kernel drops %d", small.name, small.count(), n)
		return ""
	})
	eventually(t, auditLimit, func() string {
		st := daemons[2].ask(t)
		if st.KernelAudit.Repaired == 0 {
			return fmt.Sprintf("nothing is repaired: %+v", st.KernelAudit)
		}
		t.Logf("RESULT forced drop, %s: the audit has given the kernel %d entries again %v after the burst (messages dropped: %d)",
			small.name, st.KernelAudit.Repaired, time.Since(small.began).Round(100*time.Millisecond), st.Counters["kernel_dropped"])
		return ""
	})
	overcome(t, f, c, daemons, small)
	resize(was, 2)

	// The queue between the kernel and a process that does not read.
	_, err = f.Directors[1].Run("ip", "link", "set", tapGuard.Device, "txqueuelen", "10")
	must(t, err)
	must(t, daemons[1].Signal(unix.SIGSTOP))
	tap := fault{name: "in the tap of 10 packets that is not read", span: c.burst(t, 1, dropBurst), by: []int{0, 2}, began: time.Now()}
	must(t, daemons[1].Signal(unix.SIGCONT))
	_, err = f.Directors[1].Run("ip", "link", "set", tapGuard.Device, "txqueuelen", "5000")
	must(t, err)
	// The queue of the master thread, which wakes up every 20 ms.
	was, err = f.Directors[0].ReadSysctl(qlen)
	must(t, err)
	must(t, f.Directors[0].Sysctl(qlen, "1"))
	queue := fault{name: "in the master thread's queue of 1", span: c.burst(t, 0, dropBurst), by: []int{1, 2}, began: time.Now()}
	must(t, f.Directors[0].Sysctl(qlen, was))
	overcome(t, f, c, daemons, tap, queue)
	allEqual(t, "after forced drops", daemons)
}
