package scenarios

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
)

const (
	// lagLimit is what the mirror promises for the 99th percentile in a quiet farm.
	lagLimit = 100 * time.Millisecond
	// lagFactor is how many times longer the kernel's own sync takes at least, in the median.
	lagFactor = 10
	// lagRounds is how often syncd's figure is taken at most: the guest may have to share its CPUs. Each round is reported.
	lagRounds = 3
	// guestPause is how long the test itself must have stood still for a pause of the guest, which has nothing to do with the mirror. A
	// connection is not counted when a quarter of its lag or more was such a pause; at least lagKept per cent must be left.
	guestPause = 40 * time.Millisecond
	lagKept    = 75
	// lagPoll is the pause between two looks at the other director's table.
	lagPoll = time.Millisecond
)

// lagPlan reads how many connections are opened, and how far apart: SARU_LAG_COUNT and SARU_LAG_EVERY. For the record of a quiet farm:
// SARU_LAG_COUNT=100 SARU_LAG_EVERY=1s.
func lagPlan(t testing.TB) (count int, every time.Duration) {
	t.Helper()
	count, every = 25, 250*time.Millisecond
	var err error
	if v := os.Getenv("SARU_LAG_COUNT"); v != "" {
		count, err = strconv.Atoi(v)
		must(t, err)
	}
	if v := os.Getenv("SARU_LAG_EVERY"); v != "" {
		every, err = time.ParseDuration(v)
		must(t, err)
	}
	return count, every
}

// TestMirrorLag measures, in a quiet farm, how long a new connection takes from connect's return at the client to an entry in state
// ESTABLISHED in the other director's kernel: with syncd, and with the kernel's own master and backup. Client and directors share
// a clock, as they share a guest.
func TestMirrorLag(t *testing.T) {
	count, every := lagPlan(t)
	f := farm.New(t, farm.Spec{Directors: 2, RealServers: 2, Clients: 1, SyncSegment: true})
	serve(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]

	var table strings.Builder
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	median := map[string]time.Duration{}
	measure := func(name string) (p99 time.Duration, enough bool) {
		must(t, d1.TakeVIP())
		lags := measureLag(t, f, count, every)
		if len(lags) == 0 {
			t.Logf("%s: the guest stood still all the time", name)
			return 0, false
		}
		median[name], p99 = quantile(lags, 50), quantile(lags, 99)
		fmt.Fprintf(&table, "  %-44s p50 %7.1f ms   p99 %7.1f ms   least %7.1f ms   most %7.1f ms   of %d\n",
			name, ms(median[name]), ms(p99), ms(slices.Min(lags)), ms(slices.Max(lags)), len(lags))
		return p99, len(lags)*100 >= lagKept*count
	}
	fresh := func() { // empty tables, and sysctls as they are after a boot
		for _, d := range f.Directors {
			must(t, d.PowerOff())
			must(t, d.PowerOn())
			must(t, d.AddServices(services[0]))
		}
	}

	fresh()
	daemons := startSyncds(t, f.Directors)
	var p99 time.Duration
	enough := false
	for range lagRounds {
		if p99, enough = measure("syncd"); enough && p99 <= lagLimit {
			break
		}
	}
	for _, s := range daemons {
		st := s.status(t)
		fmt.Fprintf(&table, "  %-44s p50 %7.1f ms   p99 %7.1f ms\n", "    lag_ms in saructl sync status of "+s.node.Name, st.LagMS.P50, st.LagMS.P99)
		if st.LagMS.P50 <= 0 || st.LagMS.P99 < st.LagMS.P50 {
			t.Errorf("saructl sync status of %s shows a lag of %+v", s.node.Name, st.LagMS)
		}
	}
	for _, kernel := range []struct {
		name    string
		sysctls [][2]string
	}{
		{"kernel's sync, defaults", nil},
		// Without a refresh period a threshold of "0 0" sends nothing at all on ESTABLISHED (ip_vs_sync.c, ip_vs_sync_conn_needed).
		{`kernel's sync, threshold "0 0", refresh 10`, [][2]string{{"net/ipv4/vs/sync_threshold", "0 0"}, {"net/ipv4/vs/sync_refresh_period", "10"}}},
	} {
		fresh()
		for role, d := range map[string]*farm.Node{"master": d1, "backup": d2} {
			for _, s := range kernel.sysctls {
				must(t, d.Sysctl(s[0], s[1]))
			}
			_, err := d.Run("ipvsadm", "--start-daemon", role, "--mcast-interface", "sync", "--syncid", "1")
			must(t, err)
		}
		measure(kernel.name)
		if m := median[kernel.name]; m < lagFactor*median["syncd"] {
			t.Errorf("%s: median %v, not %d times syncd's %v", kernel.name, m, lagFactor, median["syncd"])
		}
	}
	t.Logf("%d connections, one every %v; connect at the client to ESTABLISHED in the other director's kernel:\n%s", count, every, table.String())
	if p99 > lagLimit || !enough {
		t.Errorf("syncd: 99th percentile %v, want %v at most, of at least %d per cent of %d connections", p99, lagLimit, lagKept, count)
	}
}

