package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// Attributes of a service (IPVS_SVC_ATTR_*) and of a destination (IPVS_DEST_ATTR_*).
const (
	svcFamily   = 1
	svcProtocol = 2
	svcAddress  = 3
	svcPort     = 4
	svcFwmark   = 5
	svcSched    = 6
	svcFlags    = 7
	svcTimeout  = 8
	svcNetmask  = 9
	svcPEName   = 11

	destAddress    = 1
	destPort       = 2
	destMethod     = 3
	destWeight     = 4
	destActive     = 7
	destInactive   = 8
	destPersistent = 9
	destFamily     = 11
)

// methodMask is IP_VS_CONN_F_FWD_MASK.
const methodMask = 0x7

type services struct {
	*genl
	w *writer
}

// OpenServices connects to the virtual services in the network namespace of the calling thread. ErrNotAvailable when
// the kernel has no IPVS.
func OpenServices() (Services, error) {
	g, err := openKernel()
	if err != nil {
		return nil, err
	}
	w := &writer{open: openMoby, timeout: writeTimeout}
	if err := w.connect(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return services{g, w}, nil
}

func (s services) Close() error {
	return errors.Join(s.genl.Close(), s.w.close())
}

func (s services) Services() ([]Service, error) {
	replies, err := s.execute(cmdGetService, list, nil)
	if err != nil {
		return nil, fmt.Errorf("list virtual services: %w", err)
	}
	all := make([]Service, 0, len(replies))
	for _, m := range replies {
		one, err := decodeService(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list virtual services: %w", err)
		}
		all = append(all, one)
	}
	return all, nil
}

func (s services) Destinations(svc Service) ([]Destination, error) {
	data, err := encodeKey(svc.Key())
	if err != nil {
		return nil, fmt.Errorf("list destinations of %s: %w", svc, err)
	}
	// The kernel dumps nothing for a service that it does not know, without an error (ip_vs_genl_dump_dests), so ask for
	// the service as well.
	replies, err := s.execute(cmdGetDest, list, data)
	if err == nil && len(replies) == 0 {
		_, err = s.execute(cmdGetService, get, data)
	}
	if err != nil {
		return nil, fmt.Errorf("list destinations of %s: %w", svc, mapErrno(err))
	}
	all := make([]Destination, 0, len(replies))
	for _, m := range replies {
		one, err := decodeDestination(m.Data, svc.Key().Family)
		if err != nil {
			return nil, fmt.Errorf("list destinations of %s: %w", svc, err)
		}
		all = append(all, one)
	}
	return all, nil
}

func (s services) AddService(svc Service) error {
	if svc.Scheduler == "" {
		return fmt.Errorf("add virtual service %s: no scheduler given", svc)
	}
	return s.write("add virtual service "+svc.String(), func(h handle) error {
		return h.NewService(toMoby(svc))
	})
}

func (s services) DeleteService(svc Service) error {
	return s.write("delete virtual service "+svc.String(), func(h handle) error {
		return h.DelService(toMoby(svc))
	})
}

func (s services) AddDestination(svc Service, d Destination) error {
	return s.write(fmt.Sprintf("add %s to virtual service %s", d, svc), func(h handle) error {
		return h.NewDestination(toMoby(svc), toMobyDestination(d))
	})
}

func (s services) DeleteDestination(svc Service, d Destination) error {
	return s.write(fmt.Sprintf("delete %s from virtual service %s", d, svc), func(h handle) error {
		return h.DelDestination(toMoby(svc), toMobyDestination(d))
	})
}

func (s services) write(step string, fn func(handle) error) error {
	if err := s.w.do(fn); err != nil {
		return fmt.Errorf("%s: %w", step, mapErrno(err))
	}
	return nil
}

// mapErrno names what callers tell apart (net/netfilter/ipvs/ip_vs_ctl.c: ESRCH for a service, ENOENT for a
// destination).
func mapErrno(err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return ErrExists
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
		return ErrNotFound
	}
	return err
}

// String names the service as ipvsadm does.
func (s Service) String() string {
	s = s.normal()
	switch {
	case s.Fwmark != 0 && s.Family == familyInet6:
		return fmt.Sprintf("fwmark %d (IPv6)", s.Fwmark)
	case s.Fwmark != 0:
		return fmt.Sprintf("fwmark %d", s.Fwmark)
	}
	name := fmt.Sprintf("protocol %d", s.Protocol)
	switch s.Protocol {
	case unix.IPPROTO_TCP:
		name = "TCP"
	case unix.IPPROTO_UDP:
		name = "UDP"
	case unix.IPPROTO_SCTP:
		name = "SCTP"
	}
	return name + " " + netip.AddrPortFrom(s.Address, s.Port).String()
}

