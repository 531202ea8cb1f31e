package scenarios

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/integration/farm"
	"saru/integration/load"
	"saru/lib/ipvs"
)

// lookUp asks a director's kernel itself for connections, without any effect on them: it returns to which real server it would send the packets
// of each that it has. What a kernel lists in /proc may leave some out.
func lookUp(t testing.TB, d *farm.Node, keys []entry) map[entry]netip.Addr {
	t.Helper()
	found, err := tryLookUp(d, keys)
	must(t, err)
	return found
}

// lookUpOnAll is lookUp on several directors at the same time.
func lookUpOnAll(t testing.TB, directors []*farm.Node, keys []entry) []map[entry]netip.Addr {
	t.Helper()
	found := make([]map[entry]netip.Addr, len(directors))
	var g errgroup.Group
	for i, d := range directors {
		g.Go(func() (err error) {
			found[i], err = tryLookUp(d, keys)
			return err
		})
	}
	must(t, g.Wait())
	return found
}

func tryLookUp(d *farm.Node, keys []entry) (map[entry]netip.Addr, error) {
	found := map[entry]netip.Addr{}
	if len(keys) == 0 {
		return found, nil
	}
	if _, err := d.RunInput(load.LookupRules, "nft", "-f", "-"); err != nil {
		return nil, err
	}
	l, err := load.OpenLookup(d)
	if err != nil {
		return nil, err
	}
	for i, k := range keys {
		if err := l.Ask(i, k.protocol, k.client, k.virtual); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	if err := l.Close(); err != nil {
		return nil, err
	}
	text, err := d.Run("nft", "-j", "list", "set", "ip", load.LookupTable, "answers")
	if err != nil {
		return nil, err
	}
	if _, err := d.Run("nft", "delete", "table", "ip", load.LookupTable); err != nil {
		return nil, err
	}
	answers, err := load.Answers([]byte(text))
	if err != nil {
		return nil, err
	}
	for n, real := range answers {
		found[keys[n]] = real
	}
	return found, nil
}

// TestLookup: a lookup finds what a kernel has, on a director with the virtual address and on one without, changes nothing, and finds what
// /proc's list leaves out: entries that come after a place which the reader had reached when entries before it, also those of other network
// namespaces, went (ip_vs_conn.c before Linux 6.14, ip_vs_conn_array: the place is a number of entries).
func TestLookup(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 2, RealServers: 2})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	c := newChurn(t, f.Directors...)
	d1, d2 := f.Directors[0], f.Directors[1]
	const count, opening = 1000, 20
	c.burst(t, 0, count)
	for range opening {
		must(t, c.sources[0].Begin(c.next, c.to))
		c.next++
	}
	keys := c.keys(span{0, c.next})
	unknown := c.keys(span{c.next, c.next + 100})

	before := kernelConns(t, d1)
	if len(before) != len(keys) {
		t.Fatalf("%d entries are listed, want %d", len(before), len(keys))
	}
	began := time.Now()
	found := lookUp(t, d1, append(slices.Clone(keys), unknown...))
	t.Logf("%d lookups take %v", len(keys)+len(unknown), time.Since(began).Round(time.Millisecond))
	for _, p := range before {
		if k := (entry{p.Protocol, p.Client, p.Virtual}); found[k] != p.Real.Addr() {
			t.Errorf("%v: a lookup finds %v, listed is %+v", k, found[k], p)
		}
	}
	if len(found) != len(keys) {
		t.Errorf("%d of %d entries are found", len(found), len(keys))
	}
	after := map[entry]ipvs.ProcConn{}
	for _, p := range kernelConns(t, d1) {
		after[entry{p.Protocol, p.Client, p.Virtual}] = p
	}
	for _, p := range before {
		if now := after[entry{p.Protocol, p.Client, p.Virtual}]; now.State != p.State || now.Real != p.Real || now.Expires > p.Expires {
			t.Errorf("a lookup has changed %+v to %+v", p, now)
		}
	}
	if len(after) != len(before) {
		t.Errorf("lookups have turned %d entries into %d", len(before), len(after))
	}

	// A director that has entries, but not the virtual address.
	must(t, d1.DropVIP())
	if n := len(lookUp(t, d1, append(slices.Clone(keys[:count]), unknown...))); n != count {
		t.Errorf("without the virtual address %d of %d entries are found", n, count)
	}

	// The list of d1, while the entries of d2 go.
	c.burst(t, 1, count)
	proc, err := d1.Proc()
	must(t, err)
	list, err := os.Open(filepath.Join(proc, "net/ip_vs_conn_sync"))
	must(t, err)
	defer list.Close()
	listed := map[entry]bool{}
	const half = count / 2
	lines := 0
	for p, err := range ipvs.ParseConns(list) {
		must(t, err)
		listed[entry{p.Protocol, p.Client, p.Virtual}] = true
		if lines++; lines == half {
			must(t, c.sources[1].Close()) // it would keep the namespace
			must(t, d2.PowerOff())
			time.Sleep(6 * time.Second) // the kernel clears the namespace away later
		}
	}
	var out []entry
	for _, k := range keys[:count] { // the others expire
		if !listed[k] {
			out = append(out, k)
		}
	}
	t.Logf("RESULT %d entries of another namespace go while %d are being listed: the list leaves out %d; lookups find %d of these", count, len(keys),
		len(out), len(lookUp(t, d1, out)))
	if n := len(lookUp(t, d1, keys[:count])); n != count {
		t.Errorf("lookups find %d of %d", n, count)
	}
	release, err := ipvs.KernelRelease()
	must(t, err)
	if len(out) == 0 && !ipvs.ProcLinear(release) {
		t.Error("the list leaves out nothing")
	}
}
