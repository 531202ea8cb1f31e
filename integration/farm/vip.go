package farm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// floating lists the addresses that the active director has, by interface.
func floating() map[Segment][]netip.Addr {
	return map[Segment][]netip.Addr{Front: {VIP, VIP6}, Inside: {Gateway, Gateway6}}
}

// TakeVIP gives the node the virtual addresses and the real servers' gateway
// address, and announces them (gratuitous ARP, unsolicited neighbour
// advertisement), as keepalived does at a take-over.
func (n *Node) TakeVIP() error {
	for s, addrs := range floating() {
		var link netlink.Link
		err := n.withNetlink(func(h *netlink.Handle) (err error) {
			if link, err = h.LinkByName(string(s)); err != nil {
				return err
			}
			for _, a := range addrs {
				if err := addAddr(h, link, netip.PrefixFrom(a, a.BitLen())); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = n.Do(func() error {
				var errs []error
				for _, a := range addrs {
					errs = append(errs, announce(link.Attrs(), a))
				}
				return errors.Join(errs...)
			})
		}
		if err != nil {
			return fmt.Errorf("virtual addresses to %s: %w", n.Name, err)
		}
	}
	return nil
}

// DropVIP takes the virtual addresses away.
func (n *Node) DropVIP() error {
	return n.withNetlink(func(h *netlink.Handle) error {
		for s, addrs := range floating() {
			link, err := h.LinkByName(string(s))
			if err != nil {
				return fmt.Errorf("virtual addresses from %s: %w", n.Name, err)
			}
			for _, a := range addrs {
				err := h.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))})
				if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
					return fmt.Errorf("virtual addresses from %s: %w", n.Name, err)
				}
			}
		}
		return nil
	})
}

// announce tells the segment that addr is at this interface. A busy segment may drop that at once: it is said again then.
func announce(link *netlink.LinkAttrs, addr netip.Addr) error {
	say := announceNA
	if addr.Is4() {
		say = announceARP
	}
	err := say(link, addr)
	for tries := 1; errors.Is(err, unix.ENOBUFS) && tries < 20; tries++ {
		time.Sleep(10 * time.Millisecond)
		err = say(link, addr)
	}
	return err
}

// announceARP broadcasts a gratuitous ARP request (RFC 5227, section 3).
func announceARP(link *netlink.LinkAttrs, addr netip.Addr) error {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	defer unix.Close(s)
	frame := make([]byte, 0, 42)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(frame, link.HardwareAddr...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_ARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	frame = append(frame, link.HardwareAddr...)
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, 0, 0, 0, 0, 0, 0)
	frame = append(frame, addr.AsSlice()...)
	to := &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := unix.Sendto(s, frame, 0, to); err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	return nil
}

// announceNA multicasts an unsolicited neighbour advertisement with the
// override flag (RFC 4861, section 7.2.6). The kernel fills in the checksum.
func announceNA(link *netlink.LinkAttrs, addr netip.Addr) error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	defer unix.Close(s)
	err = errors.Join(
		unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), // others are ignored
		unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, link.Index),
		unix.Bind(s, &unix.SockaddrInet6{Addr: addr.As16()}),
	)
	if err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	const override = 0x20
	msg := []byte{136, 0, 0, 0, override, 0, 0, 0}
	msg = append(msg, addr.AsSlice()...)
	msg = append(msg, 2, 1) // option: target link-layer address, 8 bytes
	msg = append(msg, link.HardwareAddr...)
	all := &unix.SockaddrInet6{ZoneId: uint32(link.Index), Addr: [16]byte(net.IPv6linklocalallnodes)}
	if err := unix.Sendto(s, msg, 0, all); err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	return nil
}

// Service is a virtual service with all real servers of the farm behind it.
type Service struct {
	UDP        bool
	Port       uint16
	Method     Method
	Scheduler  string // default rr
	Persistent int    // seconds; 0: not persistent
	IPv6       bool   // on VIP6 instead of VIP
}

// VIPPort is where clients find the service.
func (s Service) VIPPort() netip.AddrPort {
	if s.IPv6 {
		return netip.AddrPortFrom(VIP6, s.Port)
	}
	return netip.AddrPortFrom(VIP, s.Port)
}

// AddServices configures virtual services on a director, by one call of
// ipvsadm.
func (n *Node) AddServices(services ...Service) error {
	var b strings.Builder
	for _, s := range services {
		proto, scheduler := "-t", s.Scheduler
		if s.UDP {
			proto = "-u"
		}
		if scheduler == "" {
			scheduler = "rr"
		}
		fmt.Fprintf(&b, "-A %s %v -s %s", proto, s.VIPPort(), scheduler)
		if s.Persistent > 0 {
			fmt.Fprintf(&b, " -p %d", s.Persistent)
		}
		b.WriteByte('\n')
		for _, r := range n.farm.RealServers {
			at := r.Addr(Inside)
			if s.IPv6 {
				at = r.Addr6(Inside)
			}
			fmt.Fprintf(&b, "-a %s %v -r %v %s\n", proto, s.VIPPort(), netip.AddrPortFrom(at, s.Port), s.Method)
		}
	}
	if _, err := n.RunInput(b.String(), "ipvsadm", "-R"); err != nil {
		return fmt.Errorf("services of %s: %w", n.Name, err)
	}
	return nil
}
