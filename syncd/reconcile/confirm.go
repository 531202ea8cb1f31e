package reconcile

import (
	"net/netip"
	"slices"
	"time"

	"saru/proto/ipvssync"
)

// confirmAfter is for how long a finding must have been there: what is on its way between kernel and replica has arrived by then, as the
// tick pushes it out within 20 ms.
const confirmAfter = 2 * time.Second

// Confirmation puts several passes together, of which one alone proves little: neither side stands still meanwhile, and each list of
// the kernel leaves out some entries that it has.
//
// What the kernel lists is a fact. It is confirmed when passes have found the same for two seconds, while neither side changed: the same
// update in the replica, the same server and state in the kernel. A pass whose list leaves the entry out neither confirms nor refutes
// that. Of what the kernel does not list, no pass may have listed it.
type Confirmation struct {
	begun bool
	found []candidate
}

// candidate is a finding that no pass has refuted.
type candidate struct {
	Finding
	first   time.Time // when it was found for the first time
	times   int       // how often it was found
	leftOut bool      // the latest list leaves it out
}

func (c *candidate) confirmed() bool { return c.times > 1 && c.At.Sub(c.first) >= confirmAfter }

// key names an entry as the kernel does.
type key struct {
	client, virtual netip.AddrPort
	protocol        uint8
	template        bool
}

func keyOf(r *ipvssync.Record) key { return key{r.Client, r.Virtual, r.Protocol, r.Template()} }

// Add takes the result of the next pass.
func (c *Confirmation) Add(res *Result) {
	first := !c.begun
	c.begun = true
	before := make(map[key]int, len(c.found))
	for i := range c.found {
		before[keyOf(c.found[i].Record())] = i
	}
	var found []candidate
	for i := range res.Findings {
		f := &res.Findings[i]
		n := candidate{Finding: *f, first: f.At, times: 1}
		b, known := before[keyOf(f.Record())]
		again := known && f.same(&c.found[b].Finding)
		if again {
			n.first, n.times = c.found[b].first, c.found[b].times+1
		}
		if first || again || f.Kernel != nil {
			found = append(found, n)
			delete(before, keyOf(f.Record()))
		}
	}
	for i := range c.found {
		b := c.found[i]
		if _, left := before[keyOf(b.Record())]; left && b.Kernel != nil && !res.Listed(b.Record()) {
			b.leftOut = true
			found = append(found, b)
		}
	}
	c.found = found
}

// Open reports whether there is anything that another pass could confirm or refute.
func (c *Confirmation) Open() bool { return !c.begun || len(c.found) > 0 }

// Pending reports whether there is anything that one more pass is likely to confirm: what several have found, but not for long enough, and
// what the latest list leaves out.
func (c *Confirmation) Pending() bool {
	return slices.ContainsFunc(c.found, func(b candidate) bool { return !b.confirmed() && (b.times > 1 || b.leftOut) })
}

// Confirmed returns what was confirmed.
func (c *Confirmation) Confirmed() (out []Finding) {
	for i := range c.found {
		if c.found[i].confirmed() {
			out = append(out, c.found[i].Finding)
		}
	}
	return out
}

// same reports whether f is what an earlier pass found, and neither side changed since.
func (f *Finding) same(b *Finding) bool {
	if f.Kind != b.Kind {
		return false
	}
	if f.Replica != nil && (f.Replica.Stamp != b.Replica.Stamp || f.Replica.Origin != b.Replica.Origin) {
		return false
	}
	return f.Kernel == nil || f.Kernel.Record.Real == b.Kernel.Record.Real && f.Kernel.Record.State == b.Kernel.Record.State
}