// pause is a time in which the test stood still.
type pause struct{ from, to time.Time }

// measureLag opens the connections from a client through the first director and returns how long each took to the second one,
// without those that a pause of the guest has falsified.
func measureLag(t testing.TB, f *farm.Farm, count int, every time.Duration) []time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(count)*every+readyLimit)
	defer cancel()
	pid, err := f.Directors[1].Pid()
	must(t, err)
	conns, err := os.Open(filepath.Join("/proc", itoa(pid), "net/ip_vs_conn"))
	must(t, err)
	defer conns.Close()
	type sighting struct {
		at     map[uint16]time.Time
		looks  int
		pauses []pause
		err    error
	}
	watched := make(chan sighting, 1)
	go func() {
		s := sighting{at: map[uint16]time.Time{}}
		last := time.Now()
		for s.err == nil && len(s.at) < count {
			s.looks++
			s.err = errors.Join(ctx.Err(), sightEstablished(conns, f.Clients[0].Addr(farm.Front).String(), s.at))
			now := time.Now()
			if now.Sub(last) > guestPause {
				s.pauses = append(s.pauses, pause{last, now})
			}
			last = now
			select {
			case <-ctx.Done():
			case <-time.After(lagPoll):
			}
		}
		watched <- s
	}()

	began := time.Now()
	at := map[uint16]time.Time{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range count {
		var c net.Conn
		err := f.Clients[0].Do(func() (err error) {
			var d net.Dialer
			c, err = d.DialContext(ctx, "tcp4", services[0].VIPPort().String())
			return err
		})
		now := time.Now()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		local, ok := c.LocalAddr().(*net.TCPAddr)
		if !ok {
			t.Fatalf("connection %d: local address %v", i, c.LocalAddr())
		}
		at[uint16(local.Port)] = now
		// The third packet, at which the kernel's default threshold lets the connection through. The server answers with one byte.
		if _, err := io.WriteString(c, "get 1 1000 1 3600000000000\n"); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if i+1 < count {
			<-tick.C
		}
	}
	seen := <-watched
	if seen.err != nil {
		t.Fatalf("%d of %d connections came to the other director's kernel: %v", len(seen.at), count, seen.err)
	}
	var lags []time.Duration
	for port, opened := range at {
		when, ok := seen.at[port]
		if !ok {
			t.Fatalf("the connection from port %d is not among %d in the other director's kernel", port, len(seen.at))
		}
		lag := max(0, when.Sub(opened))
		var stood time.Duration
		for _, p := range seen.pauses {
			stood += max(0, earlier(p.to, when).Sub(later(p.from, opened)))
		}
		if stood > 0 && stood >= lag/4 {
			t.Logf("not counted: a lag of %v, of which the guest stood still for %v", lag, stood)
			continue
		}
		lags = append(lags, lag)
	}
	t.Logf("looked at the other director's table every %v; %d pauses of the guest",
		(time.Since(began) / time.Duration(seen.looks)).Round(10*time.Microsecond), len(seen.pauses))
	return lags
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sightEstablished notes when the client's connections are first seen as ESTABLISHED in an open /proc/net/ip_vs_conn, by client port.
func sightEstablished(conns *os.File, client string, at map[uint16]time.Time) error {
	if _, err := conns.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var a [4]byte
	copy(a[:], net.ParseIP(client).To4())
	want := fmt.Sprintf("TCP %02X%02X%02X%02X ", a[0], a[1], a[2], a[3])
	for sc := bufio.NewScanner(conns); sc.Scan(); {
		rest, ok := strings.CutPrefix(sc.Text(), want)
		if !ok || !strings.Contains(rest, " ESTABLISHED ") {
			continue
		}
		port, err := strconv.ParseUint(rest[:4], 16, 16)
		if err != nil {
			return fmt.Errorf("line %q: %w", sc.Text(), err)
		}
		if _, ok := at[uint16(port)]; !ok {
			at[uint16(port)] = time.Now()
		}
	}
	return nil
}

// quantile returns the smallest of the values that so many per cent do not exceed.
func quantile(d []time.Duration, percent int) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[max(0, (len(s)*percent+99)/100-1)]
}
