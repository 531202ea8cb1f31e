package engine

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/flow"
	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

var (
	vip   = conn(0).Virtual.Addr()
	elder = peer.IDOf("elder") // of nobody's
)

// shareOf is a share by which every connection of vip is of one bucket of flow.Default, and connection n of bucketOf(n).
func shareOf(term, version uint32, owned, next, held []int) *Share {
	s := &Share{
		Grant: mirror.NewGrant(term, version), Buckets: flow.Default.Buckets, Seed: flow.DefaultSeed,
		Functions: map[netip.Addr]flow.Function{vip: flow.Default},
		Owned:     make([]bool, flow.Default.Buckets), Next: make([]bool, flow.Default.Buckets), Held: make([]bool, flow.Default.Buckets),
	}
	for _, n := range owned {
		s.Owned[bucketOf(n)] = true
	}
	for _, n := range next {
		s.Next[bucketOf(n)] = true
	}
	for _, n := range held {
		s.Held[bucketOf(n)] = true
	}
	return s
}

func bucketOf(n int) uint32 {
	r := conn(n)
	return flow.Default.Bucket(r.Client, r.Virtual)
}

// tell tells a director a share.
func (d *director) tell(t testing.TB, s *Share) uint64 {
	t.Helper()
	ticket, err := d.SetShare(d.farm.now, s)
	if err != nil {
		t.Fatalf("%s: %v", d.name, err)
	}
	return ticket
}

func TestShareBucket(t *testing.T) {
	ap := netip.MustParseAddrPort
	function := func(mask4 uint8, fields ...flow.Field) flow.Function {
		f := flow.Default
		f.Sense, f.Mask4 = flow.SenseOf(fields...), mask4
		return f
	}
	ports, masked := function(32, flow.SrcAddr, flow.SrcPort), function(24, flow.SrcAddr)
	service := function(32, flow.SrcAddr, flow.DstPort)
	s := &Share{Functions: map[netip.Addr]flow.Function{
		netip.MustParseAddr("192.0.2.1"): ports, netip.MustParseAddr("192.0.2.2"): masked, netip.MustParseAddr("192.0.2.3"): service,
		netip.MustParseAddr("2001:db8::1"): ports,
	}}
	rec := func(protocol uint8, flags uint32, client, virtual string) ipvssync.Record {
		return ipvssync.Record{Protocol: protocol, Flags: flags, Client: ap(client), Virtual: ap(virtual)}
	}
	for name, tt := range map[string]struct {
		s    *Share
		r    ipvssync.Record
		want int // -1: none
	}{
		"by address and port": {s, rec(6, 0, "198.51.100.7:4000", "192.0.2.1:80"), int(ports.Bucket(ap("198.51.100.7:4000"), ap("192.0.2.1:80")))},
		"IPv6":                {s, rec(6, 0, "[2001:db8::7]:4000", "[2001:db8::1]:80"), int(ports.Bucket(ap("[2001:db8::7]:4000"), ap("[2001:db8::1]:80")))},
		"without saru":        {nil, rec(6, 0, "198.51.100.7:4000", "192.0.2.1:80"), -1},
		"another address":     {s, rec(6, 0, "198.51.100.7:4000", "192.0.2.9:80"), -1},
		"template of a VIP by ports": {
			s, rec(6, ipvssync.FlagTemplate, "198.51.100.7:0", "192.0.2.1:80"), -1,
		},
		"FTP data connection to come": {s, rec(6, ipvssync.FlagNoCPort, "198.51.100.7:0", "192.0.2.1:20"), -1},
		"template of a masked VIP": {
			s, rec(6, ipvssync.FlagTemplate, "198.51.100.0:0", "192.0.2.2:80"), int(masked.Bucket(ap("198.51.100.77:4000"), ap("192.0.2.2:80"))),
		},
		"connection of a masked VIP": {s, rec(6, 0, "198.51.100.77:4000", "192.0.2.2:80"), int(masked.Bucket(ap("198.51.100.0:0"), ap("192.0.2.2:0")))},
		"template of a mark that reads like the address": {
			s, rec(0, ipvssync.FlagTemplate, "198.51.100.0:0", "192.0.2.2:0"), -1,
		},
		"template of all ports of a VIP by its port": {s, rec(6, ipvssync.FlagTemplate, "198.51.100.7:0", "192.0.2.3:0"), -1},
		"template of a port of such a VIP": {
			s, rec(6, ipvssync.FlagTemplate, "198.51.100.7:0", "192.0.2.3:80"), int(service.Bucket(ap("198.51.100.7:0"), ap("192.0.2.3:80"))),
		},
		"IKE by ports":   {s, rec(17, 0, "198.51.100.7:500", "192.0.2.1:500"), -1},
		"IKE by address": {s, rec(17, 0, "198.51.100.7:500", "192.0.2.2:500"), int(masked.Bucket(ap("198.51.100.7:500"), ap("192.0.2.2:500")))},
		"ESP by ports":   {s, rec(50, 0, "198.51.100.7:500", "192.0.2.1:500"), -1},
	} {
		got := -1
		if b, ok := tt.s.Bucket(&tt.r); ok {
			got = int(b)
		}
		if got != tt.want {
			t.Errorf("%s: bucket %d, want %d", name, got, tt.want)
		}
	}
}

