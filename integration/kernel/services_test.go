package kernel

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"saru/lib/ipvs"
	"saru/lib/tun/nstest"
)

var sameAddr = gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func openServices(tb testing.TB) ipvs.Services {
	tb.Helper()
	s, err := ipvs.OpenServices()
	must(tb, err)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func byName(list []ipvs.Service) []ipvs.Service {
	slices.SortFunc(list, func(a, b ipvs.Service) int { return cmp.Compare(a.String(), b.String()) })
	return list
}

// TestServices writes services of every kind and reads them back, from the kernel and by ipvsadm.
func TestServices(t *testing.T) {
	nstest.New(t)
	tool(t, "modprobe", "ip_vs_pe_sip")
	s := openServices(t)
	if list, err := s.Services(); err != nil || len(list) != 0 {
		t.Fatalf("at first: %v, %v", list, err)
	}
	vip4, vip6 := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00::64")
	want := byName([]ipvs.Service{
		{Protocol: 6, Address: vip4, Port: 80, Family: 2, Scheduler: "rr", Netmask: 0xffffffff},
		{Protocol: 6, Address: vip4, Port: 443, Family: 2, Scheduler: "wlc", Flags: ipvs.ServicePersistent, Timeout: 350 * time.Second, Netmask: 0xffffff00},
		{Protocol: 17, Address: vip4, Port: 53, Family: 2, Scheduler: "rr", Flags: ipvs.ServiceOnePacket, Netmask: 0xffffffff},
		{Protocol: 17, Address: vip4, Port: 5060, Family: 2, Scheduler: "rr", Flags: ipvs.ServicePersistent, Timeout: time.Minute, Netmask: 0xffffffff, PEName: "sip"},
		{Protocol: 6, Address: vip6, Port: 80, Family: 10, Scheduler: "sh", Flags: ipvs.ServiceSched1, Netmask: 128},
		{Protocol: 6, Address: vip6, Port: 443, Family: 10, Scheduler: "rr", Flags: ipvs.ServicePersistent, Timeout: time.Hour, Netmask: 64},
		{Fwmark: 7, Family: 2, Scheduler: "rr", Netmask: 0xffffffff},
		{Fwmark: 7, Family: 10, Scheduler: "rr", Netmask: 128},
	})
	for _, svc := range want {
		must(t, s.AddService(svc))
		if err := s.AddService(svc); !errors.Is(err, ipvs.ErrExists) {
			t.Errorf("%s twice: %v", svc, err)
		}
	}
	got, err := s.Services()
	must(t, err)
	if diff := gocmp.Diff(want, byName(got), sameAddr); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	listing := strings.Split(strings.TrimSpace(tool(t, "ipvsadm", "-Sn")), "\n")
	slices.Sort(listing)
	for i := range listing {
		listing[i] = strings.TrimSpace(listing[i])
	}
	wantListing := []string{
		"-A -f 7 -6 -s rr",
		"-A -f 7 -s rr",
		"-A -t 10.0.0.100:443 -s wlc -p 350 -M 255.255.255.0",
		"-A -t 10.0.0.100:80 -s rr",
		"-A -t [fd00::64]:443 -s rr -p 3600 -M 64",
		"-A -t [fd00::64]:80 -s sh -b sh-fallback",
		"-A -u 10.0.0.100:5060 -s rr -p 60 --pe sip",
		"-A -u 10.0.0.100:53 -s rr -o",
	}
	slices.Sort(wantListing)
	if diff := gocmp.Diff(wantListing, listing); diff != "" {
		t.Errorf("ipvsadm -Sn (-want +got)\n%s", diff)
	}
	for _, svc := range want {
		must(t, s.DeleteService(svc.Key()))
		if err := s.DeleteService(svc); !errors.Is(err, ipvs.ErrNotFound) {
			t.Errorf("delete %s twice: %v", svc, err)
		}
	}
	if out := tool(t, "ipvsadm", "-Sn"); out != "" {
		t.Errorf("left behind:\n%s", out)
	}
	bad := ipvs.Service{Protocol: 6, Address: vip4, Port: 80, Scheduler: "nosuchscheduler"}
	if err := s.AddService(bad); err == nil || !strings.Contains(err.Error(), "TCP 10.0.0.100:80") {
		t.Errorf("unknown scheduler: %v", err)
	}
}

func TestDestinations(t *testing.T) {
	nstest.New(t)
	s := openServices(t)
	svc := ipvs.Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.100"), Port: 80, Scheduler: "rr"}
	dst := ipvs.Destination{Address: netip.MustParseAddr("10.1.0.2"), Port: 80, Method: ipvs.MethodDirect, Weight: 3}
	if _, err := s.Destinations(svc); !errors.Is(err, ipvs.ErrNotFound) {
		t.Errorf("destinations of no service: %v", err)
	}
	if err := s.AddDestination(svc, dst); !errors.Is(err, ipvs.ErrNotFound) {
		t.Errorf("add to no service: %v", err)
	}
	must(t, s.AddService(svc))
	if list, err := s.Destinations(svc); err != nil || len(list) != 0 {
		t.Errorf("destinations of an empty service: %v, %v", list, err)
	}
	want := []ipvs.Destination{
		dst,
		{Address: netip.MustParseAddr("10.1.0.3"), Port: 8080, Method: ipvs.MethodMasq, Weight: 0},
		{Address: netip.MustParseAddr("10.1.0.4"), Port: 80, Method: ipvs.MethodTunnel, Weight: 65535},
	}
	for _, d := range want {
		must(t, s.AddDestination(svc, d))
		if err := s.AddDestination(svc, d); !errors.Is(err, ipvs.ErrExists) {
			t.Errorf("%s twice: %v", d, err)
		}
	}
	got, err := s.Destinations(svc)
	must(t, err)
	slices.SortFunc(got, func(a, b ipvs.Destination) int { return a.Address.Compare(b.Address) })
	if diff := gocmp.Diff(want, got, sameAddr); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	must(t, s.DeleteDestination(svc, dst))
	if err := s.DeleteDestination(svc, dst); !errors.Is(err, ipvs.ErrNotFound) {
		t.Errorf("delete twice: %v", err)
	}

	six := ipvs.Service{Protocol: 17, Address: netip.MustParseAddr("fd00::64"), Port: 53, Scheduler: "rr"}
	six1 := ipvs.Destination{Address: netip.MustParseAddr("fd01::2"), Port: 53, Method: ipvs.MethodMasq, Weight: 1}
	must(t, errors.Join(s.AddService(six), s.AddDestination(six, six1)))
	if got, err := s.Destinations(six); err != nil || gocmp.Diff([]ipvs.Destination{six1}, got, sameAddr) != "" {
		t.Errorf("IPv6: %v, %v", got, err)
	}
}

// TestServicesPerNamespace looks for a service of one namespace in another.
func TestServicesPerNamespace(t *testing.T) {
	nstest.New(t)
	other := nstest.Other(t)
	s := openServices(t)
	must(t, s.AddService(ipvs.Service{Fwmark: 1, Scheduler: "rr"}))
	other.Do(t, func() {
		if list, err := openServices(t).Services(); err != nil || len(list) != 0 {
			t.Errorf("in another namespace: %v, %v", list, err)
		}
	})
}
