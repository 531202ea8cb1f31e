package coord

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compareTables = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}

const functionHex = `00000003 00000071 0002
	04 03 18 0a0000fe
	10 0d 80 20010db8000000000000000000000001`

// tables returns what may be changed by each test.
func tables() []tableSample {
	return []tableSample{
		{
			name: "all fields",
			t: Table{
				Line: Line{0x0102, 0x0304}, Version: 0x05, Parent: digest(6), Term: 0x0107, Master: 0x09, Policy: Available,
				Members: []Member{
					{Node: 8, Incarnation: 0x21, Weight: 0x22, Name: "b"},
					{Node: 9, Incarnation: 0x23, Name: "lvs9"},
				},
				Dead: []Member{
					{Node: 7, Incarnation: 0x31, Weight: 0x32},
					{Node: 8, Incarnation: 0x33}, // an earlier incarnation
				},
				Function: Function{Buckets: 3, Seed: 0x71, Virtuals: []Virtual{
					{Address: netip.MustParseAddr("10.0.0.254"), Fields: 3, Mask: 24},
					{Address: netip.MustParseAddr("2001:db8::1"), Fields: 13, Mask: 128},
				}},
				Owner: []uint8{0, 1, NoMember}, Next: []uint8{1, NoMember, 0},
			},
			hex: `53415254 01 02 02 02 00000102 0000000000000304 00000005 06060606060606060606060606060606 00000107 0000000000000009
				0000000000000008 0000000000000021 0022 01 62
				0000000000000009 0000000000000023 0000 04 6c767339
				0000000000000007 0000000000000031 0032 00
				0000000000000008 0000000000000033 0000 00` + functionHex + `
				0001ff 01ff00`,
		},
		{
			name: "founds a farm of one",
			t: Table{
				Line: Line{1, 2}, Version: 1, Term: 1, Master: 2, Policy: Quorum, Members: []Member{{Node: 2, Incarnation: 3, Weight: 100, Name: "a"}},
				Function: Function{Buckets: 1, Seed: 1}, Owner: []uint8{0}, Next: []uint8{NoMember},
			},
			hex: `53415254 01 01 01 00 00000001 0000000000000002 00000001 00000000000000000000000000000000 00000001 0000000000000002
				0000000000000002 0000000000000003 0064 01 61
				00000001 00000001 0000
				00 ff`,
		},
	}
}

type tableSample struct {
	name string
	t    Table
	hex  string
}

// largest returns a table that takes all limits.
func largest() *Table {
	t := &Table{
		Line: Line{1, 2}, Version: 3, Parent: digest(4), Term: 5, Master: 1, Policy: Quorum,
		Function: Function{Buckets: MaxBuckets, Seed: 1}, Owner: make([]uint8, MaxBuckets), Next: make([]uint8, MaxBuckets),
	}
	for i := range MaxMembers {
		t.Members = append(t.Members, Member{Node: uint64(i + 1), Incarnation: 1, Name: fmt.Sprintf("%0*d", MaxName, i)})
		t.Dead = append(t.Dead, Member{Node: uint64(i + 1), Incarnation: 2})
	}
	for i := range MaxVirtuals {
		a := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint16(a[14:], uint16(i))
		t.Function.Virtuals = append(t.Function.Virtuals, Virtual{Address: netip.AddrFrom16(a), Fields: 1, Mask: 64})
	}
	for i := range t.Owner {
		t.Owner[i], t.Next[i] = uint8(i%MaxMembers), uint8(i/MaxMembers%MaxMembers)
	}
	return t
}