func TestSetShare(t *testing.T) {
	f := newFarm(t, "a")
	f.run(2 * time.Second)
	a := f.all["a"]
	steps := []struct {
		name string
		s    *Share
		want error
	}{
		{"the first", shareOf(2, 5, []int{1}, nil, nil), nil},
		{"the same", shareOf(2, 5, []int{1}, nil, nil), nil},
		{"a bucket is held now", shareOf(2, 5, []int{1}, nil, []int{1}), nil},
		{"another table of that name", shareOf(2, 5, []int{1, 2}, nil, []int{1}), ErrOtherShare},
		{"an older one", shareOf(2, 4, []int{1}, nil, nil), ErrOlderShare},
		{"an older term", shareOf(1, 9, []int{1}, nil, nil), ErrOlderShare},
		{"the next", shareOf(2, 6, []int{1, 2}, nil, []int{1}), nil},
		{"the next term", shareOf(3, 1, []int{1, 2}, nil, []int{1}), nil},
		{"forget", nil, nil},
		{"an older one again", shareOf(1, 1, []int{1}, nil, nil), nil},
	}
	for _, tt := range steps {
		before := a.Share()
		ticket, err := a.SetShare(f.now, tt.s)
		if !errors.Is(err, tt.want) || (err == nil) != (a.Share() == tt.s) || err != nil && a.Share() != before {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
		if err != nil {
			continue
		}
		if tt.s != nil && a.ShareReady(ticket) {
			t.Errorf("%s: ready before the kernel has said anything", tt.name)
		}
		f.run(60 * time.Millisecond)
		if !a.ShareReady(ticket) || a.Bringing() {
			t.Errorf("%s: not ready in the end", tt.name)
		}
	}
	if st := a.Status(f.now).Share; st.Term != 3 || !st.Ready || !st.Settled {
		t.Errorf("status %+v, want term 3 as the highest of all", st)
	}
}

// Under which grant a kernel's report goes out, and when it does not: the rows of docs/PROTOCOL.md with saru.
func TestGrants(t *testing.T) {
	grant := mirror.NewGrant
	held, lost := shareOf(2, 5, []int{1}, nil, []int{1}), shareOf(2, 6, nil, nil, nil)
	sync := func(r *ipvssync.Record) { r.Flags |= ipvssync.FlagSync }
	for name, tt := range map[string]struct {
		told    []*Share // before the update that the replica has
		has     mirror.Grant
		from    peer.ID // 0: the replica has nothing
		then    []*Share
		change  func(*ipvssync.Record)
		want    mirror.Grant // 0 and overruled: as it was
		overrul bool
	}{
		"held, nothing known":                        {then: []*Share{held}, want: grant(2, 5)},
		"held, nothing known, by flag":               {then: []*Share{held}, change: sync, want: grant(2, 5)},
		"held, another's of an earlier table":        {has: grant(2, 4), from: elder, then: []*Share{held}, want: grant(2, 5)},
		"held, another's without saru":               {has: grant(0, 9), from: elder, then: []*Share{held}, want: grant(2, 5)},
		"held, its own":                              {has: grant(2, 3), from: peer.IDOf("a"), then: []*Share{held}, want: grant(2, 5)},
		"held, its own of a farm that has forgotten": {has: grant(7, 3), from: peer.IDOf("a"), then: []*Share{held}, want: grant(7, 3)},
		"held, told before of a forgetful farm":      {has: grant(7, 3), from: elder, then: []*Share{held}, want: grant(7, 3)},
		"held, but another has it since":             {told: []*Share{held}, has: grant(2, 6), from: elder, want: grant(2, 6), overrul: true},
		"no longer held":                             {then: []*Share{held, lost}, want: grant(2, 5)},
		"no longer held, the next one has told":      {told: []*Share{held, lost}, has: grant(2, 6), from: elder, want: grant(2, 6), overrul: true},
		"no longer held, the one before had told":    {has: grant(2, 4), from: elder, then: []*Share{held, lost}, want: grant(2, 5)},
		"never held, nothing known":                  {then: []*Share{lost}, want: 0},
		"never held, nothing known, by flag":         {then: []*Share{lost}, change: sync, want: grant(0, 1)},
		"never held, another's":                      {has: grant(2, 4), from: elder, then: []*Share{lost}, want: grant(2, 4), overrul: true},
		"never held, another's, though told later":   {told: []*Share{lost}, has: grant(0, 1), from: elder, want: grant(0, 1), overrul: true},
		"of no bucket, another's":                    {has: grant(2, 4), from: elder, then: []*Share{held}, change: func(r *ipvssync.Record) { r.Virtual = tls }, want: grant(2, 5)},
		"forgotten, another's":                       {told: []*Share{held, nil}, has: grant(2, 6), from: elder, want: grant(2, 7)},
		"held again, after another one had it meanwhile": {
			told: []*Share{held, lost}, has: grant(2, 6), from: elder, then: []*Share{shareOf(2, 7, []int{1}, nil, []int{1})}, want: grant(2, 7),
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, "a", "b")
			f.run(2 * time.Second)
			a := f.all["a"]
			r := conn(1)
			if tt.change != nil {
				tt.change(&r)
			}
			for _, s := range tt.told {
				a.tell(t, s)
			}
			if tt.from != 0 {
				f.now = f.now.Add(time.Second)
				has := r
				for _, n := range f.names() {
					d := f.all[n]
					d.remote(f.now, &has, tt.from, table.Stamp{Grant: tt.has, Clock: d.clock.Next(d.wall(f.now))}, 0)
				}
				f.now = f.now.Add(time.Second)
			}
			for _, s := range tt.then {
				a.tell(t, s)
			}
			f.kernel("a", r)
			for _, n := range f.names() {
				e := f.all[n].entry(t, r)
				if own := e.Origin == a.self; e.Stamp.Grant != tt.want || own == tt.overrul {
					t.Errorf("%s has grant %d.%d of %v, want %d.%d, overruled %v", n, e.Stamp.Grant.Term(), e.Stamp.Grant.Version(), e.Origin,
						tt.want.Term(), tt.want.Version(), tt.overrul)
				}
			}
			overruled := uint64(0)
			if tt.overrul {
				overruled = 1
			}
			a.want(t, Overruled, overruled)
			a.want(t, TapDamaged, 0)
		})
	}
}

