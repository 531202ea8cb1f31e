package kernel

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"saru/lib/ipvs"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/reconcile"
	"saru/syncd/table"
)

// TestMoveUDP shows that a record that does not say inactive replaces a UDP connection with another real server at once, and that one
// which does, behind it in the same message, sets right how it is counted. The engine relies on both.
func TestMoveUDP(t *testing.T) {
	nstest.New(t)
	s := openServices(t)
	vip, ap := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddrPort
	addService(t, s, ipvs.Service{Protocol: ipvssync.ProtocolUDP, Address: vip, Port: 53}, ipvs.MethodMasq, "10.1.0.2:53", "10.1.0.3:53")
	k := openTap(t)
	r := ipvssync.Record{
		Protocol: ipvssync.ProtocolUDP, Timeout: 300, Flags: ipvssync.FlagInactive,
		Client: ap("192.168.1.3:1"), Virtual: ap("10.0.0.100:53"), Real: ap("10.1.0.2:53"),
	}
	k.inject(t, r)
	conns(t, 1)
	r.Real = ap("10.1.0.3:53")
	active := r
	active.Flags &^= ipvssync.FlagInactive
	k.injectMany(t, []ipvssync.Record{active, r})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		counts := map[netip.Addr][2]int{}
		list, _ := listing(t, s)
		for _, d := range list[0].Destinations {
			counts[d.Address] = [2]int{d.ActiveConns, d.InactiveConns}
		}
		if counts[ap("10.1.0.2:53").Addr()] == [2]int{} && counts[ap("10.1.0.3:53").Addr()] == [2]int{0, 1} {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("active and inactive connections of the servers: %v", counts)
		}
	}
	for c, err := range ipvs.ReadConns(proc) {
		must(t, err)
		if c.Real != r.Real {
			t.Errorf("%+v", c)
		}
	}
}

// injector gives the kernel what an engine injects.
type injector struct {
	k *kernelTap
	t *testing.T
}

func (injector) Send([]byte)                 {}
func (o injector) Inject(r *ipvssync.Record) { o.k.inject(o.t, *r) }

// TestReconcileOtherServer shows what the kernel does not take: another real server of a template, and one in a record that says inactive,
// as those of UDP always do. The engine knows how to move them. Of TCP connections that are being closed, it keeps what it has.
func TestReconcileOtherServer(t *testing.T) {
	nstest.New(t)
	s := openServices(t)
	vip, ap := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddrPort
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 80}, ipvs.MethodMasq, "10.1.0.2:80", "10.1.0.3:80")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 443, Flags: ipvs.ServicePersistent, Timeout: 6 * time.Minute}, ipvs.MethodMasq, "10.1.0.2:443", "10.1.0.3:443")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 53}, ipvs.MethodMasq, "10.1.0.2:53", "10.1.0.3:53")
	k := openTap(t)
	records := []ipvssync.Record{
		{Protocol: 6, State: ipvssync.TCPFinWait, Timeout: 120, Flags: ipvssync.FlagInactive, Client: ap("192.168.1.1:1"), Virtual: ap("10.0.0.100:80"), Real: ap("10.1.0.2:80")},
		{Protocol: 6, State: 1, Timeout: 360, Flags: ipvssync.FlagTemplate | ipvssync.FlagInactive, Client: ap("192.168.1.2:0"), Virtual: ap("10.0.0.100:443"), Real: ap("10.1.0.2:443")},
		{Protocol: 17, Timeout: 300, Flags: ipvssync.FlagInactive, Client: ap("192.168.1.3:1"), Virtual: ap("10.0.0.100:53"), Real: ap("10.1.0.2:53")},
	}
	k.inject(t, records...)
	conns(t, len(records))
	replica := tableReplica{table.New(time.Now())}
	for i := range records {
		records[i].Real = netip.AddrPortFrom(netip.MustParseAddr("10.1.0.3"), records[i].Real.Port())
	}
	replica.learned(t, k, records, 20)
	list, _ := listing(t, s)
	cfg := reconcile.Config{Services: list}
	check := func(step string, keeps int, want ...string) []reconcile.Finding {
		t.Helper()
		res, found := twice(t, cfg, replica)
		if diff := gocmp.Diff(want, describe(found)); diff != "" || res.Counts[reconcile.KernelKeeps] != keeps {
			t.Errorf("%s: in all %v (-want +got)\n%s", step, res.Counts, diff)
		}
		return found
	}
	found := check("at first", 1, "other_server tcp 192.168.1.2:0", "other_server udp 192.168.1.3:1")
	inject, move, publish := reconcile.Repairs(found)
	if len(inject) != 0 || len(move) != 2 || len(publish) != 0 {
		t.Errorf("%d to inject, %d to move, %d to publish", len(inject), len(move), len(publish))
	}
	// The engine knows how.
	now := time.Now()
	e := engine.New(engine.Config{Node: "d1", Links: []string{"eth0"}, Output: injector{k, t}, Log: slog.New(slog.DiscardHandler), Now: now})
	e.Learned(now, move, nil)
	for i := range move {
		e.Replace(now, &move[i].Record)
	}
	time.Sleep(2100 * time.Millisecond) // a template takes two seconds
	e.Tick(time.Now())
	check("after the repair", 1)
	list, _ = listing(t, s)
	for _, svc := range list {
		for _, d := range svc.Destinations {
			want := [3]int{}
			switch {
			case d.Port == 443 && d.Address == netip.MustParseAddr("10.1.0.3"):
				want[2] = 1
			case (d.Port == 53) == (d.Address == netip.MustParseAddr("10.1.0.3")) && d.Port != 443:
				want[1] = 1
			}
			if got := [3]int{d.ActiveConns, d.InactiveConns, d.PersistentConns}; got != want {
				t.Errorf("%s: active, inactive and persistent connections %v, want %v", d, got, want)
			}
		}
	}
}
