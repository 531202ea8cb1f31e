package saru

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"saru/lib/flow"
	"saru/lib/ipvs"
	"saru/netfilter/share"
	"saru/proto/coord"
)

func serviceAt(protocol uint8, at string, change func(*ipvs.Service)) kernelService {
	a := netip.MustParseAddrPort(at)
	s := kernelService{Service: ipvs.Service{Family: unix.AF_INET, Protocol: protocol, Address: a.Addr(), Port: a.Port(), Scheduler: "rr"}}
	if change != nil {
		change(&s.Service)
	}
	s.destinations = []ipvs.Destination{{Address: netip.MustParseAddr("10.0.0.1"), Port: a.Port(), Weight: 1}}
	return s
}

// TestTake: services that belong together on one director make the share function of their address that of the source address, for all directors to see.
func TestTake(t *testing.T) {
	whole, source := uint8(flow.Default.Sense), uint8(flow.SenseOf(flow.SrcAddr))
	for _, tt := range []struct {
		name string
		svc  kernelService
		want coord.Virtual
	}{
		{"plain", serviceAt(unix.IPPROTO_TCP, "192.0.2.1:80", nil), coord.Virtual{Fields: whole, Mask: 32}},
		{"FTP", serviceAt(unix.IPPROTO_TCP, "192.0.2.1:21", nil), coord.Virtual{Fields: source, Mask: 32}},
		{"UDP port 21", serviceAt(unix.IPPROTO_UDP, "192.0.2.1:21", nil), coord.Virtual{Fields: whole, Mask: 32}},
		{"IKE", serviceAt(unix.IPPROTO_UDP, "192.0.2.1:500", nil), coord.Virtual{Fields: source, Mask: 32}},
		{"IKE over NAT", serviceAt(unix.IPPROTO_UDP, "192.0.2.1:4500", nil), coord.Virtual{Fields: source, Mask: 32}},
		{"persistent", serviceAt(unix.IPPROTO_TCP, "192.0.2.1:80", func(s *ipvs.Service) {
			s.Flags, s.Netmask = ipvs.ServicePersistent, 0x00ffffff
		}), coord.Virtual{Fields: source, Mask: 24}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := virtuals{auto: true, sense: flow.Default.Sense}
			v.take([]kernelService{tt.svc})
			tt.want.Address = netip.MustParseAddr("192.0.2.1")
			if got, usable := v.local(); !usable || !slices.Equal(got.Virtuals, []coord.Virtual{tt.want}) {
				t.Errorf("%+v, usable %v, want %+v", got.Virtuals, usable, tt.want)
			}
		})
	}
}

// TestClosedWithoutService: an address of the farm that has no services here, or not any more, is closed here: this director gets its packets, and would answer connections
// of others with resets.
func TestClosedWithoutService(t *testing.T) {
	v := virtuals{auto: true, sense: flow.Default.Sense}
	v.take([]kernelService{serviceAt(unix.IPPROTO_TCP, "192.0.2.1:80", nil), serviceAt(unix.IPPROTO_TCP, "192.0.2.2:80", nil)})
	agreed, _ := v.local()
	open := func() (out map[string]bool) {
		out = map[string]bool{}
		for _, e := range v.filter(&agreed) {
			out[e.Address.String()] = e.Open
		}
		return out
	}
	if got := open(); len(got) != 2 || !got["192.0.2.1"] || !got["192.0.2.2"] {
		t.Fatalf("%v", got)
	}
	v.take([]kernelService{serviceAt(unix.IPPROTO_TCP, "192.0.2.1:80", nil)})
	got := open()
	if is, there := got["192.0.2.2"]; !there || is || !got["192.0.2.1"] {
		t.Errorf("%v", got)
	}
	if gone := v.filter(nil); !slices.EqualFunc(gone, []string{"192.0.2.1"}, func(e share.Virtual, a string) bool { return e.Address.String() == a && !e.Open }) {
		t.Errorf("without a table: %v", gone)
	}
}
