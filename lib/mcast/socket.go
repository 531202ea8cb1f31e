package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// place is where a link's sockets are bound.
type place struct {
	name  string
	index int
	local netip.Addr // invalid: none
}

// lookUp finds the interface and its address.
func lookUp(name string, group netip.Addr) (place, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return place{}, fmt.Errorf("interface %q: %w", name, err)
	}
	p := place{name: name, index: link.Attrs().Index}
	family := netlink.FAMILY_V4
	if group.Is6() {
		family = netlink.FAMILY_V6
	}
	var addrs []netlink.Addr
	for range 5 { // the list may change while it is read
		if addrs, err = netlink.AddrList(link, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return place{}, fmt.Errorf("list addresses of interface %q: %w", name, err)
	}
	p.local = choose(addrs, group)
	return p, nil
}

// choose takes the first usable address; for IPv6 the first of the group's scope, if there is one, else a link-local
// one, which each interface has.
func choose(addrs []netlink.Addr, group netip.Addr) netip.Addr {
	linkLocal := group.IsLinkLocalMulticast() || group.IsInterfaceLocalMulticast()
	var fallback netip.Addr
	for _, a := range addrs {
		// A tentative address cannot be bound yet, a duplicate one never.
		if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.Is4() != group.Is4() {
			continue
		}
		if ip.Is4() || ip.IsLinkLocalUnicast() == linkLocal {
			return ip
		}
		if !fallback.IsValid() && ip.IsLinkLocalUnicast() {
			fallback = ip
		}
	}
	return fallback
}

// rxSocket receives.
type rxSocket struct {
	at     place
	conn   net.PacketConn
	raw    syscall.RawConn
	buffer int
}

// txSocket sends.
type txSocket struct {
	at    place
	conn  net.PacketConn
	whole bool // datagrams cannot be handed over several at a time; guarded by Link.wmu
	batch interface {
		WriteBatch(ms []ipv4.Message, flags int) (int, error)
	}
}

// openRx opens a socket that receives what is sent to the group on the interface, and nothing else.
func openRx(cfg Config, at place) (*rxSocket, error) {
	group := cfg.Group.Addr()
	fd, err := newSocket(group, at.name)
	if err != nil {
		return nil, err
	}
	s := &rxSocket{at: at}
	s.buffer, err = setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, cfg.ReadBuffer)
	if err == nil {
		err = firstError(
			// Shared with the kernel's backup thread (SK_CAN_REUSE) and with other programs; each gets every datagram.
			option(fd, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			// Else the socket would receive groups that any other program on the host has joined.
			multicastAll(fd, group),
			bind(fd, netip.AddrPortFrom(group, cfg.Group.Port()), at),
			join(fd, group, at, true),
		)
	}
	if err == nil {
		s.conn, s.raw, err = packetConn(fd)
	} else {
		_ = unix.Close(fd)
	}
	if err != nil {
		return nil, fmt.Errorf("receive from group %v on %q: %w", cfg.Group, at.name, err)
	}
	return s, nil
}

// openTx opens a socket that sends to the group from the interface's address.
func openTx(cfg Config, at place) (*txSocket, error) {
	fd, err := newSocket(cfg.Group.Addr(), at.name)
	if err != nil {
		return nil, err
	}
	loop := 0
	if cfg.Loop {
		loop = 1
	}
	s := &txSocket{at: at}
	_, err = setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, cfg.WriteBuffer)
	if err == nil && cfg.Group.Addr().Is4() {
		err = firstError(
			option(fd, "IP_MULTICAST_TTL", unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, cfg.TTL),
			option(fd, "IP_MULTICAST_LOOP", unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, loop),
		)
	} else if err == nil {
		err = firstError(
			option(fd, "IPV6_MULTICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, cfg.TTL),
			option(fd, "IPV6_MULTICAST_LOOP", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, loop),
		)
	}
	if err == nil && at.local.IsValid() {
		err = bind(fd, netip.AddrPortFrom(at.local, 0), at)
	}
	if err == nil {
		s.conn, _, err = packetConn(fd)
	} else {
		_ = unix.Close(fd)
	}
	if err != nil {
		return nil, fmt.Errorf("send to group %v on %q: %w", cfg.Group, at.name, err)
	}
	if cfg.Group.Addr().Is4() {
		s.batch = ipv4.NewPacketConn(s.conn)
	} else {
		s.batch = ipv6.NewPacketConn(s.conn)
	}
	return s, nil
}

