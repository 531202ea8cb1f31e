package segment

import (
	"encoding/binary"
	"net/netip"
)

// Lengths of headers.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
)

// EtherTypes and IP protocol numbers.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	protoTCP  = 6
	protoUDP  = 17
)

// transport returns the IP protocol, the destination and what follows the IP header of a frame. IPv6 extension headers are not looked
// into, and of fragments only the first has ports.
func transport(frame []byte) (protocol byte, dst netip.Addr, rest []byte, ok bool) {
	if len(frame) < ethernetLen+ipv4Len {
		return 0, netip.Addr{}, nil, false
	}
	ip := frame[ethernetLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		header := int(ip[0]&15) * 4
		if len(ip) < header || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return 0, netip.Addr{}, nil, false
		}
		return ip[9], netip.AddrFrom4([4]byte(ip[16:20])), ip[header:], true
	case etherIPv6:
		if len(ip) < ipv6Len {
			return 0, netip.Addr{}, nil, false
		}
		return ip[6], netip.AddrFrom16([16]byte(ip[24:40])), ip[ipv6Len:], true
	}
	return 0, netip.Addr{}, nil, false
}

// Datagram returns the payload of a frame with a UDP datagram to the group, or nil. What Ethernet pads is not cut off.
func Datagram(frame []byte, group netip.AddrPort) []byte {
	protocol, dst, udp, ok := transport(frame)
	if !ok || protocol != protoUDP || dst != group.Addr() || len(udp) < udpLen || binary.BigEndian.Uint16(udp[2:]) != group.Port() {
		return nil
	}
	return udp[udpLen:]
}

// impaired reports whether a frame is one of those that suffer.
func (c *Config) impaired(frame []byte) bool {
	if c.TCP {
		if protocol, _, _, ok := transport(frame); ok && protocol == protoTCP {
			return true
		}
	}
	return Datagram(frame, c.Group) != nil
}