func TestTable(t *testing.T) {
	for _, tt := range tables() {
		t.Run(tt.name, func(t *testing.T) {
			b, err := tt.t.AppendBinary([]byte{9})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]byte{9}, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("AppendBinary (-want +got):\n%s", diff)
			}
			b = b[1:]
			got, err := ParseTable(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.t, got, compareTables); diff != "" {
				t.Errorf("ParseTable (-want +got):\n%s", diff)
			}
			sum := sha256.Sum256(b)
			want := Ref{Line: tt.t.Line, Version: tt.t.Version, Digest: Digest(sum[:16])}
			if got.Ref() != want || got.Digest() != want.Digest || !want.whole() {
				t.Errorf("Ref %+v, Digest %x, want %+v", got.Ref(), got.Digest(), want)
			}
			for n := range len(b) {
				if _, err := ParseTable(b[:n]); !errors.Is(err, ErrTruncated) {
					t.Errorf("truncated to %d bytes: error %v", n, err)
				}
			}
			clear(b)
			if diff := cmp.Diff(&tt.t, got, compareTables); diff != "" {
				t.Errorf("after the buffer was cleared (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLargestTable(t *testing.T) {
	want := largest()
	b, err := want.AppendBinary(nil)
	if err != nil || len(b) != MaxTable {
		t.Fatalf("%d bytes, error %v, want %d bytes", len(b), err, MaxTable)
	}
	got, err := ParseTable(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareTables); diff != "" {
		t.Errorf("ParseTable (-want +got):\n%s", diff)
	}
}

func TestMemberIndex(t *testing.T) {
	table := tables()[0].t
	for node, want := range map[uint64]int{7: -1, 8: 0, 9: 1, 10: -1, 0: -1} {
		if got := table.MemberIndex(node); got != want {
			t.Errorf("node %d: %d, want %d", node, got, want)
		}
	}
}

func TestFunctionDigest(t *testing.T) {
	f := tables()[0].t.Function
	sum := sha256.Sum256(unhex(t, functionHex))
	if got := f.Digest(); got != Digest(sum[:16]) {
		t.Errorf("digest %x, want %x", got, sum[:16])
	}
	if got := (&Function{}).Digest(); got != (Digest{}) {
		t.Errorf("a function that is none has digest %x", got)
	}
	if got := (&Table{}).Digest(); got != (Digest{}) {
		t.Errorf("a table that is none has digest %x", got)
	}
}

// A table that breaks a rule is not sent, not taken, and has no digest. spoil makes it from a good one; bytes are the same defect on the wire.
func TestTableHostile(t *testing.T) {
	good := unhex(t, tables()[0].hex)
	const members, dead, function = 52, 52 + 20 + 23, 52 + 20 + 23 + 38
	set := func(off int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[off:], v)
		return b
	}
	zero8 := make([]byte, 8)
	four := netip.MustParseAddr("10.0.0.254")
	for _, tt := range []struct {
		name  string
		spoil func(t *Table) // nil: cannot be said
		bytes []byte         // nil: cannot be encoded
	}{
		{"policy 0", func(t *Table) { t.Policy = 0 }, set(5, 0)},
		{"policy behind the last", func(t *Table) { t.Policy = 3 }, set(5, 3)},
		{"term of the line 0", func(t *Table) { t.Line.Term = 0 }, set(8, 0, 0, 0, 0)},
		{"line of nobody", func(t *Table) { t.Line.Node = 0 }, set(12, zero8...)},
		{"version 0", func(t *Table) { t.Version = 0 }, set(20, 0, 0, 0, 0)},
		{"term before that of the line", func(t *Table) { t.Term = 0x0101 }, set(40, 0, 0, 1, 1)},
		{"master is no member", func(t *Table) { t.Master = 7 }, set(51, 7)},
		{"no members", func(t *Table) { t.Members = nil }, slices.Concat(set(6, 0)[:members], good[dead:])},
		{"65 members", func(t *Table) { t.Members = make([]Member, 65) }, nil},
		{"65 dead", func(t *Table) { t.Dead = make([]Member, 65) }, nil},
		{"member 0", func(t *Table) { t.Members[0].Node = 0 }, set(members, zero8...)},
		{"members of no incarnation", func(t *Table) { t.Members[1].Incarnation = 0 }, set(members+20+8, zero8...)},
		{"a member twice", func(t *Table) { t.Members[0].Node = 9 }, set(members+7, 9)},
		{"members not in order", func(t *Table) { t.Members[0].Node = 10 }, set(members+7, 10)},
		{"member without a name", func(t *Table) { t.Members[0].Name = "" }, slices.Concat(set(members+18, 0)[:members+19], good[members+20:])},
		{"member with a name of two words", func(t *Table) { t.Members[1].Name = "a b" }, set(members+20+20, ' ')},
		{"member with too long a name", func(t *Table) { t.Members[1].Name = strings.Repeat("n", MaxName+1) }, nil},
		{"the same dead twice", func(t *Table) { t.Dead[1].Node = 7 }, set(dead+19+7, 7)},
		{"dead not in order", func(t *Table) { t.Dead[0].Node = 9 }, set(dead+7, 9)},
		{"dead of no incarnation", func(t *Table) { t.Dead[0].Incarnation = 0 }, set(dead+8, zero8...)},
		{"dead with a name", func(t *Table) { t.Dead[1].Name = "x" }, slices.Concat(set(dead+19+18, 1)[:function], []byte("x"), good[function:])},
		{"member and dead", func(t *Table) { t.Dead[1].Incarnation = 0x21 }, set(dead+19+15, 0x21)},
		{"no buckets", func(t *Table) { t.Function.Buckets, t.Owner, t.Next = 0, nil, nil }, set(function, 0, 0, 0, 0)[:len(good)-6]},
		{"65537 buckets", func(t *Table) {
			t.Function.Buckets, t.Owner, t.Next = MaxBuckets+1, make([]uint8, MaxBuckets+1), make([]uint8, MaxBuckets+1)
		}, set(function, 0, 1, 0, 1)},
		{"4294967295 buckets", func(t *Table) { t.Function.Buckets = 1<<32 - 1 }, set(function, 0xff, 0xff, 0xff, 0xff)},
		{"a bucket fewer than owners", func(t *Table) { t.Function.Buckets = 2 }, set(function+3, 2)},
		{"owner missing", func(t *Table) { t.Owner = t.Owner[:2] }, nil},
		{"next owner missing", func(t *Table) { t.Next = t.Next[:2] }, nil},
		{"next owner too many", func(t *Table) { t.Next = append(t.Next, 0) }, nil},
		{"seed 0", func(t *Table) { t.Function.Seed = 0 }, set(function+4, 0, 0, 0, 0)},
		{"1025 virtuals", func(t *Table) { t.Function.Virtuals = make([]Virtual, MaxVirtuals+1) }, nil},
		{"virtual without an address", func(t *Table) { t.Function.Virtuals[0].Address = netip.Addr{} }, nil},
		{"virtual with a zone", func(t *Table) { t.Function.Virtuals[1].Address = netip.MustParseAddr("fe80::1%eth0") }, nil},
		{"address of 5 bytes", nil, set(function+10, 5)},
		{"address of 0 bytes", nil, set(function+10, 0)},
		{"IPv4-mapped address", func(t *Table) { t.Function.Virtuals[1].Address = netip.MustParseAddr("::ffff:10.0.0.1") },
			set(function+17+3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff)},
		{"virtual without fields", func(t *Table) { t.Function.Virtuals[0].Fields = 0 }, set(function+11, 0)},
		{"virtual with an unknown field", func(t *Table) { t.Function.Virtuals[0].Fields = 16 }, set(function+11, 16)},
		{"mask of no bits", func(t *Table) { t.Function.Virtuals[0].Mask = 0 }, set(function+12, 0)},
		{"mask of 33 bits", func(t *Table) { t.Function.Virtuals[0].Mask = 33 }, set(function+12, 33)},
		{"mask of 129 bits", func(t *Table) { t.Function.Virtuals[1].Mask = 129 }, set(function+17+2, 129)},
		{"the same virtual twice", func(t *Table) { t.Function.Virtuals[1] = Virtual{four, 1, 32} },
			slices.Concat(good[:function+17], good[function+10:function+17], good[len(good)-6:])},
		{"virtuals not in order", func(t *Table) { slices.Reverse(t.Function.Virtuals) },
			slices.Concat(good[:function+10], good[function+17:function+36], good[function+10:function+17], good[len(good)-6:])},
		{"owner is no member", func(t *Table) { t.Owner[0] = 2 }, set(len(good)-6, 2)},
		{"next owner is no member", func(t *Table) { t.Next[2] = 254 }, set(len(good)-1, 254)},
		{"something behind", nil, append(slices.Clone(good), 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.spoil != nil {
				table := tables()[0].t
				tt.spoil(&table)
				if b, err := table.AppendBinary([]byte{1}); !errors.Is(err, ErrMalformed) || !bytes.Equal(b, []byte{1}) {
					t.Errorf("AppendBinary: %d bytes, error %v", len(b), err)
				}
				if d := table.Digest(); d != (Digest{}) {
					t.Errorf("digest %x", d)
				}
			}
			if tt.bytes != nil {
				if table, err := ParseTable(tt.bytes); !errors.Is(err, ErrMalformed) || table != nil {
					t.Errorf("ParseTable: %+v, error %v", table, err)
				}
			}
		})
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"a message's magic", set(3, 'C'), ErrMagic},
		{"next format version", set(4, 2), ErrVersion},
		{"more members than there are", set(6, 255), ErrTruncated},
		{"more dead than there are", set(7, 255), ErrTruncated},
		{"name that reaches over the end", set(members+20+18, 255), ErrTruncated},
		{"a bucket more than owners", set(function+3, 4), ErrTruncated},
		{"65536 buckets that are not there", set(function, 0, 1, 0, 0), ErrTruncated},
		{"65535 virtuals that are not there", set(function+8, 0xff, 0xff), ErrTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if table, err := ParseTable(tt.b); !errors.Is(err, tt.want) || table != nil {
				t.Errorf("ParseTable: %+v, error %v, want %v", table, err, tt.want)
			}
		})
	}
}

