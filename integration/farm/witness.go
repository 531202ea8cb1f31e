package farm

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

// witnessGroup is the group of netfilter's log that a witness writes to.
const witnessGroup = "5"

// witnessRules copy what IPVS is about to take: behind everything that a director may drop before, and in front of IPVS (LOCAL_IN at 98,
// include/uapi/linux/netfilter_ipv4.h, NF_IP_PRI_NAT_SRC - 2).
const witnessRules = `table inet witness {
	chain input {
		type filter hook input priority 90
		ip daddr %s meta l4proto { tcp, udp } log group ` + witnessGroup + ` snaplen 64
	}
}
`

// WitnessRules are the rules by which a witness sees packets, for whoever flushes the node's ruleset.
func WitnessRules() string { return fmt.Sprintf(witnessRules, VIP) }

// Witness records each IPv4 packet to the virtual address that reaches IPVS of the node, until it is stopped.
func (n *Node) Witness() (*Capture, error) {
	if _, err := n.RunInput(WitnessRules(), "nft", "-f", "-"); err != nil {
		return nil, fmt.Errorf("witness of %s: %w", n.Name, err)
	}
	n.mu.Lock()
	n.lives++
	name := fmt.Sprintf("witness-%d", n.lives)
	n.mu.Unlock()
	return n.Capture(name, "nflog:"+witnessGroup, "")
}

// Taken is a packet that IPVS took.
type Taken struct {
	Client     netip.AddrPort
	Port       uint16
	Protocol   uint8
	ID, Length uint16 // of the IP header
	Sequence   uint32 // TCP
}

// ReadWitness calls fn with each packet of a witness's file, and when it was taken. A file that ends in the middle of a packet, because its director lost power, is
// read up to there.
func ReadWitness(file string, fn func(time.Time, Taken)) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for {
		data, info, err := r.ReadPacketData()
		if err != nil {
			return nil // the end, or cut off
		}
		if t, ok := parseNFLog(data); ok {
			fn(info.Timestamp, t)
		}
	}
}

// nfulaPayload is the attribute of a log message that has the packet (include/uapi/linux/netfilter/nfnetlink_log.h, NFULA_PAYLOAD).
const nfulaPayload = 9

// parseNFLog finds the packet in a message of link type NFLOG: family, version, resource id (2 bytes), then attributes in the byte order of the host:
// length, type, data, to multiples of 4.
func parseNFLog(b []byte) (t Taken, ok bool) {
	for b = b[min(4, len(b)):]; len(b) >= 4; {
		length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if length < 4 || length > len(b) {
			return t, false
		}
		if kind&0x7fff == nfulaPayload {
			return parseTaken(b[4:length])
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return t, false
}

func parseTaken(b []byte) (t Taken, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return t, false
	}
	head := int(b[0]&15) * 4
	if len(b) < head+8 {
		return t, false
	}
	p := b[head:]
	src, _ := netip.AddrFromSlice(b[12:16])
	t = Taken{
		Client: netip.AddrPortFrom(src, binary.BigEndian.Uint16(p)), Port: binary.BigEndian.Uint16(p[2:]), Protocol: b[9],
		ID: binary.BigEndian.Uint16(b[4:]), Length: binary.BigEndian.Uint16(b[2:]),
	}
	if t.Protocol == 6 {
		t.Sequence = binary.BigEndian.Uint32(p[4:])
	}
	return t, true
}