// String names the destination.
func (d Destination) String() string {
	return netip.AddrPortFrom(d.Address.Unmap(), d.Port).String()
}

func toMoby(s Service) *moby.Service {
	s = s.normal()
	mask := s.Netmask
	if s.Family == familyInet {
		// moby copies the number in host order; the kernel keeps an IPv4 mask in network order.
		mask = binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, s.Netmask))
	}
	return &moby.Service{
		Address: s.Address.AsSlice(), Protocol: uint16(s.Protocol), Port: s.Port, FWMark: s.Fwmark,
		SchedName: s.Scheduler, Flags: s.Flags, Timeout: uint32(s.Timeout / time.Second), Netmask: mask,
		AddressFamily: s.Family, PEName: s.PEName,
	}
}

func toMobyDestination(d Destination) *moby.Destination {
	return &moby.Destination{
		Address: d.Address.Unmap().AsSlice(), Port: d.Port, Weight: d.Weight, ConnectionFlags: d.Method & methodMask,
	}
}

// encodeKey encodes what names a service.
func encodeKey(s Service) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, func(ae *netlink.AttributeEncoder) error {
		ae.Uint16(svcFamily, s.Family)
		if s.Fwmark != 0 {
			ae.Uint32(svcFwmark, s.Fwmark)
			return nil
		}
		ae.Uint16(svcProtocol, uint16(s.Protocol))
		ae.Bytes(svcAddress, s.Address.AsSlice())
		ae.Bytes(svcPort, binary.BigEndian.AppendUint16(nil, s.Port))
		return nil
	})
	return ae.Encode()
}

func decodeService(b []byte) (s Service, err error) {
	var address, mask []byte
	err = nested(b, attrService, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case svcFamily:
			s.Family = ad.Uint16()
		case svcProtocol:
			s.Protocol = uint8(ad.Uint16())
		case svcAddress:
			address = ad.Bytes()
		case svcPort:
			s.Port = bigEndian16(ad.Bytes())
		case svcFwmark:
			s.Fwmark = ad.Uint32()
		case svcSched:
			s.Scheduler = ad.String()
		case svcFlags: // a value and a mask (struct ip_vs_flags)
			if f := ad.Bytes(); len(f) >= 4 {
				s.Flags = binary.NativeEndian.Uint32(f) &^ serviceHashed
			}
		case svcTimeout:
			s.Timeout = time.Duration(ad.Uint32()) * time.Second
		case svcNetmask:
			mask = ad.Bytes()
		case svcPEName:
			s.PEName = ad.String()
		}
	})
	if err != nil {
		return s, err
	}
	if len(mask) == 4 && s.Family == familyInet {
		s.Netmask = binary.BigEndian.Uint32(mask)
	} else if len(mask) == 4 {
		s.Netmask = binary.NativeEndian.Uint32(mask)
	}
	if s.Fwmark == 0 {
		s.Address, err = decodeAddress(address, s.Family)
	}
	return s, err
}

func decodeDestination(b []byte, family uint16) (d Destination, err error) {
	var address []byte
	err = nested(b, attrDest, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case destAddress:
			address = ad.Bytes()
		case destPort:
			d.Port = bigEndian16(ad.Bytes())
		case destMethod:
			d.Method = ad.Uint32() & methodMask
		case destWeight:
			d.Weight = int(int32(ad.Uint32()))
		case destActive:
			d.ActiveConns = int(ad.Uint32())
		case destInactive:
			d.InactiveConns = int(ad.Uint32())
		case destPersistent:
			d.PersistentConns = int(ad.Uint32())
		case destFamily: // since 3.18; it may differ from the service's for tunnelled servers
			family = ad.Uint16()
		}
	})
	if err != nil {
		return d, err
	}
	d.Address, err = decodeAddress(address, family)
	return d, err
}

// decodeAddress reads a union nf_inet_addr: an IPv4 address stands in its first 4 bytes.
func decodeAddress(b []byte, family uint16) (netip.Addr, error) {
	switch {
	case family == familyInet && len(b) >= 4:
		return netip.AddrFrom4([4]byte(b)), nil
	case family == familyInet6 && len(b) >= 16:
		return netip.AddrFrom16([16]byte(b)), nil
	}
	return netip.Addr{}, fmt.Errorf("decode the kernel's reply: address of %d bytes in family %d", len(b), family)
}

func bigEndian16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}
