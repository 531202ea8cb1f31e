package mirror

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// TableItemLen is the length of one record's item in the body of KindTable.
const TableItemLen = 8

// Limits of a table item's fields.
const (
	MaxClockOffset = 1<<40 - 1 // microseconds: 12.7 days
	MaxAge         = 1<<24 - 1 // seconds: 194 days
)

// TableItem is what a record of KindTable has of its own.
type TableItem struct {
	ClockOffset uint64 // microseconds before the message's clock, at most MaxClockOffset
	Age         uint32 // seconds since the record was last refreshed, at most MaxAge
}

// AppendTableItem appends one item; values beyond the limits are cut to them.
func AppendTableItem(b []byte, it TableItem) []byte {
	off, age := min(it.ClockOffset, MaxClockOffset), min(it.Age, MaxAge)
	return binary.BigEndian.AppendUint64(b, off<<24|uint64(age))
}

// TableItemAt returns item i of the body of KindTable; the caller has checked the body's length against the number of records.
func TableItemAt(body []byte, i int) TableItem {
	v := binary.BigEndian.Uint64(body[i*TableItemLen:])
	return TableItem{ClockOffset: v >> 24, Age: uint32(v & MaxAge)}
}

// Sizes of a heartbeat's body.
const (
	heartbeatLen = 20
	echoLen      = 40
	// MaxName is the longest node name in bytes.
	MaxName = 63
	// MaxEchoes is how many echoes fit into one heartbeat beside the longest name.
	MaxEchoes = (MaxDatagram - headerLen - MinLen - heartbeatLen - (MaxName + 1)) / echoLen
)

// Heartbeat is the body of KindHeartbeat.
type Heartbeat struct {
	Uptime uint64 // milliseconds since the sender started
	Stream uint64 // newest sequence number of the sender's stream
	Name   string // node name, at most MaxName bytes

	echoes []byte
}

// Echo tells one node what the sender last heard of it.
type Echo struct {
	Node        uint64
	Incarnation uint64
	Control     uint64 // newest control sequence number
	Stream      uint64 // newest stream sequence number
	Age         uint32 // milliseconds since it was last heard
	Flags       uint8  // EchoCounts, EchoLacks
}

// Flags of an Echo.
const (
	EchoCounts = 0x01 // the sender uses what this incarnation of the node sends
	EchoLacks  = 0x02 // it lacks datagrams of the node's stream, and asks for the node's table
)

// AppendHeartbeat appends the body of a heartbeat with the echoes. On an error b is returned unchanged.
func AppendHeartbeat(b []byte, h *Heartbeat, echoes []Echo) ([]byte, error) {
	if len(h.Name) > MaxName {
		return b, fmt.Errorf("append heartbeat with a name of %d bytes: %w", len(h.Name), ErrBody)
	}
	if len(echoes) > MaxEchoes {
		return b, fmt.Errorf("append heartbeat with %d echoes: %w", len(echoes), ErrBody)
	}
	b = binary.BigEndian.AppendUint64(b, h.Uptime)
	b = binary.BigEndian.AppendUint64(b, h.Stream)
	b = append(b, uint8(len(echoes)), uint8(len(h.Name)), 0, 0)
	for i := range echoes {
		e := &echoes[i]
		b = binary.BigEndian.AppendUint64(b, e.Node)
		b = binary.BigEndian.AppendUint64(b, e.Incarnation)
		b = binary.BigEndian.AppendUint64(b, e.Control)
		b = binary.BigEndian.AppendUint64(b, e.Stream)
		b = binary.BigEndian.AppendUint32(b, e.Age)
		b = append(b, e.Flags, 0, 0, 0)
	}
	b = append(b, h.Name...)
	for range -len(h.Name) & 3 {
		b = append(b, 0)
	}
	return b, nil
}

// ParseHeartbeat reads the body of a heartbeat. The name is copied; Echoes reads from body.
func ParseHeartbeat(body []byte) (Heartbeat, error) {
	if len(body) < heartbeatLen {
		return Heartbeat{}, fmt.Errorf("heartbeat of %d bytes: %w", len(body), ErrBody)
	}
	n, name := int(body[16]), int(body[17])
	end := heartbeatLen + n*echoLen
	if name > MaxName || len(body) != end+(name+3)&^3 || body[18]|body[19] != 0 {
		return Heartbeat{}, fmt.Errorf("heartbeat with %d echoes in %d bytes: %w", n, len(body), ErrBody)
	}
	for e := body[heartbeatLen:end]; len(e) > 0; e = e[echoLen:] {
		if e[37]|e[38]|e[39] != 0 {
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
		Uptime: binary.BigEndian.Uint64(body),
		Stream: binary.BigEndian.Uint64(body[8:]),
		Name:   string(body[end : end+name]),
		echoes: body[heartbeatLen:end],
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
				Age:         binary.BigEndian.Uint32(e[32:]),
				Flags:       e[36],
			}) {
				return
			}
		}
	}
}
