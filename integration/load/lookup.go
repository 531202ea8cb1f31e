package load

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"saru/lib/tun"
)

// Lookup asks a director's kernel whether it has a connection, and for which
// real server: by looking it up as for a packet, which /proc's list, being no
// snapshot, does not tell for certain.
//
// The question is an ICMP error about a packet from the service to the client.
// If the kernel has the connection, it sends the error on to the real server
// and changes nothing: no state, no timer, no sync message, and no connection is
// made where there is none (ip_vs_core.c, ip_vs_in_icmp). LookupRules catches
// it there.
type Lookup struct {
	dev *tun.Device
	buf []byte
}

// lookupDevice is the name of the device in the director.
const lookupDevice = "lookup0"

// LookupTable is the name of the nftables table of LookupRules.
const LookupTable = "lookup"

// LookupRules is an nftables script that notes which questions were sent on,
// and where to, and lets none leave the director. IPVS has had them before:
// in its hook at forward, with priority 99, those to an address that is not the
// director's (NF_IP_PRI_NAT_SRC - 1, include/uapi/linux/netfilter_ipv4.h).
const LookupRules = `table ip ` + LookupTable + ` {
	set answers {
		type ipv4_addr . ipv4_addr
		size 65536
		flags dynamic
	}
	chain output {
		type filter hook output priority -10
		ip saddr 198.19.0.0/16 icmp type destination-unreachable add @answers { ip saddr . rt ip nexthop } drop
	}
	chain forward {
		type filter hook forward priority 200
		ip saddr 198.19.0.0/16 icmp type destination-unreachable drop
	}
}
`

// Questions is how many questions can be told apart.
const Questions = 1 << 16

// OpenLookup makes the device.
func OpenLookup(h Host) (*Lookup, error) {
	l := &Lookup{}
	err := h.Do(func() (err error) {
		l.dev, err = tun.Open(tun.Config{
			Name: lookupDevice, MTU: 1500,
			Local: netip.AddrFrom4([4]byte{192, 0, 2, 5}), Peer: netip.AddrFrom4([4]byte{192, 0, 2, 6}), // RFC 5737
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("device for lookups: %w", err)
	}
	return l, nil
}

// Close ends the device.
func (l *Lookup) Close() error { return l.dev.Remove() }

// Ask asks question number n, below Questions: whether the kernel has a
// connection of a protocol. The router that seems to complain bears the number.
func (l *Lookup) Ask(n int, protocol uint8, client, virtual netip.AddrPort) error {
	if !client.Addr().Is4() || !virtual.Addr().Is4() || n < 0 || n >= Questions {
		return fmt.Errorf("look up %v to %v: no question %d about it", client, virtual, n)
	}
	router := netip.AddrFrom4([4]byte{198, 19, byte(n >> 8), byte(n)})
	l.buf = appendIP(l.buf[:0], unix.IPPROTO_ICMP, router, virtual.Addr(), 8+20+8)
	icmp := len(l.buf)
	l.buf = append(l.buf, 3, 1, 0, 0, 0, 0, 0, 0) // destination unreachable: host
	l.buf = appendIP(l.buf, protocol, virtual.Addr(), client.Addr(), 20)
	l.buf = binary.BigEndian.AppendUint16(l.buf, virtual.Port())
	l.buf = binary.BigEndian.AppendUint16(l.buf, client.Port())
	l.buf = append(l.buf, 0, 0, 0, 0) // as much as RFC 792 demands
	binary.BigEndian.PutUint16(l.buf[icmp+2:], checksum(l.buf[icmp:], 0))
	_, err := l.dev.Write(l.buf)
	return err
}

// Answers reads what `nft -j list set` says of the set of answers: the real
// server for each question about a connection that the kernel has.
func Answers(text []byte) (map[int]netip.Addr, error) {
	var out struct {
		Nftables []struct {
			Set *struct {
				Elem []struct {
					Concat [2]netip.Addr `json:"concat"`
				} `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("answers of lookups: %w", err)
	}
	all := map[int]netip.Addr{}
	for _, o := range out.Nftables {
		if o.Set == nil {
			continue
		}
		for _, e := range o.Set.Elem {
			router := e.Concat[0].As4()
			all[int(router[2])<<8|int(router[3])] = e.Concat[1]
		}
	}
	return all, nil
}

// appendIP appends an IP header for so many bytes.
func appendIP(b []byte, protocol byte, from, to netip.Addr, length int) []byte {
	at := len(b)
	src, dst := from.As4(), to.As4()
	b = append(b, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0)
	b = append(append(b, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(b[at+2:], uint16(20+length))
	binary.BigEndian.PutUint16(b[at+10:], checksum(b[at:at+20], 0))
	return b
}