var tls = netip.MustParseAddrPort("192.0.2.77:443") // of no share

// What comes late, of before the bucket was this director's, is injected so that it changes nothing that is there.
func TestLate(t *testing.T) {
	ended := func(r *ipvssync.Record) {
		r.State, r.Flags, r.Timeout = ipvssync.TCPTimeWait, ipvssync.FlagInactive, 120
	}
	udp := func(r *ipvssync.Record) {
		r.Protocol, r.State, r.Flags = ipvssync.ProtocolUDP, 0, ipvssync.FlagInactive
	}
	elsewhere := func(r *ipvssync.Record) { r.Real = netip.MustParseAddrPort("10.9.0.8:8080") }
	same := func(*ipvssync.Record) {}
	inactive := func(r *ipvssync.Record) { r.Flags |= ipvssync.FlagInactive }
	held := shareOf(2, 5, []int{1}, nil, []int{1})
	for name, tt := range map[string]struct {
		share  *Share
		before func(*ipvssync.Record) // what the replica has; nil: nothing
		change func(*ipvssync.Record)
		grant  mirror.Grant
		want   func(*ipvssync.Record) // injected, beyond change; nil: nothing
	}{
		"new":                        {held, nil, same, mirror.NewGrant(2, 4), inactive},
		"newer":                      {held, same, same, mirror.NewGrant(2, 4), inactive},
		"UDP":                        {held, nil, udp, mirror.NewGrant(2, 4), same},
		"ended":                      {held, same, ended, mirror.NewGrant(2, 4), nil},
		"with another server":        {held, same, elsewhere, mirror.NewGrant(2, 4), nil},
		"of the same table":          {held, same, elsewhere, mirror.NewGrant(2, 5), same},
		"of a later one":             {held, same, ended, mirror.NewGrant(2, 6), same},
		"not held yet":               {shareOf(2, 5, []int{1}, nil, nil), same, elsewhere, mirror.NewGrant(2, 4), same},
		"another one's":              {shareOf(2, 5, []int{2}, nil, []int{2}), same, ended, mirror.NewGrant(2, 4), same},
		"without saru":               {nil, same, elsewhere, mirror.NewGrant(2, 4), same},
		"of a service of no share's": {held, nil, func(r *ipvssync.Record) { r.Virtual = tls }, mirror.NewGrant(2, 4), same},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, "a", "b")
			f.run(2 * time.Second)
			a := f.all["a"]
			if tt.before != nil {
				r := conn(1)
				tt.before(&r)
				a.remote(f.now, &r, elder, table.Stamp{Grant: mirror.NewGrant(2, 4), Clock: a.clock.Next(a.wall(f.now))}, 0)
			}
			if tt.share != nil {
				a.tell(t, tt.share)
			}
			a.injected = nil
			r := conn(1)
			tt.change(&r)
			given := r
			a.remote(f.now, &given, elder, table.Stamp{Grant: tt.grant, Clock: a.clock.Next(a.wall(f.now))}, 0)
			if e := a.entry(t, r); e.Record.State != r.State || e.Record.Real != r.Real || e.Record.Flags != r.Flags {
				t.Errorf("the replica has %+v", e.Record)
			}
			var want []ipvssync.Record
			if tt.want != nil {
				w := r
				tt.want(&w)
				want = []ipvssync.Record{w}
			}
			if diff := cmp.Diff(want, a.injected, equate...); diff != "" {
				t.Errorf("injected (-want +got):\n%s", diff)
			}
		})
	}
	// What this director's kernel has reported meanwhile is above it.
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	a := f.all["a"]
	a.tell(t, held)
	f.kernel("a", conn(1))
	r := conn(1)
	elsewhere(&r)
	a.remote(f.now, &r, elder, table.Stamp{Grant: mirror.NewGrant(2, 4), Clock: a.clock.Next(a.wall(f.now))}, 0)
	if len(a.injected) > 0 || a.entry(t, r).Record.Real == r.Real {
		t.Errorf("injected %v over a live connection", a.injected)
	}
	// Also when it is of a farm that has forgotten its terms: then its own is published again above that.
	r = conn(1)
	elsewhere(&r)
	a.remote(f.now, &r, elder, table.Stamp{Grant: mirror.NewGrant(9, 9), Clock: a.share.since[bucketOf(1)] - 1}, 0)
	f.deliver()
	if e := f.all["b"].entry(t, r); len(a.injected) > 0 || e.Origin != a.self || e.Record.Real == r.Real {
		t.Errorf("injected %v; b has it of %v", a.injected, e.Origin)
	}
	a.want(t, Reclaimed, 1)
}

