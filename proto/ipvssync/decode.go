package ipvssync

import (
	"encoding/binary"
	"net/netip"
)

// recordSize checks what ip_vs_process_message checks of the version 1 record at the start of b, plus that the record is
// not shorter than its fixed part, and returns its length without padding.
func recordSize(b []byte) (int, error) {
	// The kernel wants room for an IPv4 record before it looks at the type.
	if len(b) < RecordLen4 {
		return 0, ErrRecordTruncated
	}
	verSize := binary.BigEndian.Uint16(b[2:])
	n := int(verSize & MaxRecordLen)
	if n > len(b) {
		return 0, ErrRecordOverrun
	}
	if verSize > MaxRecordLen {
		return 0, ErrRecordVersion
	}
	fixed := RecordLen4
	if b[0]&1 != 0 {
		fixed = RecordLen6
	} else if b[0] != 0 {
		return 0, ErrRecordType
	}
	if n < fixed {
		return 0, ErrRecordShort
	}
	return n, nil
}

// ParseRecordV1 reads the version 1 record at the start of b, where b need not be a message, and returns its length without padding: 0 when
// it is damaged, more with an error that is [Skipped]. Errors are those of [Reader.Next].
func ParseRecordV1(b []byte, rec *Record) (int, error) { return parseV1(b, rec) }

// parseV1 reads the version 1 record at the start of b and returns its length without padding; 0 when it is damaged.
func parseV1(b []byte, rec *Record) (int, error) {
	// Nearly all records are IPv4 without options.
	if len(b) >= RecordLen4 && b[0] == 0 && b[2] == 0 && b[3] == RecordLen4 {
		fixed4((*[RecordLen4]byte)(b), rec)
		return RecordLen4, nil
	}
	n, err := recordSize(b)
	if err != nil {
		return 0, err
	}
	opts := b[RecordLen4:n]
	if b[0] == 0 {
		fixed4((*[RecordLen4]byte)(b), rec)
	} else {
		fixed6((*[RecordLen6]byte)(b), rec)
		opts = b[RecordLen6:n]
	}
	if len(opts) == 0 {
		return n, nil
	}
	if err := parseOptions(opts, rec); err != nil && !Skipped(err) {
		return 0, err
	} else {
		return n, err
	}
}

// fixed4 reads the fixed part of an IPv4 record.
func fixed4(b *[RecordLen4]byte, rec *Record) {
	*rec = Record{
		Protocol: b[1],
		Flags:    binary.BigEndian.Uint32(b[4:]),
		State:    binary.BigEndian.Uint16(b[8:]),
		Fwmark:   binary.BigEndian.Uint32(b[16:]),
		Timeout:  binary.BigEndian.Uint32(b[20:]),
		Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[24:28])), binary.BigEndian.Uint16(b[10:])),
		Virtual:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[28:32])), binary.BigEndian.Uint16(b[12:])),
		Real:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[32:36])), binary.BigEndian.Uint16(b[14:])),
	}
}

// fixed6 reads the fixed part of an IPv6 record.
func fixed6(b *[RecordLen6]byte, rec *Record) {
	*rec = Record{
		Protocol: b[1],
		Flags:    binary.BigEndian.Uint32(b[4:]),
		State:    binary.BigEndian.Uint16(b[8:]),
		Fwmark:   binary.BigEndian.Uint32(b[16:]),
		Timeout:  binary.BigEndian.Uint32(b[20:]),
		Client:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), binary.BigEndian.Uint16(b[10:])),
		Virtual:  netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[40:56])), binary.BigEndian.Uint16(b[12:])),
		Real:     netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[56:72])), binary.BigEndian.Uint16(b[14:])),
	}
}

// parseOptions reads the options that fill b, in the kernel's order of checks (ip_vs_proc_sync_conn): an unknown mandatory option
// ends it at once, so that damage behind it goes unseen.
func parseOptions(b []byte, rec *Record) error {
	for len(b) > 0 {
		if len(b) < optHeader {
			return ErrOptionTruncated
		}
		kind, n := b[0], int(b[1])
		b = b[optHeader:]
		if n == 0 || n > len(b) {
			return ErrOptionLength
		}
		data := b[:n:n]
		b = b[n:]
		switch kind &^ optOptional {
		case optSeq:
			if n != seqLen {
				return ErrSeqLength
			}
			if rec.HasSeq {
				return ErrOptionTwice
			}
			rec.HasSeq = true
			rec.In = parseSeq(data, binary.BigEndian)
			rec.Out = parseSeq(data[seqLen/2:], binary.BigEndian)
		case optPEData: // cannot exceed MaxPEData: its length is one byte
			if rec.PEData != nil {
				return ErrOptionTwice
			}
			rec.PEData = data
		case optPEName:
			if n > MaxPEName {
				return ErrPENameLong
			}
			if rec.PEName != nil {
				return ErrOptionTwice
			}
			rec.PEName = data
		default:
			if kind&optOptional == 0 {
				return ErrOptionMandatory
			}
		}
	}
	if rec.PEData != nil && rec.PEName == nil {
		return ErrPENameMissing
	}
	return nil
}

func parseSeq[O binary.ByteOrder](b []byte, order O) Seq {
	return Seq{Init: order.Uint32(b), Delta: order.Uint32(b[4:]), PrevDelta: order.Uint32(b[8:])}
}

// recordSizeV0 returns the length of the version 0 record at the start of b (ip_vs_process_message_v0).
func recordSizeV0(b []byte) (int, error) {
	if len(b) < RecordLenV0 {
		return 0, ErrRecordTruncated
	}
	if binary.BigEndian.Uint16(b[20:])&FlagSeqMask == 0 {
		return RecordLenV0, nil
	}
	if len(b) < RecordLenV0+seqLen {
		return 0, ErrRecordOverrun
	}
	return RecordLenV0 + seqLen, nil
}

// parseV0 reads the version 0 record at the start of b and returns its length; 0 when it is cut off.
func parseV0(b []byte, rec *Record) (int, error) {
	n, err := recordSizeV0(b)
	if err != nil {
		return 0, err
	}
	*rec = Record{
		Protocol: b[1],
		Flags:    uint32(binary.BigEndian.Uint16(b[20:])),
		State:    binary.BigEndian.Uint16(b[22:]),
		Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:12])), binary.BigEndian.Uint16(b[2:])),
		Virtual:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[4:])),
		Real:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(b[6:])),
	}
	if n > RecordLenV0 {
		// A kernel copies its memory as it is; a farm of one byte order understands itself.
		rec.HasSeq = true
		rec.In = parseSeq(b[RecordLenV0:], binary.NativeEndian)
		rec.Out = parseSeq(b[RecordLenV0+seqLen/2:], binary.NativeEndian)
	}
	return n, nil
}
