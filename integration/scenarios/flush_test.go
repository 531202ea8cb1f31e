package scenarios

import (
	"encoding/json"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
)

// flush runs `saructl sync flush`, whose exit status must be 0 if and only if it was complete.
func (s *daemon) flush(t *testing.T, buckets string) control.FlushSummary {
	t.Helper()
	out, err := s.node.Run("saructl", "sync", "flush", buckets, "--json", "--control", controlSocket)
	for line := range strings.Lines(out) {
		var l control.FlushLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("saructl sync flush --json says %q: %v", line, err)
		}
		if l.Summary != nil {
			if l.Summary.Complete != (err == nil) {
				t.Fatalf("saructl sync flush: %v, it says %+v", err, *l.Summary)
			}
			return *l.Summary
		}
	}
	t.Fatalf("saructl sync flush: %v, it says:\n%s", err, out)
	return control.FlushSummary{}
}

// TestFlush: when `saructl sync flush` returns, the other kernels have everything, what was opened a moment ago and what is being opened
// included; and it says who has not confirmed.
func TestFlush(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 3, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	c := newChurn(t, f.Directors[0])
	daemons := startSyncds(t, f.Directors)
	for _, s := range daemons {
		s.waitSynced(t)
	}
	// So many that a list of the kernel may leave some out (ipvs.ReadConns).
	const open, opening = 500, 100
	for round := range 3 {
		c.burst(t, 0, open)
		for range opening {
			must(t, c.sources[0].Begin(c.next, c.to))
			c.next++
		}
		sum := daemons[0].flush(t, "all")
		if !sum.Complete || len(sum.Confirmed) != 2 || sum.HalfOpen < opening || sum.Buckets != 4096 {
			t.Errorf("flush says %+v", sum)
		}
		all, _ := survey(t, f.Directors, c.keys(span{0, c.next})...)
		if len(all[0]) != c.next {
			t.Errorf("%s has %d entries, want %d", f.Directors[0].Name, len(all[0]), c.next)
		}
		for i, has := range all[1:] {
			missing, stale := lacking(made(all[0]), has)
			t.Logf("RESULT flush, round %d: of %d entries %d missing and %d stale at %s when it returned, after %.0f ms (barrier %.0f ms)", round,
				len(all[0]), missing, stale, f.Directors[i+1].Name, sum.TookMS, sum.BarrierMS)
			if missing+stale > 0 {
				t.Errorf("%s lacks %d entries and has %d others", f.Directors[i+1].Name, missing, stale)
			}
		}
	}
	// The half of the buckets has about half of the connections that are being opened.
	if sum := daemons[0].flush(t, "0-2047"); !sum.Complete || sum.Buckets != 2048 || sum.HalfOpen < 3*opening/4 || sum.HalfOpen > 9*opening/4 {
		t.Errorf("flush of half of the buckets says %+v", sum)
	}
	// Who has stopped is named.
	must(t, daemons[2].Signal(unix.SIGSTOP))
	c.burst(t, 0, 1)
	sum := daemons[0].flush(t, "all")
	must(t, daemons[2].Signal(unix.SIGCONT))
	if name := f.Directors[2].Name; sum.Complete || len(sum.Missing) != 1 || sum.Missing[0] != name || !strings.Contains(sum.Why, name) {
		t.Errorf("flush without %s says %+v", name, sum)
	}
}
