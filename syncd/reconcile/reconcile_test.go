package reconcile

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/lib/ipvs"
	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

const (
	self  = peer.ID(1)
	other = peer.ID(2)
	tick  = "169.254.81.1:8848"

	heading = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires\n"
)

var t0 = time.Unix(1_000_000, 0)

// replica is a table as syncd holds it.
type replica struct {
	t   *table.Table
	now time.Time
	// lookups are the sizes of the calls of Lookup, walks the number of those of Walk.
	lookups []int
	walks   int
}

func newReplica() *replica { return &replica{t: table.New(t0.Add(-time.Hour)), now: t0} }

func (r *replica) Lookup(records []ipvssync.Record, out []View) {
	r.lookups = append(r.lookups, len(records))
	for i := range records {
		e, known := r.t.Get(r.now, &records[i])
		out[i] = View{Entry: e, Known: known, Local: known && e.Origin == self}
	}
}

func (r *replica) Walk(c table.Cursor, fn func(*table.Entry, bool) bool) table.Cursor {
	r.walks++
	return r.t.Walk(r.now, c, 100, func(e *table.Entry) bool { return fn(e, e.Origin == self) })
}

// entry is a connection in the replica.
type entry struct {
	from    peer.ID
	record  ipvssync.Record
	age     uint32
	clock   uint64 // of its stamp; 0 stands for 1
	remains uint32 // instead of age, where it is not 0
}

func (r *replica) put(tb testing.TB, e entry) {
	tb.Helper()
	if e.remains > 0 {
		e.age = e.record.Timeout - e.remains
	}
	if out := r.t.Put(r.now, &e.record, e.from, table.Stamp{Clock: max(e.clock, 1)}, e.age); out != table.Inserted && out != table.Replaced {
		tb.Fatalf("%v: outcome %d", e.record.Client, out)
	}
}

// farm is the services of all tests here.
func farm() []Service {
	a := netip.MustParseAddr
	servers := func(method uint32, list ...string) (out []ipvs.Destination) {
		for _, s := range list {
			ap := netip.MustParseAddrPort(s)
			out = append(out, ipvs.Destination{Address: ap.Addr(), Port: ap.Port(), Method: method, Weight: 1})
		}
		return out
	}
	vip, vip6 := a("10.0.0.100"), a("fd00::64")
	return []Service{
		{Service: ipvs.Service{Protocol: 6, Address: vip, Port: 80}, Destinations: servers(ipvs.MethodMasq, "10.1.0.2:8080", "10.1.0.3:8080")},
		{Service: ipvs.Service{Protocol: 6, Address: vip, Port: 81}, Destinations: servers(ipvs.MethodDirect, "10.1.0.2:81", "10.1.0.3:81")},
		{Service: ipvs.Service{Protocol: 6, Address: vip, Port: 443, Flags: ipvs.ServicePersistent, Timeout: 6 * time.Minute}, Destinations: servers(ipvs.MethodMasq, "10.1.0.2:443", "10.1.0.3:443")},
		{Service: ipvs.Service{Protocol: 17, Address: vip, Port: 53}, Destinations: servers(ipvs.MethodTunnel, "10.1.0.2:53")},
		{Service: ipvs.Service{Protocol: 17, Address: vip, Port: 5060, Flags: ipvs.ServicePersistent, Timeout: time.Minute, PEName: "sip"}, Destinations: servers(ipvs.MethodMasq, "10.1.0.2:5060")},
		{Service: ipvs.Service{Protocol: 132, Address: vip, Port: 3000}, Destinations: servers(ipvs.MethodMasq, "10.1.0.2:3000")},
		{Service: ipvs.Service{Protocol: 6, Address: vip, Port: 21, Flags: ipvs.ServicePersistent, Timeout: 5 * time.Minute}, Destinations: servers(ipvs.MethodMasq, "10.1.0.4:21")},
		{Service: ipvs.Service{Protocol: 6, Address: a("10.0.0.101"), Port: 0, Flags: ipvs.ServicePersistent, Timeout: 5 * time.Minute}, Destinations: servers(ipvs.MethodDirect, "10.1.0.2:0")},
		{Service: ipvs.Service{Fwmark: 7, Flags: ipvs.ServicePersistent, Timeout: 10 * time.Minute}, Destinations: servers(ipvs.MethodDirect, "10.1.0.9:0")},
		{Service: ipvs.Service{Protocol: 6, Address: vip6, Port: 443}, Destinations: servers(ipvs.MethodDirect, "[fd01::2]:443")},
		{Service: ipvs.Service{Fwmark: 7, Family: 10, Timeout: 5 * time.Minute}, Destinations: servers(ipvs.MethodLocal, "[fd01::9]:0")},
	}
}

func config() Config {
	return Config{Services: farm(), Tick: netip.MustParseAddrPort(tick), Now: func() time.Time { return t0 }}
}

// lines parses lines of the list, each without spaces around.
func lines(tb testing.TB, text ...string) (out []ipvs.ProcConn) {
	tb.Helper()
	for c, err := range ipvs.ParseConns(strings.NewReader(heading + strings.Join(append(text, ""), "\n"))) {
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func listOf(conns []ipvs.ProcConn) func(func(ipvs.ProcConn, error) bool) {
	return func(yield func(ipvs.ProcConn, error) bool) {
		for _, c := range conns {
			if !yield(c, nil) {
				return
			}
		}
	}
}

func pass(tb testing.TB, cfg Config, r Replica, list []ipvs.ProcConn) Result {
	tb.Helper()
	res, err := Run(tb.Context(), cfg, r, listOf(list))
	if err != nil {
		tb.Fatal(err)
	}
	return res
}

// record makes a record from client, virtual and real endpoint.
func record(protocol uint8, state uint16, timeout, flags uint32, client, virtual, server string) ipvssync.Record {
	ap := netip.MustParseAddrPort
	return ipvssync.Record{Protocol: protocol, State: state, Timeout: timeout, Flags: flags, Client: ap(client), Virtual: ap(virtual), Real: ap(server)}
}

// kindsOf names the kinds that occurred, each as often as it did.
func kindsOf(c Counts) (out []string) {
	for k, n := range c.All {
		out = append(out, slices.Repeat([]string{k.String()}, n)...)
	}
	return out
}
