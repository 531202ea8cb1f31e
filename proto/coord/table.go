package coord

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Sizes of the encoding of a table.
const (
	tableLen    = 52
	memberLen   = 19
	functionLen = 10
	virtualLen  = 3

	// MaxTable is the longest encoding of a table.
	MaxTable = tableLen + MaxMembers*(memberLen+MaxName) + MaxMembers*memberLen + functionLen + MaxVirtuals*(virtualLen+16) + 2*MaxBuckets
)

var tableMagic = [4]byte{'S', 'A', 'R', 'T'}

// DigestOf returns the digest of an encoding.
func DigestOf(encoding []byte) Digest {
	sum := sha256.Sum256(encoding)
	return Digest(sum[:len(Digest{})])
}

// MemberIndex returns the index of a node in Members, or -1.
func (t *Table) MemberIndex(node uint64) int {
	i, ok := slices.BinarySearchFunc(t.Members, node, func(m Member, node uint64) int { return cmp.Compare(m.Node, node) })
	if !ok {
		return -1
	}
	return i
}

// Digest returns the digest of the table: that of its encoding, which is made for it. What Check refuses has the zero digest.
func (t *Table) Digest() Digest {
	b, err := t.AppendBinary(nil)
	if err != nil {
		return Digest{}
	}
	return DigestOf(b)
}

// Ref returns a reference to the table, with its Digest.
func (t *Table) Ref() Ref { return Ref{Line: t.Line, Version: t.Version, Digest: t.Digest()} }

// Digest returns the digest of the share function: that of its encoding. What Check refuses has the zero digest.
func (f *Function) Digest() Digest {
	if f.Check() != nil {
		return Digest{}
	}
	return DigestOf(f.append(nil))
}

// AppendBinary appends the encoding of the table. On an error b is returned unchanged.
func (t *Table) AppendBinary(b []byte) ([]byte, error) {
	if err := t.Check(); err != nil {
		return b, fmt.Errorf("append table: %w", err)
	}
	b = slices.Grow(b, t.length())
	b = append(b, tableMagic[:]...)
	b = append(b, FormatVersion, uint8(t.Policy), uint8(len(t.Members)), uint8(len(t.Dead)))
	b = appendLine(b, t.Line)
	b = binary.BigEndian.AppendUint32(b, t.Version)
	b = append(b, t.Parent[:]...)
	b = binary.BigEndian.AppendUint32(b, t.Term)
	b = binary.BigEndian.AppendUint64(b, t.Master)
	b = appendMembers(b, t.Members)
	b = appendMembers(b, t.Dead)
	b = t.Function.append(b)
	b = append(b, t.Owner...)
	return append(b, t.Next...), nil
}

// length returns about how long the encoding will be; not less.
func (t *Table) length() int {
	return tableLen + (len(t.Members)+len(t.Dead))*(memberLen+MaxName) + functionLen + len(t.Function.Virtuals)*(virtualLen+16) + len(t.Owner) + len(t.Next)
}

func appendMembers(b []byte, members []Member) []byte {
	for i := range members {
		m := &members[i]
		b = binary.BigEndian.AppendUint64(b, m.Node)
		b = binary.BigEndian.AppendUint64(b, m.Incarnation)
		b = binary.BigEndian.AppendUint16(b, m.Weight)
		b = append(b, uint8(len(m.Name)))
		b = append(b, m.Name...)
	}
	return b
}

// append appends the encoding of a function that is right.
func (f *Function) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, f.Buckets)
	b = binary.BigEndian.AppendUint32(b, f.Seed)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.Virtuals)))
	for _, v := range f.Virtuals {
		b = append(b, uint8(v.Address.BitLen()/8), v.Fields, v.Mask)
		if v.Address.Is4() {
			a := v.Address.As4()
			b = append(b, a[:]...)
		} else {
			a := v.Address.As16()
			b = append(b, a[:]...)
		}
	}
	return b
}

// ParseTable reads the encoding of a table, all of b, and checks it. The table does not alias b.
func ParseTable(b []byte) (*Table, error) {
	if len(b) < tableLen {
		return nil, fmt.Errorf("table of %d bytes: %w", len(b), ErrTruncated)
	}
	if [4]byte(b[:4]) != tableMagic {
		return nil, fmt.Errorf("table: %w", ErrMagic)
	}
	if b[4] != FormatVersion {
		return nil, fmt.Errorf("table: %w", ErrVersion)
	}
	r := reader{b: b[8:]}
	t := &Table{
		Policy: Policy(b[5]), Line: r.line(), Version: r.uint32(), Parent: r.digest(), Term: r.uint32(), Master: r.uint64(),
		Members: r.members(int(b[6])), Dead: r.members(int(b[7])),
	}
	err := r.function(&t.Function)
	if err == nil {
		n := int(t.Function.Buckets)
		t.Owner, t.Next = slices.Clone(r.bytes(n)), slices.Clone(r.bytes(n))
		err = r.end()
	}
	if err == nil {
		err = t.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("table of %d bytes: %w", len(b), err)
	}
	return t, nil
}

// members reads n members; nil, if there are fewer.
func (r *reader) members(n int) []Member {
	if n == 0 || len(r.b) < n*memberLen {
		r.bytes(n * memberLen)
		return nil
	}
	members := make([]Member, n)
	for i := range members {
		members[i] = Member{Node: r.uint64(), Incarnation: r.uint64(), Weight: r.uint16(), Name: string(r.bytes(int(r.uint8())))}
	}
	return members
}

func (r *reader) function(f *Function) error {
	if f.Buckets, f.Seed = r.uint32(), r.uint32(); f.Buckets > MaxBuckets {
		return fmt.Errorf("%d buckets: %w", f.Buckets, ErrMalformed)
	}
	n := int(r.uint16())
	if n == 0 || len(r.b) < n*(virtualLen+4) {
		r.bytes(n * (virtualLen + 4))
		return nil
	}
	f.Virtuals = make([]Virtual, n)
	for i := range f.Virtuals {
		size := int(r.uint8())
		f.Virtuals[i] = Virtual{Fields: r.uint8(), Mask: r.uint8()}
		if size != 4 && size != 16 && !r.short {
			return fmt.Errorf("address of %d bytes: %w", size, ErrMalformed)
		}
		f.Virtuals[i].Address, _ = netip.AddrFromSlice(r.bytes(size))
	}
	return nil
}
