package farm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// segments lists where the node has a link.
func (n *Node) segments() []Segment {
	var s []Segment
	switch n.role {
	case Director:
		s = []Segment{Front, Inside}
		if n.farm.spec.SyncSegment {
			s = append(s, Sync)
		}
	case RealServer:
		s = []Segment{Inside}
		if n.farm.spec.DirectReturn {
			s = append(s, Front)
		}
	case Client:
		s = []Segment{Front}
	case hub:
	}
	return s
}

// port is the name of the node's end of a link on the hub.
func (n *Node) port(s Segment) string { return n.Name + "-" + string(s) }

// Addr returns the node's IPv4 address on a segment.
func (n *Node) Addr(s Segment) netip.Addr { v4, _ := address(s, n.role, n.index); return v4 }

// Addr6 returns the node's IPv6 address on a segment.
func (n *Node) Addr6(s Segment) netip.Addr { _, v6 := address(s, n.role, n.index); return v6 }

// plug gives a fresh node its links, addresses, routes and sysctls.
func (n *Node) plug() error {
	if err := n.baseSysctls(); err != nil {
		return err
	}
	for _, s := range n.segments() {
		if err := n.addLink(s); err != nil {
			return fmt.Errorf("link to %s: %w", s, err)
		}
	}
	return n.withNetlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("lo: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo: %w", err)
		}
		if n.role != RealServer {
			return nil
		}
		return n.realServerRoutes(h, lo)
	})
}

// baseSysctls sets what later links inherit. Addresses without duplicate
// detection are usable at once; directors forward, and do not send redirects
// although two of them sit on one segment.
func (n *Node) baseSysctls() error {
	set := [][2]string{
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
	}
	switch n.role {
	case Director:
		set = append(set, [][2]string{
			{"net/ipv4/ip_forward", "1"},
			{"net/ipv6/conf/all/forwarding", "1"},
			{"net/ipv4/conf/all/send_redirects", "0"},
			{"net/ipv4/conf/default/send_redirects", "0"},
		}...)
	case RealServer:
		// The VIP on lo must not be announced nor answered for (DR).
		set = append(set, [][2]string{
			{"net/ipv4/conf/all/arp_ignore", "1"},
			{"net/ipv4/conf/all/arp_announce", "2"},
		}...)
	case Client, hub:
	}
	var errs []error
	for _, s := range set {
		errs = append(errs, n.Sysctl(s[0], s[1]))
	}
	return errors.Join(errs...)
}

// addLink makes a veth pair between the hub's bridge and the node.
func (n *Node) addLink(s Segment) error {
	pid, err := n.Pid()
	if err != nil {
		return err
	}
	err = n.farm.hub.withNetlink(func(h *netlink.Handle) error {
		br, err := h.LinkByName(string(s))
		if err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: n.port(s), MasterIndex: br.Attrs().Index},
			PeerName:         string(s),
			PeerHardwareAddr: n.mac(s),
			PeerNamespace:    netlink.NsPid(pid),
		}
		if err := h.LinkAdd(veth); err != nil {
			return err
		}
		if err := h.LinkSetLearning(veth, false); err != nil {
			return fmt.Errorf("flooding: %w", err)
		}
		return h.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	return n.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(string(s))
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
		v4, v6 := address(s, n.role, n.index)
		bits4, bits6 := 24, 64
		if n.role == RealServer && s == Front {
			// Only answers of the VIP leave here, by a table of their own;
			// answers of NAT connections must take the director.
			bits4, bits6 = 32, 128
		}
		errs := []error{addAddr(h, link, netip.PrefixFrom(v4, bits4)), addAddr(h, link, netip.PrefixFrom(v6, bits6))}
		if n.farm.spec.SharedMAC && n.role == Director {
			for _, a := range floating()[s] {
				errs = append(errs, addAddr(h, link, netip.PrefixFrom(a, a.BitLen())))
			}
		}
		return errors.Join(errs...)
	})
}

// MAC returns the hardware address of the node's link to a segment.
func (n *Node) MAC(s Segment) net.HardwareAddr { return n.mac(s) }

// mac returns the address of the node's link: one for all directors where they share it.
func (n *Node) mac(s Segment) net.HardwareAddr {
	if n.farm.spec.SharedMAC && n.role == Director && s != Sync {
		return mac(s, Director, 0xfe)
	}
	return mac(s, n.role, n.index)
}

// frontTable is the routing table of a real server's direct answers.
const frontTable = 100

// realServerRoutes sends answers through the active director (NAT) and those
// from the VIP directly to the clients (DR).
func (n *Node) realServerRoutes(h *netlink.Handle, lo netlink.Link) error {
	inside, err := h.LinkByName(string(Inside))
	if err != nil {
		return err
	}
	for _, gw := range []netip.Addr{Gateway, Gateway6} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: inside.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
	}
	if !n.farm.spec.DirectReturn {
		return nil
	}
	front, err := h.LinkByName(string(Front))
	if err != nil {
		return err
	}
	for _, v := range []struct {
		vip netip.Addr
		net string
		fam int
	}{{VIP, "10.0.1.0/24", unix.AF_INET}, {VIP6, "fd00:1::/64", unix.AF_INET6}} {
		if err := addAddr(h, lo, netip.PrefixFrom(v.vip, v.vip.BitLen())); err != nil {
			return err
		}
		_, dst, err := net.ParseCIDR(v.net)
		if err != nil {
			return err
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: front.Attrs().Index, Dst: dst, Table: frontTable, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("direct route: %w", err)
		}
		rule := netlink.NewRule()
		rule.Family, rule.Table = v.fam, frontTable
		rule.Src = &net.IPNet{IP: v.vip.AsSlice(), Mask: net.CIDRMask(v.vip.BitLen(), v.vip.BitLen())}
		if err := h.RuleAdd(rule); err != nil {
			return fmt.Errorf("rule for direct answers: %w", err)
		}
	}
	return nil
}

// addAddr adds an address that is usable at once.
func addAddr(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, a); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ports calls fn for the hub's end of each of the node's links.
func (n *Node) ports(fn func(*netlink.Handle, netlink.Link) error) error {
	if n.role == hub || !n.farm.hub.On() {
		return nil
	}
	return n.farm.hub.withNetlink(func(h *netlink.Handle) error {
		var errs []error
		for _, s := range n.segments() {
			link, err := h.LinkByName(n.port(s))
			if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
				continue
			}
			if err == nil {
				err = fn(h, link)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("link of %s to %s: %w", n.Name, s, err))
			}
		}
		return errors.Join(errs...)
	})
}

// cut silences the node on all segments, within a few milliseconds.
func (n *Node) cut() error {
	return n.ports(func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) })
}

// unplug removes the links. Each takes the kernel a while (it waits for
// readers of its tables), so this comes after cut.
func (n *Node) unplug() error {
	return n.ports(func(h *netlink.Handle, l netlink.Link) error {
		// The node's end, and with it this one, may go at this very moment
		// because its namespace goes.
		if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		return nil
	})
}

// SetLink sets the node's link to a segment up or down, at the hub's side: as
// if the cable was pulled (the node's carrier goes).
func (n *Node) SetLink(s Segment, up bool) error {
	return n.farm.hub.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(n.port(s))
		if err != nil {
			return fmt.Errorf("link of %s to %s: %w", n.Name, s, err)
		}
		if up {
			err = h.LinkSetUp(link)
		} else {
			err = h.LinkSetDown(link)
		}
		if err != nil {
			return fmt.Errorf("link of %s to %s: %w", n.Name, s, err)
		}
		return nil
	})
}
