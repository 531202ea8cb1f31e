package ipvssync

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"
)

// Seq is how a connection's sequence numbers are shifted in one direction, by application helpers such as FTP's (struct ip_vs_seq).
type Seq struct {
	Init      uint32 // from here on Delta is added
	Delta     uint32
	PrevDelta uint32 // added to what is older than Init
}

// Record is one connection or persistence template.
type Record struct {
	Protocol uint8  // IPPROTO_*
	Flags    uint32 // Flag*; version 0 carries the low 16 bits
	State    uint16 // of the protocol; of the template when FlagTemplate is set
	Timeout  uint32 // seconds, in full for the state; 0 in version 0: the receiver takes its default
	Fwmark   uint32 // 0 in version 0

	// Client, Virtual and Real are of one family. In a record of an IPv6 connection an IPv4-mapped address stays what it
	// is on the wire: such a record is IPv6 to the kernel. IPv4 records have plain IPv4 addresses.
	Client, Virtual, Real netip.AddrPort

	HasSeq  bool // In and Out are present
	In, Out Seq  // shifts towards the server, towards the client

	// PEName and PEData belong to a persistence engine (SIP). They alias the message.
	PEName, PEData []byte
}

// Is6 reports whether the record is of an IPv6 connection.
func (r *Record) Is6() bool { return r.Client.Addr().Is6() }

// Template reports whether the record is a persistence template.
func (r *Record) Template() bool { return r.Flags&FlagTemplate != 0 }

// Normalize clears the flags that must not be sent: FlagHashed, which kernels keep to themselves, and the sequence flags
// of a record without sequence numbers, which make kernels before July 2026 add stale memory to sequence numbers (ip_vs_conn_new did not
// clear struct ip_vs_seq in full).
func (r *Record) Normalize() {
	r.Flags &^= FlagHashed
	if !r.HasSeq {
		r.Flags &^= FlagSeqMask
	}
}

// DropSeq takes sequence numbers and their flags off the record. What a kernel's master thread sends in version 1 as sequence numbers is,
// on Linux 6.1 and 6.12, whatever its buffer held (ip_vs_sync_conn calls hton_seq with its arguments exchanged; 7.2 does it right): nothing
// to be passed on.
func (r *Record) DropSeq() {
	r.HasSeq, r.In, r.Out = false, Seq{}, Seq{}
	r.Flags &^= FlagSeqMask
}

// Header is the header of a message of either version.
type Header struct {
	Version uint8 // 0 or 1
	SyncID  uint8 // receivers with another non-zero syncid ignore the message
	Size    uint16
	Count   uint8 // records that the message claims to have
}

// recordsAt returns the length of the encoded header: the offset of the first record.
func (h Header) recordsAt() int {
	if h.Version == 1 {
		return HeaderLenV1
	}
	return HeaderLenV0
}

// ParseHeader reads the header of the message that fills b. It fails with ErrMessageShort or ErrMessageSize; then the
// kernel ignores the whole datagram.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLenV0 {
		return Header{}, ErrMessageShort
	}
	h := Header{SyncID: b[1], Size: binary.BigEndian.Uint16(b[2:])}
	if int(h.Size) != len(b) {
		return Header{}, ErrMessageSize
	}
	if len(b) >= HeaderLenV1 && b[5] == 1 && b[0] == 0 && b[6]|b[7] == 0 {
		h.Version, h.Count = 1, b[4]
	} else {
		h.Count = b[0]
	}
	return h, nil
}

// Message is a message whose records have not been looked at. It aliases the buffer that it was parsed from.
type Message struct {
	Header
	b []byte
}

// Parse reads the header of the message that fills b. Errors are those of [ParseHeader].
func Parse(b []byte) (Message, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return Message{}, err
	}
	return Message{Header: h, b: b}, nil
}

// Bytes returns the whole message as it was given to [Parse].
func (m Message) Bytes() []byte { return m.b }

// Records yields the records that a kernel would take, in order. If a record is damaged, its error comes last, with an
// empty record. Records that a kernel leaves out are left out; a [Reader] shows them.
func (m Message) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var rec Record
		for r := m.Reader(); ; {
			err := r.Next(&rec)
			switch {
			case err == nil:
				if !yield(rec, nil) {
					return
				}
			case errors.Is(err, ErrEnd):
				return
			case Skipped(err):
			default:
				yield(Record{}, err)
				return
			}
		}
	}
}

// End returns the offset just after the last record, rounded up to a multiple of 4 where the message is long enough: where
// something else than records may start. Only what is needed to walk over the records is checked; the errors are those of damaged records.
func (m Message) End() (int, error) {
	off, left := m.recordsAt(), int(m.Count)
	if m.Version == 0 {
		for ; left > 0; left-- {
			n, err := recordSizeV0(m.b[off:])
			if err != nil {
				return 0, err
			}
			off += n
		}
		return off, nil
	}
	for ; left > 0; left-- {
		n, err := recordSize(m.b[min(off, len(m.b)):])
		if err != nil {
			return 0, err
		}
		off += (n + alignMask) &^ alignMask
	}
	return min(off, len(m.b)), nil
}

// Reader reads the records of a message one by one. It is what [Message.Records] is made of, for callers that want to know
// about skipped records, or need no copies of the record.
type Reader struct {
	b       []byte
	off     int // of the next record; beyond len(b) when the last record was not padded
	left    int // records to come
	version uint8
	err     error // sticky
}

// Reader returns a reader at the first record.
func (m Message) Reader() Reader {
	return Reader{b: m.b, off: m.recordsAt(), left: int(m.Count), version: m.Version}
}

// Next reads the next record into rec. It returns
//
//   - nil: rec is complete;
//   - an error that is [Skipped]: a kernel would leave this record out; rec has its fixed part, and the next call goes on;
//   - [ErrEnd]: there are no more;
//   - another error: the record is damaged, and the rest of the message does not count. Every later call returns it again.
func (r *Reader) Next(rec *Record) error {
	if r.err != nil {
		return r.err
	}
	if r.left == 0 {
		return ErrEnd
	}
	var n int
	var err error
	if r.version == 1 {
		n, err = parseV1(r.b[min(r.off, len(r.b)):], rec)
		r.off += (n + alignMask) &^ alignMask
	} else {
		n, err = parseV0(r.b[r.off:], rec)
		r.off += n
	}
	r.left--
	if err != nil && !Skipped(err) {
		r.err = err
	}
	return err
}

// Offset returns where the next record starts or, after ErrEnd, what [Message.End] returns.
func (r *Reader) Offset() int { return min(r.off, len(r.b)) }
