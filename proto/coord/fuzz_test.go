package coord

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzParse: no panic, the datagram stays as it is, and what is accepted encodes to the same datagram, but for the tag of what names a key.
func FuzzParse(f *testing.F) {
	for _, tt := range messages {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		m, err := Parse(b)
		if !bytes.Equal(b, original) {
			t.Fatal("parsing changed the datagram")
		}
		if err != nil {
			if m != nil {
				t.Errorf("%+v beside error %v", m, err)
			}
			return
		}
		got, err := m.AppendBinary(nil)
		if err != nil {
			t.Fatalf("parsed %x as %+v: %v", b, m, err)
		}
		if m.Head().Key != 0 {
			copy(got[len(got)-TagLen:], b[len(b)-TagLen:])
		}
		if !bytes.Equal(got, b) {
			t.Errorf("parsed %x as %+v, appended %x", b, m, got)
		}
	})
}

// FuzzParseTable: no panic, and what is accepted is right, small, and encodes to the same bytes.
func FuzzParseTable(f *testing.F) {
	for _, tt := range tables() {
		f.Add(unhex(f, tt.hex))
	}
	f.Add(encode(f, farm(3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		table, err := ParseTable(b)
		if !bytes.Equal(b, original) {
			t.Fatal("parsing changed the encoding")
		}
		if err != nil {
			if table != nil {
				t.Errorf("%+v beside error %v", table, err)
			}
			return
		}
		if len(b) > MaxTable {
			t.Errorf("a table of %d bytes", len(b))
		}
		got, err := table.AppendBinary(nil)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("parsed %x as %+v, appended %x, error %v", b, table, got, err)
		}
		if table.Digest() != DigestOf(b) {
			t.Errorf("digest %x of %x", table.Digest(), b)
		}
	})
}

// FuzzAssembler feeds an assembler parts that the script takes from a table and spoils: each step is the index, a defect, and a byte for it. It never
// holds more than a table takes, gives out none but the one that is wanted, and in the end the right parts bring that one.
func FuzzAssembler(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 5, 0, 0, 6, 0, 0})
	f.Add([]byte{6, 5, 1, 0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 255, 4, 6, 0, 5, 5, 1, 6, 0, 0})
	f.Add([]byte{130, 3, 131, 0, 0, 0, 1, 7, 9})
	table := farm(3)
	encoding, err := table.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	parts := split(f, encoding)
	want := table.Digest()
	f.Fuzz(func(t *testing.T, script []byte) {
		a := NewAssembler(want)
		add := func(p *Part) (*Table, error) {
			got, err := a.Add(p)
			if have, all := a.Progress(); have > all || all > MaxParts || cap(a.b) > MaxParts*MaxPart {
				t.Fatalf("%d of %d parts in %d bytes", have, all, cap(a.b))
			}
			if got != nil && (err != nil || got.Digest() != want) {
				t.Fatalf("table %x, error %v", got.Digest(), err)
			}
			if err != nil && !errors.Is(err, ErrDuplicate) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrDigest) {
				t.Fatalf("error %v", err)
			}
			return got, err
		}
		done := false
		for ; len(script) >= 3; script = script[3:] {
			p := parts[int(script[0])%len(parts)]
			p.Data = bytes.Clone(p.Data)
			v := script[2]
			switch script[1] % 8 {
			case 1:
				p.Data[int(v)%len(p.Data)] ^= 0x55
			case 2:
				p.Data = p.Data[:int(v)%len(p.Data)]
			case 3:
				p.Index, p.Count = uint16(script[0]), uint16(v)
			case 4:
				p.Index = uint16(v) << 8
			case 5:
				p.Data = append(p.Data, v)
			case 6:
				p.Count = uint16(v)
			case 7:
				p.Digest[v%16]++
			}
			got, _ := add(&p)
			done = done || got != nil
		}
		if _, all := a.Progress(); all != 0 && all != len(parts) {
			a = NewAssembler(want) // somebody lied about the number
		}
		for range 2 { // the first round may end in ErrDigest
			for i := range parts {
				got, _ := add(&parts[i])
				done = done || got != nil
			}
		}
		if !done {
			t.Error("the right parts did not bring the table")
		}
	})
}
