package ipvssync

import (
	"encoding/binary"
	"slices"
)

// RecordLen returns the length of r in a message of version 1, without padding.
func RecordLen(r *Record) int {
	n := RecordLen4
	if r.Is6() {
		n = RecordLen6
	}
	if r.HasSeq {
		n += seqOption
	}
	if len(r.PEData) > 0 {
		n += optHeader + len(r.PEData)
	}
	if len(r.PEName) > 0 {
		n += optHeader + len(r.PEName)
	}
	return n
}

// AppendHeaderV1 begins a message of version 1 at the end of b. The offset of the message, len(b) before the call, is what
// AppendRecordV1 and FinishV1 want as msgStart. Count and size are written by FinishV1.
func AppendHeaderV1(b []byte, syncID uint8) []byte {
	return append(b, 0, syncID, 0, HeaderLenV1, 0, 1, 0, 0)
}

// AppendRecordV1 appends r to the message that starts at msgStart, behind the zero bytes that align it. Flags are
// written as they are (see [Record.Normalize]). The sequence option is written when HasSeq is set, as the kernel does it: first; then data and name
// of the persistence engine. On an error b is returned unchanged.
func AppendRecordV1(b []byte, msgStart int, r *Record) ([]byte, error) {
	off := len(b) - msgStart // within the message
	if msgStart < 0 || off < HeaderLenV1 {
		return b, ErrNoHeader
	}
	start := msgStart + (off+alignMask)&^alignMask
	client, virtual, real := r.Client.Addr(), r.Virtual.Addr(), r.Real.Addr()

	plain := !r.HasSeq && len(r.PEData)|len(r.PEName) == 0
	fixed := RecordLen4
	switch {
	case client.Is4() && virtual.Is4() && real.Is4():
	case client.Is6() && virtual.Is6() && real.Is6():
		fixed = RecordLen6
	default:
		return b, ErrFamily
	}
	n := fixed
	if !plain {
		if err := checkOptions(r); err != nil {
			return b, err
		}
		n = RecordLen(r)
	}
	if start+n-msgStart > MaxSize {
		return b, ErrTooLong
	}

	pad := start - len(b)
	b = slices.Grow(b, pad+n)[:start+n]
	clear(b[start-pad : start])
	p := b[start : start+n]
	p[0] = 0
	p[1] = r.Protocol
	binary.BigEndian.PutUint16(p[2:], uint16(n)) // record version 0 in the high bits
	binary.BigEndian.PutUint32(p[4:], r.Flags)
	binary.BigEndian.PutUint16(p[8:], r.State)
	binary.BigEndian.PutUint16(p[10:], r.Client.Port())
	binary.BigEndian.PutUint16(p[12:], r.Virtual.Port())
	binary.BigEndian.PutUint16(p[14:], r.Real.Port())
	binary.BigEndian.PutUint32(p[16:], r.Fwmark)
	binary.BigEndian.PutUint32(p[20:], r.Timeout)
	if fixed == RecordLen4 {
		*(*[4]byte)(p[24:]) = client.As4()
		*(*[4]byte)(p[28:]) = virtual.As4()
		*(*[4]byte)(p[32:]) = real.As4()
	} else {
		p[0] = 1
		*(*[16]byte)(p[24:]) = client.As16()
		*(*[16]byte)(p[40:]) = virtual.As16()
		*(*[16]byte)(p[56:]) = real.As16()
	}
	if !plain {
		putOptions(p[fixed:], r)
	}
	return b, nil
}

// checkOptions refuses what a receiving kernel would refuse.
func checkOptions(r *Record) error {
	switch {
	case len(r.PEName) > MaxPEName:
		return ErrPENameLong
	case len(r.PEData) > MaxPEData:
		return ErrPEDataLong
	case len(r.PEData) > 0 && len(r.PEName) == 0:
		return ErrPENameMissing
	}
	return nil
}

// putOptions writes the options of r into p, which has their exact length.
func putOptions(p []byte, r *Record) {
	if r.HasSeq {
		p[0], p[1] = optSeq, seqLen
		putSeq(p[optHeader:], r.In, binary.BigEndian)
		putSeq(p[optHeader+seqLen/2:], r.Out, binary.BigEndian)
		p = p[seqOption:]
	}
	if len(r.PEData) > 0 {
		p[0], p[1] = optPEData, uint8(len(r.PEData))
		p = p[optHeader+copy(p[optHeader:], r.PEData):]
	}
	if len(r.PEName) > 0 {
		p[0], p[1] = optPEName, uint8(len(r.PEName))
		copy(p[optHeader:], r.PEName)
	}
}

