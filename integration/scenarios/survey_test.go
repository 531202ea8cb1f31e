package scenarios

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/integration/farm"
	"saru/lib/ipvs"
)

// entry is what survey tells connections apart by.
type entry struct {
	protocol        uint8
	client, virtual netip.AddrPort
}

// held is what a kernel has of it.
type held struct {
	real   netip.AddrPort
	state  string // "": not known, as it was not listed
	synced bool
}

// readings is how often survey reads each list: one of 4,000 entries leaves out some four, which differ from reading to reading.
const readings = 3

// survey lists several directors' connection tables at the same time, each without the tick's own, and says when that which it found was
// there at the latest. What a kernel lists is no snapshot, and an entry can be left out: several readings are put together, and the kernel is
// asked for those of the wanted entries that none of them has.
func survey(t testing.TB, directors []*farm.Node, wanted ...entry) (all []map[entry]held, at time.Time) {
	t.Helper()
	all = make([]map[entry]held, len(directors))
	for i := range all {
		all[i] = map[entry]held{}
	}
	for range readings {
		var g errgroup.Group
		var news atomic.Bool
		for i, d := range directors {
			proc, err := d.Proc()
			must(t, err)
			g.Go(func() error {
				for c, err := range ipvs.ReadConns(proc) {
					if err != nil {
						return err
					}
					k := entry{c.Protocol, c.Client, c.Virtual}
					if _, twice := all[i][k]; !twice && !c.Virtual.Addr().IsLinkLocalUnicast() {
						all[i][k] = held{c.Real, c.State, c.Synced}
						news.Store(true)
					}
				}
				return nil
			})
		}
		must(t, g.Wait())
		if news.Load() {
			at = time.Now()
		}
	}
	leftOut := make([]map[entry]netip.Addr, len(directors))
	for i, d := range directors {
		leftOut[i] = lookUp(t, d, unlisted(all[i], wanted))
		if len(leftOut[i]) > 0 {
			at = time.Now()
			t.Logf("RESULT %d readings of the list of %s leave out %d of %d entries that its kernel has", readings, d.Name, len(leftOut[i]), len(wanted))
		}
	}
	local := made(all...)
	for i := range all {
		for k, real := range leftOut[i] {
			_, elsewhere := local[k]
			all[i][k] = held{real: netip.AddrPortFrom(real, k.virtual.Port()), synced: elsewhere}
		}
	}
	return all, at
}

// unlisted returns the keys that a survey does not have.
func unlisted(has map[entry]held, keys []entry) (out []entry) {
	for _, k := range keys {
		if _, ok := has[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// lacking counts the entries of all that a kernel does not have, and those that it has in another state or with another real server.
func lacking(all, has map[entry]held) (missing, stale int) {
	for k, want := range all {
		got, ok := has[k]
		switch {
		case !ok:
			missing++
		case got.real != want.real || got.state != want.state && got.state != "" && want.state != "":
			stale++
		}
	}
	return missing, stale
}

// made is what the directors' own kernels have made: the truth about the farm.
func made(surveys ...map[entry]held) map[entry]held {
	all := map[entry]held{}
	for _, s := range surveys {
		for k, h := range s {
			if !h.synced {
				all[k] = h
			}
		}
	}
	return all
}

// shortfall surveys directors and says what each lacks of the connections that were made on one of them, and when that was seen.
func shortfall(t testing.TB, directors []*farm.Node, wanted []entry) (total, missing, stale int, when time.Time) {
	t.Helper()
	all, at := survey(t, directors, wanted...)
	truth := map[entry]held{}
	local := made(all...)
	for _, k := range wanted {
		if h, ok := local[k]; ok {
			truth[k] = h
		}
	}
	for _, has := range all {
		m, s := lacking(truth, has)
		missing, stale = missing+m, stale+s
	}
	return len(truth), missing, stale, at
}

// absent counts the connections that a survey does not have.
func absent(has map[entry]held, keys []entry) int { return len(unlisted(has, keys)) }

// syncThreads returns the process ids of the kernel's sync threads in the whole guest. They are named ipvs-m:N:N and ipvs-b:N:N
// (ip_vs_sync.c, start_sync_thread).
func syncThreads(t testing.TB) (masters, backups []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	must(t, err)
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		must(t, err)
		switch kind, _, _ := strings.Cut(string(text), ":"); kind {
		case "ipvs-m":
			masters = append(masters, pid)
		case "ipvs-b":
			backups = append(backups, pid)
		}
	}
	return masters, backups
}