// The encoding takes one allocation, its buffer, which does not grow; the race detector may add one of its own.
func TestTableAllocations(t *testing.T) {
	table := largest()
	if n := testing.AllocsPerRun(10, func() { _ = table.Digest() }); n > 2 {
		t.Errorf("Digest: %v allocations", n)
	}
}

// farm returns a table as it is in use: 4096 buckets.
func farm(members int) *Table {
	t := &Table{
		Line: Line{1, 1}, Version: 1, Term: 1, Master: 1, Policy: Quorum,
		Function: Function{Buckets: 4096, Seed: 1, Virtuals: []Virtual{{Address: netip.MustParseAddr("10.0.0.254"), Fields: 3, Mask: 32}}},
		Owner:    make([]uint8, 4096), Next: make([]uint8, 4096),
	}
	for i := range members {
		t.Members = append(t.Members, Member{Node: uint64(i + 1), Incarnation: 1, Weight: 100, Name: fmt.Sprintf("lvs%d", i)})
	}
	for i := range t.Owner {
		t.Owner[i], t.Next[i] = uint8(i%members), uint8((i+1)%members)
	}
	return t
}

func BenchmarkTableDigest(b *testing.B) {
	t := farm(64)
	b.ReportAllocs()
	for b.Loop() {
		t.Digest()
	}
}

func BenchmarkParseTable(b *testing.B) {
	enc, err := farm(64).AppendBinary(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseTable(enc); err != nil {
			b.Fatal(err)
		}
	}
}
