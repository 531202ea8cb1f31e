package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

var addrEqual = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// in16 is an address as the kernel sends it: 16 bytes in both families.
func in16(s string) []byte {
	b := make([]byte, 16)
	copy(b, netip.MustParseAddr(s).AsSlice())
	return b
}

func TestServicesList(t *testing.T) {
	flags := func(v uint32) []byte { return append(u32(v), u32(0xffffffff)...) }
	g, _ := fakeKernel(t, genltest.CheckRequest(testFamily.ID, cmdGetService, netlink.Request|netlink.Dump,
		func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return []genetlink.Message{
				reply(nest(attrService, attr(svcFamily, u16(2)), attr(svcProtocol, u16(6)), attr(svcAddress, in16("10.0.0.100")),
					attr(svcPort, be16(80)), attr(svcSched, text0("wlc")), attr(svcFlags, flags(0x3)), attr(svcTimeout, u32(360)),
					attr(svcNetmask, []byte{255, 255, 255, 0}), attr(svcPEName, text0("sip")), attr(10, make([]byte, 8)))),
				reply(nest(attrService, attr(svcFamily, u16(10)), attr(svcProtocol, u16(17)), attr(svcAddress, in16("fd00::64")),
					attr(svcPort, be16(53)), attr(svcSched, text0("rr")), attr(svcFlags, flags(0x2)), attr(svcTimeout, u32(0)),
					attr(svcNetmask, u32(64)))),
				reply(nest(attrService, attr(svcFamily, u16(2)), attr(svcFwmark, u32(7)), attr(svcSched, text0("rr")),
					attr(svcFlags, flags(0x2)), attr(svcTimeout, u32(0)), attr(svcNetmask, []byte{255, 255, 255, 255}))),
			}, nil
		}))
	got, err := services{genl: g}.Services()
	if err != nil {
		t.Fatal(err)
	}
	want := []Service{
		{Protocol: 6, Address: netip.MustParseAddr("10.0.0.100"), Port: 80, Family: 2, Scheduler: "wlc", Flags: ServicePersistent,
			Timeout: 360 * time.Second, Netmask: 0xffffff00, PEName: "sip"},
		{Protocol: 17, Address: netip.MustParseAddr("fd00::64"), Port: 53, Family: 10, Scheduler: "rr", Netmask: 64},
		{Fwmark: 7, Family: 2, Scheduler: "rr", Netmask: 0xffffffff},
	}
	if diff := cmp.Diff(want, got, addrEqual); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, s := range got {
		names = append(names, s.String())
	}
	if diff := cmp.Diff([]string{"TCP 10.0.0.100:80", "UDP [fd00::64]:53", "fwmark 7"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestDestinationsList(t *testing.T) {
	svc := Service{Protocol: 6, Address: netip.MustParseAddr("fd00::64"), Port: 80}
	var asked []string
	found := true
	g, _ := fakeKernel(t, func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
		if m.Header.Command == 0 {
			return nil, io.EOF // genltest receives once more after a listing
		}
		asked = append(asked, fmt.Sprintf("%d %#x", m.Header.Command, uint16(n.Header.Flags)))
		switch {
		case m.Header.Command == cmdGetService && found:
			return []genetlink.Message{reply(nest(attrService))}, nil
		case m.Header.Command == cmdGetService:
			return nil, genltest.Error(int(unix.ESRCH))
		case len(asked) > 1:
			return nil, io.EOF
		}
		want, _ := encodeKey(svc.Key())
		if diff := cmp.Diff(want, m.Data); diff != "" {
			t.Error(diff)
		}
		return []genetlink.Message{
			reply(nest(attrDest, attr(destAddress, in16("fd01::2")), attr(destPort, be16(8080)), attr(destMethod, u32(3)),
				attr(destWeight, u32(5)), attr(destActive, u32(1)), attr(destInactive, u32(2)), attr(destPersistent, u32(3)))),
			reply(nest(attrDest, attr(destAddress, in16("10.1.0.2")), attr(destPort, be16(80)), attr(destMethod, u32(2)),
				attr(destWeight, u32(0)), attr(destFamily, u16(2)))),
		}, nil
	})
	s := services{genl: g}
	got, err := s.Destinations(svc)
	if err != nil {
		t.Fatal(err)
	}
	want := []Destination{
		{Address: netip.MustParseAddr("fd01::2"), Port: 8080, Method: MethodDirect, Weight: 5, ActiveConns: 1, InactiveConns: 2, PersistentConns: 3},
		{Address: netip.MustParseAddr("10.1.0.2"), Port: 80, Method: MethodTunnel},
	}
	if diff := cmp.Diff(want, got, addrEqual); diff != "" {
		t.Error(diff)
	}
	// A service without destinations and a service that does not exist look the same in the dump.
	if got, err := s.Destinations(svc); len(got) != 0 || err != nil {
		t.Errorf("no destinations: %v, %v", got, err)
	}
	found = false
	if _, err := s.Destinations(svc); !errors.Is(err, ErrNotFound) {
		t.Errorf("no service: %v", err)
	}
	if diff := cmp.Diff([]string{"8 0x301", "8 0x301", "4 0x1", "8 0x301", "4 0x1"}, asked); diff != "" {
		t.Error(diff)
	}
}

func TestServicesBadReply(t *testing.T) {
	for name, m := range map[string]genetlink.Message{
		"no family":     reply(nest(attrService, attr(svcAddress, in16("10.0.0.1")))),
		"short address": reply(nest(attrService, attr(svcFamily, u16(10)), attr(svcAddress, []byte{1, 2, 3, 4}))),
		"no address":    reply(nest(attrService, attr(svcFamily, u16(2)))),
		"short family":  reply(nest(attrService, attr(svcFamily, []byte{2}))),
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := fakeKernel(t, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
				return []genetlink.Message{m}, nil
			})
			if got, err := (services{genl: g}).Services(); err == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestToMoby(t *testing.T) {
	network := func(v uint32) uint32 { return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v)) }
	for name, tt := range map[string]struct {
		in   Service
		want moby.Service
	}{
		"IPv4": {Service{Protocol: 6, Address: netip.MustParseAddr("::ffff:10.0.0.1"), Port: 80, Scheduler: "rr", Timeout: time.Minute, Flags: 3},
			moby.Service{Protocol: 6, Address: []byte{10, 0, 0, 1}, Port: 80, SchedName: "rr", Timeout: 60, Flags: 1, Netmask: network(0xffffffff), AddressFamily: 2}},
		"IPv4 mask": {Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.1"), Netmask: 0xffffff00},
			moby.Service{Protocol: 6, Address: []byte{10, 0, 0, 1}, Netmask: network(0xffffff00), AddressFamily: 2}},
		"IPv6": {Service{Protocol: 17, Address: netip.MustParseAddr("fd00::1"), PEName: "sip"},
			moby.Service{Protocol: 17, Address: netip.MustParseAddr("fd00::1").AsSlice(), Netmask: 128, AddressFamily: 10, PEName: "sip"}},
		"fwmark IPv6": {Service{Fwmark: 9, Family: 10}, moby.Service{FWMark: 9, Netmask: 128, AddressFamily: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, *toMoby(tt.in)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// fakeHandle is a moby handle whose calls are a function.
type fakeHandle struct {
	call   func() error
	closed atomic.Bool
}

func (h *fakeHandle) NewService(*moby.Service) error                        { return h.call() }
func (h *fakeHandle) DelService(*moby.Service) error                        { return h.call() }
func (h *fakeHandle) NewDestination(*moby.Service, *moby.Destination) error { return h.call() }
func (h *fakeHandle) DelDestination(*moby.Service, *moby.Destination) error { return h.call() }
func (h *fakeHandle) Close()                                                { h.closed.Store(true) }

func TestWriteErrors(t *testing.T) {
	svc := Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.1"), Port: 80, Scheduler: "rr"}
	dst := Destination{Address: netip.MustParseAddr("10.1.0.2"), Port: 80}
	var errno error
	s := services{w: &writer{timeout: time.Second, open: func() (handle, error) {
		return &fakeHandle{call: func() error { return errno }}, nil
	}}}
	for _, tt := range []struct{ got, want error }{
		{nil, nil}, {unix.EEXIST, ErrExists}, {unix.ESRCH, ErrNotFound}, {unix.ENOENT, ErrNotFound}, {unix.EINVAL, unix.EINVAL},
	} {
		errno = tt.got
		for step, err := range map[string]error{
			"add virtual service TCP 10.0.0.1:80":                      s.AddService(svc),
			"delete virtual service TCP 10.0.0.1:80":                   s.DeleteService(svc),
			"add 10.1.0.2:80 to virtual service TCP 10.0.0.1:80":       s.AddDestination(svc, dst),
			"delete 10.1.0.2:80 from virtual service TCP 10.0.0.1:80:": s.DeleteDestination(svc, dst),
		} {
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), step) {
				t.Errorf("%s with %v: %v", step, tt.got, err)
			}
		}
	}
	if err := s.AddService(svc.Key()); err == nil {
		t.Error("a service without scheduler is accepted; the kernel would take it with none")
	}
}

// TestWriteTimeout has a moby that never returns until it is closed, as the real one without an answer.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var handles []*fakeHandle
		var hang atomic.Bool
		hang.Store(true)
		w := &writer{timeout: 5 * time.Second}
		w.open = func() (handle, error) {
			h := &fakeHandle{}
			h.call = func() error {
				for hang.Load() && !h.closed.Load() {
					time.Sleep(3 * time.Second) // moby's receive timeout
				}
				return nil
			}
			handles = append(handles, h)
			return h, nil
		}
		s := services{w: w}
		svc := Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.1"), Port: 80, Scheduler: "rr"}
		start := time.Now()
		if err := s.AddService(svc); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		hang.Store(false)
		if err := s.AddService(svc); err != nil {
			t.Fatal(err)
		}
		if len(handles) != 2 || !handles[0].closed.Load() || handles[1].closed.Load() {
			t.Errorf("%d handles", len(handles))
		}
		if err := w.close(); err != nil { // waits for the first call
			t.Fatal(err)
		}
		if err := s.AddService(svc); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}
