package scenarios

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/integration/load"
)

func itoa(n int) string { return strconv.Itoa(n) }

// eventually polls until check returns "", and fails with its last answer.
func eventually(t testing.TB, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.After(limit)
	for {
		why := check()
		if why == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("after %v: %s", limit, why)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestKernelRoles: the lab can show what the kernel's own master and backup
// do: the backup learns connections of the master and carries on a download.
func TestKernelRoles(t *testing.T) {
	f := farm.New(t, basic)
	serve(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]
	for i, d := range f.Directors {
		must(t, d.AddServices(services...))
		must(t, d.Sysctl("net/ipv4/vs/sync_threshold", "0 0"))
		must(t, d.Sysctl("net/ipv4/vs/sync_refresh_period", "10"))
		_, err := d.Run("ipvsadm", "--start-daemon", []string{"master", "backup"}[i], "--mcast-interface", "sync", "--syncid", "7")
		must(t, err)
	}
	must(t, d1.TakeVIP())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fleet := load.NewFleet()
	for _, s := range services[:2] {
		must(t, fleet.Launch(ctx, load.Job{Name: string(s.Method), Host: f.Clients[0], Target: s.VIPPort(), Count: 2, Order: load.Order{Seed: 5, Bytes: 80_000, Chunk: 1000, Pace: 100 * time.Millisecond}}))
	}
	eventually(t, 8*time.Second, func() string {
		out, err := d2.Run("ipvsadm", "-Lnc")
		must(t, err)
		if n := strings.Count(out, "ESTABLISHED"); n != 4 {
			return fmt.Sprintf("the backup has %d of 4 connections\n%s", n, out)
		}
		return ""
	})
	must(t, d1.PowerOff())
	must(t, d2.TakeVIP())
	must(t, fleet.Wait(ctx))
	for _, x := range fleet.Downloads() {
		if x.State != load.Done {
			t.Errorf("download by %s: %v (%s) after %d bytes", x.Job, x.State, x.Why, x.Bytes)
		}
	}
}