// clients are the last bytes of the addresses of those whose connections were injected, since it was last asked.
func (d *director) clients() (all []int) {
	for i := range d.injected {
		all = append(all, int(d.injected[i].Client.Addr().As4()[3]))
	}
	d.injected = nil
	slices.Sort(all)
	return all
}

// With --kernel_entries next a kernel has what is, or may soon be, its director's; the rest comes with its bucket.
func TestKernelNext(t *testing.T) {
	t.Run("the replica's buckets", func(t *testing.T) { kernelNext(t, true) })
	t.Run("others", func(t *testing.T) { kernelNext(t, false) })
}

func kernelNext(t *testing.T, plain bool) {
	shareOf := func(term, version uint32, owned, next, held []int) *Share {
		s := shareOf(term, version, owned, next, held)
		if !plain {
			fn := flow.Default
			fn.Mask4 = 24
			s.Functions[netip.MustParseAddr("192.0.2.99")] = fn
		}
		return s
	}
	f := newFarm(t, "a")
	b := f.start("b", func(c *Config) { c.KernelNext = true })
	f.run(2 * time.Second)
	same := func(step string, want ...int) {
		t.Helper()
		if diff := cmp.Diff(want, b.clients(), equate...); diff != "" {
			t.Errorf("%s: injected (-want +got):\n%s", step, diff)
		}
	}
	f.kernel("a", conn(1), conn(2), conn(3), conn(4))
	same("without saru: all", 1, 2, 3, 4)
	b.tell(t, shareOf(1, 1, []int{1}, []int{2}, nil))
	f.run(100 * time.Millisecond)
	same("nothing that came before comes again")
	template, free := conn(7), conn(8)
	template.Flags, template.Timeout, template.Client = ipvssync.FlagTemplate|ipvssync.FlagInactive, 360, netip.AddrPortFrom(template.Client.Addr(), 0)
	free.Virtual = tls
	f.kernel("a", conn(1), conn(2), conn(3), conn(4), conn(5), template, free)
	same("owner, next owner, and what is of no bucket", 1, 2, 7, 8)
	b.want(t, LeftOut, 3)
	if b.Len() != 7 {
		t.Errorf("the replica has %d entries, want all 7", b.Len())
	}
	if kept := b.Kept(); kept == nil {
		t.Error("the audit of the kernel is not told what is left out")
	} else if one, three := conn(1), conn(3); !kept(&one) || kept(&three) {
		t.Error("the audit of the kernel is told otherwise")
	}
	// Nothing else injects it either.
	three := conn(3)
	b.Restore(f.now, &three)
	b.Replace(f.now, &three)
	b.Rebind([]Service{{Protocol: 6, Virtual: conn(0).Virtual}})
	f.run(100 * time.Millisecond)
	same("a service has come", 1, 2, 7)
	b.Reinject()
	f.run(100 * time.Millisecond)
	same("all again", 1, 2, 7, 8)

	// 3 becomes this director's, 4 the one of which it is next; 2 stays, and 1 goes.
	ticket := b.tell(t, shareOf(1, 2, []int{2, 3}, []int{4}, nil))
	if b.BringOwned(f.now, 1) == plain || b.ShareReady(ticket) {
		t.Error("ready with the first of its entries")
	}
	for b.BringOwned(f.now, 3) {
	}
	same("first what it owns", 3)
	if b.ShareReady(ticket) {
		t.Error("ready before the kernel has it")
	}
	b.enter(f.now)
	if !b.ShareReady(ticket) || !b.Bringing() {
		t.Errorf("ready %v, more to bring %v", b.ShareReady(ticket), b.Bringing())
	}
	f.run(100 * time.Millisecond)
	same("then what it may own soon", 4)
	b.want(t, Brought, 2)
	if st := b.Status(f.now).Share; !st.Ready || !st.Settled || !st.Next || st.Share.Kept() != 3 {
		t.Errorf("status %+v", st)
	}
	// Told again, and what the kernel has reported itself: nothing is brought.
	b.tell(t, shareOf(1, 2, []int{2, 3}, []int{4}, []int{2, 3}))
	f.kernel("b", conn(3))
	f.run(100 * time.Millisecond)
	b.tell(t, shareOf(1, 3, []int{2}, []int{4}, nil))
	b.tell(t, shareOf(1, 4, []int{2, 3}, []int{4}, nil))
	f.run(100 * time.Millisecond)
	same("what is in the kernel")
	// Without saru again: all.
	b.tell(t, nil)
	f.run(100 * time.Millisecond)
	same("forgotten", 1, 5)
	f.kernel("a", conn(6))
	same("all from now on", 6)
}
