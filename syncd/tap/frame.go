package tap

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipLen      = 20
	udpLen     = 8
	tcpLen     = 20
	headersLen = ipLen + udpLen

	protoTCP = 6
	protoUDP = 17
)

// TCP flags (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// putIP writes an IPv4 header without options (RFC 791) for a packet that fills b.
func putIP(b []byte, protocol uint8, src, dst netip.Addr) {
	b[0], b[1] = 0x45, 0
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	clear(b[4:12])
	b[8], b[9] = 1, protocol // TTL 1: it is for this host
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^sum(b[:ipLen], 0))
}

// putUDP writes the headers of a UDP datagram that fills b; its payload is in place. There is no checksum (RFC 768: zero): the
// packet crosses no wire.
func putUDP(b []byte, src, dst netip.AddrPort) {
	putIP(b, protoUDP, src.Addr(), dst.Addr())
	u := b[ipLen:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	u[6], u[7] = 0, 0
}

// appendTCP appends a TCP segment without data.
func appendTCP(b []byte, src, dst netip.AddrPort, flags uint8) []byte {
	start := len(b)
	b = append(b, make([]byte, ipLen+tcpLen)...)
	p := b[start:]
	putIP(p, protoTCP, src.Addr(), dst.Addr())
	p[8] = 64 // it is forwarded to the tap's other end
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^sum(p[:ipLen], 0))
	t := p[ipLen:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint32(t[4:], 1) // sequence number
	if flags&tcpACK != 0 {
		binary.BigEndian.PutUint32(t[8:], 1)
	}
	t[12], t[13] = tcpLen/4<<4, flags
	binary.BigEndian.PutUint16(t[14:], 1024) // window
	pseudo := uint32(protoTCP + tcpLen)
	binary.BigEndian.PutUint16(t[16:], ^sum(t, sum32(p[12:20], pseudo)))
	return b
}

func sum32(b []byte, s uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

// sum is the Internet checksum (RFC 1071) of b, whose length is even, before it is complemented.
func sum(b []byte, s uint32) uint16 {
	s = sum32(b, s)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// parseUDP returns source, destination and payload of an IPv4 UDP datagram. Anything else that comes out of a TUN device (IGMP
// reports, IPv6, the tick on its way to its real server) is not ok.
func parseUDP(b []byte) (src, dst netip.AddrPort, payload []byte, ok bool) {
	if len(b) < headersLen || b[0]>>4 != 4 || b[9] != protoUDP {
		return
	}
	head := int(b[0]&15) * 4
	if head < ipLen || len(b) < head+udpLen || int(binary.BigEndian.Uint16(b[2:])) != len(b) ||
		binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // a fragment (RFC 791: more fragments, offset)
		return
	}
	u := b[head:]
	if int(binary.BigEndian.Uint16(u[4:])) != len(u) {
		return
	}
	src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(u))
	dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(u[2:]))
	return src, dst, u[udpLen:], true
}
