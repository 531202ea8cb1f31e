package inspect

import (
	"encoding/binary"

	"saru/proto/ipvssync"
)

// split takes apart what a sender has handed to its kernel as one datagram for the kernel to split (UDP_SEGMENT): a capture on that host, or
// on a virtual link, sees it before it is split. It is made of messages of one length, of which the last may be shorter.
func split(g datagram) []datagram {
	if g.defect != "" || len(g.payload) < ipvssync.HeaderLenV1 {
		return []datagram{g}
	}
	size := int(binary.BigEndian.Uint16(g.payload[2:]))
	var out []datagram
	for rest := g.payload; len(rest) > 0; {
		n := min(size, len(rest))
		if n < ipvssync.HeaderLenV1 || int(binary.BigEndian.Uint16(rest[2:])) != n {
			return []datagram{g} // a single one, with a wrong length perhaps
		}
		part := g
		part.payload, rest = rest[:n:n], rest[n:]
		out = append(out, part)
	}
	return out
}
