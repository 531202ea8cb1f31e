package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// liveSource reads a packet socket (packet(7)) of type SOCK_DGRAM, which takes the link header off. So it works
// on TUN devices and all others alike. What this machine sends is seen, too.
type liveSource struct {
	ctx   context.Context
	file  *os.File
	conn  syscall.RawConn
	joins int // socket that holds the group's membership; -1: none
	stop  func() bool
	buf   []byte
	links map[int]link
}

// link is what is known of an interface.
type link struct {
	name     string
	loopback bool
}

// openLive listens to an interface; "" is all of them.
func openLive(ctx context.Context, name string, group netip.Addr) (source, error) {
	index := 0
	if name != "" {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", name, err)
		}
		index = ifi.Index
	}
	filter, err := bpf.Assemble(groupFilter(group))
	if err != nil {
		return nil, fmt.Errorf("assemble packet filter: %w", err)
	}
	// Protocol 0: nothing arrives before the filter stands.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open packet socket (root or CAP_NET_RAW is needed): %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	s := &liveSource{ctx: ctx, file: os.NewFile(uintptr(fd), "packet socket"), joins: -1, buf: make([]byte, 1<<16), links: make(map[int]link)}
	if err := s.setup(fd, index, filter, group); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %q: %w", name, err), s.file.Close())
	}
	s.stop = context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	return s, nil
}

func (s *liveSource) setup(fd, index int, filter []bpf.RawInstruction, group netip.Addr) error {
	prog := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	if err != nil {
		return fmt.Errorf("attach packet filter: %w", err)
	}
	if index != 0 && group.IsMulticast() {
		s.joins = join(index, group)
	}
	// Only ETH_P_ALL shows what this machine sends.
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	s.conn, err = s.file.SyscallConn()
	return err
}

// join makes this machine a member of the group, so that its network card and its switch deliver it, and returns the socket that is the membership. An interface
// that cannot join (a TUN without an address) is listened to all the same: then -1.
func join(index int, group netip.Addr) int {
	family := unix.AF_INET
	if group.Is6() {
		family = unix.AF_INET6
	}
	// Never bound, the socket receives nothing.
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if group.Is6() {
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)})
	} else {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(index)})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

// groupFilter lets packets to the group pass, offsets counted from the network header; IPv4 only when they are UDP. A busy director's
// own traffic never reaches this process.
func groupFilter(group netip.Addr) []bpf.Instruction {
	const whole = 1 << 18
	proto, at, addr := uint32(etherIPv4), uint32(16), group.AsSlice()
	if group.Is6() {
		proto, at = etherIPv6, 24
	}
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: proto, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	for i := 0; i < len(addr); i += 4 {
		prog = append(prog,
			bpf.LoadAbsolute{Off: at + uint32(i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(addr[i:]), SkipTrue: 1},
			bpf.RetConstant{Val: 0},
		)
	}
	if group.Is4() {
		prog = append(prog,
			bpf.LoadAbsolute{Off: 9, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
		)
	}
	return append(prog, bpf.RetConstant{Val: whole})
}

func (s *liveSource) next() (packet, error) {
	for {
		var n int
		var from unix.Sockaddr
		var err error
		waitErr := s.conn.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), s.buf, unix.MSG_TRUNC)
			return err != unix.EAGAIN
		})
		switch {
		case s.ctx.Err() != nil:
			return packet{}, s.ctx.Err()
		case waitErr != nil:
			return packet{}, fmt.Errorf("wait for a packet: %w", waitErr)
		case err == unix.EINTR:
			continue
		case err == unix.ENETDOWN:
			continue // reported once when an interface goes down; it may come back
		case err != nil:
			return packet{}, fmt.Errorf("receive a packet: %w", err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		l := s.link(ll.Ifindex)
		if l.loopback && ll.Pkttype == unix.PACKET_OUTGOING {
			continue // it comes in again
		}
		return packet{
			time: time.Now(), link: l.name, data: s.buf[:min(n, len(s.buf))], cutOff: n > len(s.buf),
			proto: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, ll.Protocol)),
		}, nil
	}
}

// link returns the interface with this index. It is asked for by the socket, in whose network namespace indexes count.
func (s *liveSource) link(index int) link {
	if l, ok := s.links[index]; ok {
		return l
	}
	l := link{name: fmt.Sprintf("if%d", index)}
	_ = s.conn.Control(func(fd uintptr) {
		ifr, err := unix.NewIfreq("")
		if err != nil {
			return
		}
		ifr.SetUint32(uint32(index))
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, ifr) != nil {
			return // gone meanwhile
		}
		l.name = ifr.Name()
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFFLAGS, ifr) == nil {
			l.loopback = ifr.Uint16()&unix.IFF_LOOPBACK != 0
		}
	})
	s.links[index] = l
	return l
}

func (s *liveSource) close() error {
	s.stop()
	if s.joins >= 0 {
		_ = unix.Close(s.joins)
	}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("close packet socket: %w", err)
	}
	return nil
}
