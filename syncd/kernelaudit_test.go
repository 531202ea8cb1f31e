package syncd

import (
	"net/netip"
	"testing"
	"time"

	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/reconcile"
	"saru/syncd/table"
)

// TestUnchanged: what an audit has found is not published over what the kernel has reported since.
func TestUnchanged(t *testing.T) {
	nstest.New(t)
	nstest.Veth(t, "a0", []string{"192.0.2.10/24"}, nstest.Other(t), "b0", nil)
	a := startMemory(t, "a", "a0")
	eventually(t, "synced", synced(a))
	r := ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  netip.MustParseAddrPort("192.168.1.5:40000"),
		Virtual: netip.MustParseAddrPort("10.0.0.100:80"), Real: netip.MustParseAddrPort("10.1.0.2:80"),
	}
	report := func(state uint16) (en table.Entry) {
		a.With(func(e *engine.Engine) {
			again := r
			again.State = state
			if !e.Found(time.Now(), &again, 0) {
				t.Fatal("not entered")
			}
			en, _, _ = e.Lookup(time.Now(), &r)
		})
		return en
	}
	is := func(f reconcile.Finding) (same bool) {
		a.With(func(e *engine.Engine) { same = unchanged(e, time.Now(), &f) })
		return same
	}
	kernel := reconcile.Conn{Record: r}
	missing := reconcile.Finding{Kind: reconcile.MissingInReplica, Kernel: &kernel}
	if !is(missing) {
		t.Error("what is missing is not missing")
	}
	en := report(ipvssync.TCPEstablished)
	differs := reconcile.Finding{Kind: reconcile.OtherState, Kernel: &kernel, Replica: &en, Local: true}
	if is(missing) || !is(differs) {
		t.Errorf("after a report: missing %v, as compared %v", is(missing), is(differs))
	}
	report(ipvssync.TCPFinWait)
	if is(differs) {
		t.Error("what was reported since goes unnoticed")
	}
}
