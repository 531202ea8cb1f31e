package mirror

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
)

// Sizes of a heartbeat's body.
const (
	heartbeatLen = 48
	echoLen      = 48
	// MaxName is the longest node name in bytes.
	MaxName = 63
	// MaxEchoes is how many echoes fit into one heartbeat beside the longest name.
	MaxEchoes = (MaxDatagram - headerLen - MinLen - heartbeatLen - (MaxName + 1)) / echoLen
)

// Heartbeat is the body of KindHeartbeat.
type Heartbeat struct {
	Uptime  uint64         // milliseconds since the sender started
	Stream  uint64         // newest sequence number of the sender's stream; 0: none yet
	Oldest  uint64         // oldest number of the stream that can be repeated; Stream + 1: none
	Teaches netip.AddrPort // where it teaches its table by TCP; the zero AddrPort: nowhere. A zone does not travel
	Entries uint32         // of its table
	Name    string         // node name, at most MaxName bytes

	echoes []byte
}

// Echo tells one node what the sender last heard of it.
type Echo struct {
	Node        uint64
	Incarnation uint64
	Control     uint64 // newest control sequence number
	Stream      uint64 // newest stream sequence number
	Confirmed   uint64 // the sender's kernel has taken the stream up to this number
	Age         uint32 // milliseconds since it was last heard
	Flags       uint8  // EchoCounts
}

// EchoCounts is set in an Echo when its sender uses what this incarnation of the node sends.
const EchoCounts = 0x01

// AppendHeartbeat appends the body of a heartbeat with the echoes. On an error b is returned unchanged.
func AppendHeartbeat(b []byte, h *Heartbeat, echoes []Echo) ([]byte, error) {
	if len(h.Name) > MaxName {
		return b, fmt.Errorf("append heartbeat with a name of %d bytes: %w", len(h.Name), ErrBody)
	}
	if len(echoes) > MaxEchoes {
		return b, fmt.Errorf("append heartbeat with %d echoes: %w", len(echoes), ErrBody)
	}
	var addr [16]byte
	if h.Teaches.IsValid() {
		if !teachable(h.Teaches) {
			return b, fmt.Errorf("append heartbeat that teaches on %s: %w", h.Teaches, ErrBody)
		}
		addr = h.Teaches.Addr().As16()
	}
	b = binary.BigEndian.AppendUint64(b, h.Uptime)
	b = binary.BigEndian.AppendUint64(b, h.Stream)
	b = binary.BigEndian.AppendUint64(b, h.Oldest)
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, h.Teaches.Port())
	b = append(b, uint8(len(echoes)), uint8(len(h.Name)))
	b = binary.BigEndian.AppendUint32(b, h.Entries)
	for i := range echoes {
		e := &echoes[i]
		b = binary.BigEndian.AppendUint64(b, e.Node)
		b = binary.BigEndian.AppendUint64(b, e.Incarnation)
		b = binary.BigEndian.AppendUint64(b, e.Control)
		b = binary.BigEndian.AppendUint64(b, e.Stream)
		b = binary.BigEndian.AppendUint64(b, e.Confirmed)
		b = binary.BigEndian.AppendUint32(b, e.Age)
		b = append(b, e.Flags, 0, 0, 0)
	}
	b = append(b, h.Name...)
	for range -len(h.Name) & 3 {
		b = append(b, 0)
	}
	return b, nil
}

// teachable reports whether a connection to the address can reach one node: nobody is led to itself (an unspecified address) or to
// a group.
func teachable(a netip.AddrPort) bool {
	return a.Port() != 0 && !a.Addr().Unmap().IsUnspecified() && !a.Addr().Unmap().IsMulticast()
}

// ParseHeartbeat reads the body of a heartbeat. The name is copied; Echoes reads from body.
func ParseHeartbeat(body []byte) (Heartbeat, error) {
	if len(body) < heartbeatLen {
		return Heartbeat{}, fmt.Errorf("heartbeat of %d bytes: %w", len(body), ErrBody)
	}
	n, name := int(body[42]), int(body[43])
	end := heartbeatLen + n*echoLen
	if name > MaxName || len(body) != end+(name+3)&^3 {
		return Heartbeat{}, fmt.Errorf("heartbeat with %d echoes in %d bytes: %w", n, len(body), ErrBody)
	}
	var teaches netip.AddrPort
	if [18]byte(body[24:42]) != [18]byte{} {
		teaches = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[24:40])).Unmap(), binary.BigEndian.Uint16(body[40:]))
		if !teachable(teaches) {
			return Heartbeat{}, fmt.Errorf("heartbeat that teaches on %s: %w", teaches, ErrBody)
		}
	}
	for e := body[heartbeatLen:end]; len(e) > 0; e = e[echoLen:] {
		if e[45]|e[46]|e[47] != 0 {
			return Heartbeat{}, fmt.Errorf("heartbeat with a reserved echo field that is not zero: %w", ErrBody)
		}
	}
	for _, c := range body[end : end+name] {
		if c <= ' ' || c > '~' {
			return Heartbeat{}, fmt.Errorf("heartbeat with a name that is not printable: %w", ErrBody)
		}
	}
	for _, c := range body[end+name:] {
		if c != 0 {
			return Heartbeat{}, fmt.Errorf("heartbeat with padding that is not zero: %w", ErrBody)
		}
	}
	return Heartbeat{
		Uptime:  binary.BigEndian.Uint64(body),
		Stream:  binary.BigEndian.Uint64(body[8:]),
		Oldest:  binary.BigEndian.Uint64(body[16:]),
		Teaches: teaches,
		Entries: binary.BigEndian.Uint32(body[44:]),
		Name:    string(body[end : end+name]),
		echoes:  body[heartbeatLen:end],
	}, nil
}

// Echoes iterates over the echoes of a parsed heartbeat.
func (h *Heartbeat) Echoes() iter.Seq[Echo] {
	return func(yield func(Echo) bool) {
		for e := h.echoes; len(e) >= echoLen; e = e[echoLen:] {
			if !yield(Echo{
				Node:        binary.BigEndian.Uint64(e),
				Incarnation: binary.BigEndian.Uint64(e[8:]),
				Control:     binary.BigEndian.Uint64(e[16:]),
				Stream:      binary.BigEndian.Uint64(e[24:]),
				Confirmed:   binary.BigEndian.Uint64(e[32:]),
				Age:         binary.BigEndian.Uint32(e[40:]),
				Flags:       e[44],
			}) {
				return
			}
		}
	}
}
