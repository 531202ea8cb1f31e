package load

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"saru/lib/tun"
)

// Packets makes connections of single client packets, handed to a director's
// stack by a device of its own: in an emulated guest that is many times faster
// than clients with sockets. The director must have Deadend, as nobody answers.
type Packets struct {
	dev  *tun.Device
	buf  []byte
	Sent int // packets
}

// packetDevice is the name of the device in the director.
const packetDevice = "load0"

// Deadend is an nftables script (give its interfaces' names) that drops what a
// director forwards to real servers, after IPVS has done with it.
const Deadend = `table ip deadend {
	chain output {
		type filter hook output priority 0
		ip saddr 198.18.0.0/15 oifname "%s" drop
	}
}
`

// OpenPackets makes the device. The director must let pass packets from
// 198.18.0.0/15 that come by it (rp_filter), as nodes of a farm do.
func OpenPackets(h Host) (*Packets, error) {
	p := &Packets{}
	err := h.Do(func() (err error) {
		p.dev, err = tun.Open(tun.Config{
			Name: packetDevice, MTU: 1500,
			Local: netip.AddrFrom4([4]byte{192, 0, 2, 1}), Peer: netip.AddrFrom4([4]byte{192, 0, 2, 2}), // RFC 5737
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("device for packets: %w", err)
	}
	return p, nil
}

// Close ends the device.
func (p *Packets) Close() error { return p.dev.Remove() }

// clientPorts is how many connections share an address.
const clientPorts = 50_000

// PacketClient is the client of connection number i, below 6 thousand million.
// The addresses are those of RFC 2544, for measurements.
func PacketClient(i int) netip.AddrPort {
	a := i / clientPorts
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 | byte(a>>16&1), byte(a >> 8), byte(a)}), uint16(1024+i%clientPorts))
}

// UDP sends the packet of a UDP connection.
func (p *Packets) UDP(i int, to netip.AddrPort) error {
	p.header(unix.IPPROTO_UDP, PacketClient(i), to, 8)
	u := p.buf[20:]
	binary.BigEndian.PutUint16(u[4:], 8)
	return p.send()
}

// TCP flags.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpACK = 0x10
)

// Open sends the SYN and the ACK of a TCP connection: for a director that sees
// the client's packets only (DR), it is ESTABLISHED then.
func (p *Packets) Open(i int, to netip.AddrPort) error {
	if err := p.tcp(i, to, tcpSYN); err != nil {
		return err
	}
	return p.tcp(i, to, tcpACK)
}

// Begin sends the SYN alone: the connection is in SYN_RECV for such a director.
func (p *Packets) Begin(i int, to netip.AddrPort) error { return p.tcp(i, to, tcpSYN) }

// Finish sends the client's FIN.
func (p *Packets) Finish(i int, to netip.AddrPort) error { return p.tcp(i, to, tcpFIN|tcpACK) }

func (p *Packets) tcp(i int, to netip.AddrPort, flags byte) error {
	from := PacketClient(i)
	p.header(unix.IPPROTO_TCP, from, to, 20)
	h := p.buf[20:]
	h[12], h[13] = 5<<4, flags
	binary.BigEndian.PutUint16(h[14:], 1024)
	// The checksum covers addresses, protocol and length as well (RFC 9293, section 3.1).
	binary.BigEndian.PutUint16(h[16:], checksum(h, sum(p.buf[12:20])+unix.IPPROTO_TCP+20))
	return p.send()
}

// header begins a packet: IP header and ports.
func (p *Packets) header(protocol byte, from, to netip.AddrPort, length int) {
	p.buf = appendIP(p.buf[:0], protocol, from.Addr(), to.Addr(), length)
	p.buf = append(p.buf, make([]byte, length)...)
	binary.BigEndian.PutUint16(p.buf[20:], from.Port())
	binary.BigEndian.PutUint16(p.buf[22:], to.Port())
}

func (p *Packets) send() error {
	p.Sent++
	_, err := p.dev.Write(p.buf)
	return err
}

// checksum is that of RFC 1071.
func checksum(b []byte, start uint32) uint16 {
	s := start + sum(b)
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func sum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}
