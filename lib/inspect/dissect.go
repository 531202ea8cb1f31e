package inspect

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// datagram is the payload of one UDP datagram, or what there is of it.
type datagram struct {
	time        time.Time
	link        string
	source      netip.AddrPort
	destination netip.AddrPort
	payload     []byte
	defect      string // why the payload is not whole; "" when it is
}

// Numbers of IP protocols and IPv6 extension headers.
const (
	protoHopByHop = 0
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoDestOpts = 60

	udpHeaderLen = 8
)

// dissector turns packets into the datagrams that are to be shown.
type dissector struct {
	group netip.Addr // zero: any
	port  uint16
	frags reassembler
}

func newDissector(group netip.Addr, port uint16) *dissector {
	return &dissector{group: group, port: port, frags: newReassembler()}
}

// ipPacket is what IPv4 and IPv6 headers have in common.
type ipPacket struct {
	src, dst netip.Addr
	proto    uint8  // of what follows the headers
	data     []byte // behind the headers
	cutOff   bool   // the header says that there is more

	fragment bool
	id       uint32
	offset   int // in bytes
	more     bool
}

// add takes a packet and returns the datagrams that it completes, and those that it lets expire. Payloads are valid until the next call.
func (d *dissector) add(p packet) []datagram {
	out := d.relevant(d.frags.expire(p.time))
	var ip ipPacket
	var ok bool
	if p.proto == etherIPv4 {
		ip, ok = parseIPv4(p.data)
	} else {
		ip, ok = parseIPv6(p.data)
	}
	if !ok || ip.proto != protoUDP || d.group.IsValid() && ip.dst != d.group {
		return out
	}
	ip.cutOff = ip.cutOff || p.cutOff
	g := datagram{time: p.time, link: p.link, source: netip.AddrPortFrom(ip.src, 0), destination: netip.AddrPortFrom(ip.dst, 0)}
	if ip.fragment {
		lost, ready, whole := d.frags.add(g, &ip)
		out = append(out, d.relevant(lost)...)
		if !whole {
			return out
		}
		g, ip.data = ready, ready.payload
	}
	if g, ok = parseUDP(g, ip.data, ip.cutOff); ok && g.destination.Port() == d.port {
		out = append(out, split(g)...)
	}
	return out
}

// flush returns what was waiting for fragments when the capture ended.
func (d *dissector) flush() []datagram { return d.relevant(d.frags.drain()) }

// relevant keeps the incomplete datagrams that are worth a line: those to the port or, where the fragment with the port is missing, those to the group that
// was asked for.
func (d *dissector) relevant(incomplete []datagram) []datagram {
	out := incomplete[:0]
	for _, g := range incomplete {
		if port := g.destination.Port(); port == d.port || port == 0 && d.group.IsValid() {
			out = append(out, g)
		}
	}
	return out
}

func parseIPv4(b []byte) (ip ipPacket, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return ip, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || len(b) < header {
		return ip, false
	}
	frag := binary.BigEndian.Uint16(b[6:])
	ip = ipPacket{
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])), proto: b[9],
		offset: int(frag&0x1fff) * 8, more: frag&0x2000 != 0, id: uint32(binary.BigEndian.Uint16(b[4:])),
		data: b[header:min(total, len(b))], cutOff: total > len(b), // bytes beyond total are Ethernet's padding
	}
	ip.fragment = ip.offset > 0 || ip.more
	return ip, true
}

func parseIPv6(b []byte) (ip ipPacket, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return ip, false
	}
	end := 40 + int(binary.BigEndian.Uint16(b[4:]))
	ip = ipPacket{
		src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
		proto: b[6], data: b[40:min(end, len(b))], cutOff: end > len(b),
	}
	for {
		var n int
		switch ip.proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(ip.data) < 8 {
				return ip, false
			}
			n = 8 + int(ip.data[1])*8
		case protoFragment:
			if len(ip.data) < 8 {
				return ip, false
			}
			v := binary.BigEndian.Uint16(ip.data[2:])
			ip.offset, ip.more, ip.id, n = int(v&^7), v&1 != 0, binary.BigEndian.Uint32(ip.data[4:]), 8
			ip.fragment = ip.offset > 0 || ip.more
		default:
			return ip, true
		}
		if n > len(ip.data) {
			return ip, false
		}
		ip.proto, ip.data = ip.data[0], ip.data[n:]
		if ip.fragment {
			return ip, true // what follows is a piece of something, whatever it looks like
		}
	}
}

// parseUDP takes the UDP header off b. Checksums are not looked at: captures have packets whose checksum the
// network card was to fill in.
func parseUDP(g datagram, b []byte, cutOff bool) (datagram, bool) {
	if len(b) < udpHeaderLen {
		return g, false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	g.source = netip.AddrPortFrom(g.source.Addr(), binary.BigEndian.Uint16(b))
	g.destination = netip.AddrPortFrom(g.destination.Addr(), binary.BigEndian.Uint16(b[2:]))
	g.payload = b[udpHeaderLen:]
	switch {
	case n < udpHeaderLen:
		g.defect = "UDP length below its header"
	case n > len(b) && cutOff:
		g.defect = "cut off by the capture"
	case n > len(b):
		g.defect = "UDP length beyond the packet"
	default:
		g.payload = b[udpHeaderLen:n]
	}
	return g, true
}
