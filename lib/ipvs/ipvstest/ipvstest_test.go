package ipvstest_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/ipvs"
	"saru/lib/ipvs/ipvstest"
)

var (
	svc  = ipvs.Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.100"), Port: 80, Scheduler: "rr"}
	dst  = ipvs.Destination{Address: netip.MustParseAddr("10.1.0.2"), Port: 8080, Method: ipvs.MethodDirect, Weight: 1}
	addr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

func TestServices(t *testing.T) {
	var k ipvstest.Kernel
	s := k.Services()
	var _ ipvs.Services = s
	mapped := svc
	mapped.Address = netip.MustParseAddr("::ffff:10.0.0.100")
	for i, step := range []struct{ got, want error }{
		{s.AddDestination(svc, dst), ipvs.ErrNotFound},
		{s.AddService(svc), nil},
		{s.AddService(mapped), ipvs.ErrExists},
		{s.AddDestination(svc, dst), nil},
		{s.AddDestination(svc, dst), ipvs.ErrExists},
		{s.DeleteDestination(svc, ipvs.Destination{Address: dst.Address, Port: 1}), ipvs.ErrNotFound},
	} {
		if !errors.Is(step.got, step.want) {
			t.Errorf("step %d: %v, want %v", i, step.got, step.want)
		}
	}
	busy := dst
	busy.ActiveConns = 3
	if err := k.SetConns(svc, busy); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Destinations(svc); err != nil || cmp.Diff([]ipvs.Destination{busy}, got, addr) != "" {
		t.Errorf("%+v, %v", got, err)
	}
	want := svc
	want.Family = 2
	if got, err := s.Services(); err != nil || cmp.Diff([]ipvs.Service{want}, got, addr) != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := errors.Join(s.DeleteDestination(svc, dst), s.DeleteService(svc)); err != nil {
		t.Error(err)
	}
	if err := s.DeleteService(svc); !errors.Is(err, ipvs.ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Destinations(svc); !errors.Is(err, ipvs.ErrNotFound) {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{
		"add service TCP 10.0.0.100:80 rr", "add destination 10.1.0.2:8080 to TCP 10.0.0.100:80",
		"delete destination 10.1.0.2:8080 from TCP 10.0.0.100:80", "delete service TCP 10.0.0.100:80",
	}, k.Log()); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Services(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestDaemons(t *testing.T) {
	var k ipvstest.Kernel
	d := k.Daemons()
	master := ipvs.Daemon{State: ipvs.Master, Interface: "syncd0", SyncID: 1, MaxLen: 1}
	backup := ipvs.Daemon{State: ipvs.Backup, Interface: "syncd0", SyncID: 2}
	if err := errors.Join(d.Start(backup), d.Start(master)); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(master); !errors.Is(err, ipvs.ErrExists) {
		t.Error(err)
	}
	got, err := d.List()
	if err != nil || len(got) != 2 || got[0].State != ipvs.Master || got[0].Port != 8848 || got[0].MaxLen != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	refuse := errors.New("refused")
	k.Fail(func(op string) error {
		if op == "Daemons.Stop" {
			return refuse
		}
		return nil
	})
	if err := d.Stop(ipvs.Master); !errors.Is(err, refuse) {
		t.Error(err)
	}
	k.Fail(nil)
	if err := errors.Join(d.Stop(ipvs.Master), d.Stop(ipvs.Backup)); err != nil {
		t.Error(err)
	}
	if err := d.Stop(ipvs.Backup); !errors.Is(err, ipvs.ErrNotRunning) {
		t.Error(err)
	}
}