func putSeq[O binary.ByteOrder](p []byte, s Seq, order O) {
	order.PutUint32(p, s.Init)
	order.PutUint32(p[4:], s.Delta)
	order.PutUint32(p[8:], s.PrevDelta)
}

// PadV1 appends the zero bytes after which something that is no record may follow (see [Message.End]).
func PadV1(b []byte, msgStart int) []byte {
	var zero [alignMask]byte
	return append(b, zero[:-(len(b)-msgStart)&alignMask]...)
}

// FinishV1 writes the number of records and the size, up to the end of b, into the header at msgStart: call it last, when trailing bytes have been
// appended, too. It fails with ErrTooManyRecords, ErrTooLong or ErrNoHeader.
func FinishV1(b []byte, msgStart int, count int) error {
	size := len(b) - msgStart
	switch {
	case msgStart < 0 || size < HeaderLenV1 || count < 0:
		return ErrNoHeader
	case count > MaxRecords:
		return ErrTooManyRecords
	case size > MaxSize:
		return ErrTooLong
	}
	binary.BigEndian.PutUint16(b[msgStart+2:], uint16(size))
	b[msgStart+4] = uint8(count)
	return nil
}

// AppendHeaderV0 begins a message of version 0 at the end of b.
func AppendHeaderV0(b []byte, syncID uint8) []byte {
	return append(b, 0, syncID, 0, HeaderLenV0)
}

// AppendRecordV0 appends r to a message of version 0. As in the kernel, the flags above bit 15, timeout, fwmark and
// persistence engine are left behind; IPv6 is refused, and so is a record whose sequence flags do not tell whether sequence numbers follow. On an
// error b is returned unchanged.
func AppendRecordV0(b []byte, msgStart int, r *Record) ([]byte, error) {
	if msgStart < 0 || len(b)-msgStart < HeaderLenV0 {
		return b, ErrNoHeader
	}
	client, virtual, real := r.Client.Addr(), r.Virtual.Addr(), r.Real.Addr()
	switch {
	case client.Is4() && virtual.Is4() && real.Is4():
	case client.Is6() && virtual.Is6() && real.Is6():
		return b, ErrFamilyV0
	default:
		return b, ErrFamily
	}
	if r.HasSeq != (r.Flags&FlagSeqMask != 0) {
		return b, ErrSeqFlags
	}
	start, n := len(b), RecordLenV0
	if r.HasSeq {
		n += seqLen
	}
	if start+n-msgStart > MaxSize {
		return b, ErrTooLong
	}
	b = slices.Grow(b, n)[:start+n]
	p := b[start:]
	p[0], p[1] = 0, r.Protocol
	binary.BigEndian.PutUint16(p[2:], r.Client.Port())
	binary.BigEndian.PutUint16(p[4:], r.Virtual.Port())
	binary.BigEndian.PutUint16(p[6:], r.Real.Port())
	*(*[4]byte)(p[8:]) = client.As4()
	*(*[4]byte)(p[12:]) = virtual.As4()
	*(*[4]byte)(p[16:]) = real.As4()
	binary.BigEndian.PutUint16(p[20:], uint16(r.Flags))
	binary.BigEndian.PutUint16(p[22:], r.State)
	if r.HasSeq {
		putSeq(p[RecordLenV0:], r.In, binary.NativeEndian)
		putSeq(p[RecordLenV0+seqLen/2:], r.Out, binary.NativeEndian)
	}
	return b, nil
}

// FinishV0 writes the number of records and the size into the header at msgStart. Errors are those of [FinishV1].
func FinishV0(b []byte, msgStart int, count int) error {
	size := len(b) - msgStart
	switch {
	case msgStart < 0 || size < HeaderLenV0 || count < 0:
		return ErrNoHeader
	case count > MaxRecords:
		return ErrTooManyRecords
	case size > MaxSize:
		return ErrTooLong
	}
	b[msgStart] = uint8(count)
	binary.BigEndian.PutUint16(b[msgStart+2:], uint16(size))
	return nil
}