// newSocket makes a UDP socket that is bound to the interface.
func newSocket(group netip.Addr, ifname string) (int, error) {
	family := unix.AF_INET
	if group.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("make a UDP socket: %w", err)
	}
	err = unix.BindToDevice(fd, ifname)
	if err != nil {
		err = fmt.Errorf("bind a socket to interface %q: %w", ifname, err)
	} else if family == unix.AF_INET6 {
		err = option(fd, "IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// packetConn hands the descriptor to the runtime's poller. The descriptor is closed in any case.
func packetConn(fd int) (net.PacketConn, syscall.RawConn, error) {
	file := os.NewFile(uintptr(fd), "multicast")
	defer func() { _ = file.Close() }()
	// net.ListenPacket cannot be used: it binds to the wildcard when it is given a multicast address.
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, nil, fmt.Errorf("register the socket: %w", err)
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("register the socket: %T has no descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("register the socket: %w", err)
	}
	return conn, raw, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func option(fd int, name string, level, opt, value int) error {
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		return fmt.Errorf("set %s to %d: %w", name, value, err)
	}
	return nil
}

// setBuffer asks for a buffer beyond the host's limit, which needs CAP_NET_ADMIN, then for one within. It returns the size
// that was granted.
func setBuffer(fd, force, plain, size int) (int, error) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		if err := option(fd, "buffer size", unix.SOL_SOCKET, plain, size); err != nil {
			return 0, err
		}
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
	if err != nil {
		return 0, fmt.Errorf("read buffer size: %w", err)
	}
	return got / 2, nil // socket(7): the kernel doubles the value for its own bookkeeping
}

// multicastAll switches off what is on by default: delivery of groups that other sockets have joined.
func multicastAll(fd int, group netip.Addr) error {
	if group.Is4() {
		return option(fd, "IP_MULTICAST_ALL", unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
	}
	return option(fd, "IPV6_MULTICAST_ALL", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
}

func bind(fd int, to netip.AddrPort, at place) error {
	var sa unix.Sockaddr
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	} else {
		sa = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port()), ZoneId: uint32(at.index)}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind to %v: %w", to, err)
	}
	return nil
}

// join makes the socket a member of the group on the interface, or ends that.
func join(fd int, group netip.Addr, at place, member bool) error {
	var err error
	if group.Is4() {
		opt := unix.IP_DROP_MEMBERSHIP
		if member {
			opt = unix.IP_ADD_MEMBERSHIP
		}
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, opt, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(at.index)})
	} else {
		opt := unix.IPV6_DROP_MEMBERSHIP
		if member {
			opt = unix.IPV6_ADD_MEMBERSHIP
		}
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, opt, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(at.index)})
	}
	if err != nil && member {
		return fmt.Errorf("join: %w", err)
	}
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// rejoin leaves the group and joins it again.
func (s *rxSocket) rejoin(group netip.Addr) error {
	err := control(s.raw, func(fd int) error {
		// Leaving fails when the interface has lost its memberships meanwhile, for instance by a trip to another network
		// namespace and back (net/ipv4/igmp.c, ip_mc_leave_group); the socket forgets the membership nevertheless.
		_ = join(fd, group, s.at, false)
		return join(fd, group, s.at, true)
	})
	if err != nil {
		return fmt.Errorf("group %v on %q: %w", group, s.at.name, err)
	}
	return nil
}

func control(raw syscall.RawConn, fn func(fd int) error) error {
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
