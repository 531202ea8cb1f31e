package coord

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func encode(t testing.TB, table *Table) []byte {
	t.Helper()
	b, err := table.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func split(t testing.TB, encoding []byte) []Part {
	t.Helper()
	parts, err := Parts(encoding)
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// Tables of all sizes come together from parts in any order, each of which comes twice and crosses the wire.
func TestParts(t *testing.T) {
	small := tables()[0].t
	for _, tt := range []struct {
		name  string
		table *Table
		parts int
	}{
		{"one part", &small, 1},
		{"4096 buckets, 3 members", farm(3), 7},
		{"4096 buckets, 64 members", farm(64), 9},
		{"largest", largest(), MaxParts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			encoding := encode(t, tt.table)
			parts := split(t, encoding)
			if len(parts) != tt.parts {
				t.Errorf("%d parts, want %d", len(parts), tt.parts)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for range 5 {
				rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
				a := NewAssembler(tt.table.Digest())
				for i, p := range parts {
					p.Header = Header{Sender: 1, Incarnation: 2, Sequence: uint64(i + 1)}
					b, err := p.AppendBinary(nil)
					if err != nil {
						t.Fatal(err)
					}
					m, err := Parse(b)
					if err != nil {
						t.Fatal(err)
					}
					if !a.Missing(int(p.Index)) {
						t.Errorf("part %d does not miss", p.Index)
					}
					got, err := a.Add(m.(*Part))
					if err != nil || (got != nil) != (i == len(parts)-1) {
						t.Fatalf("part %d of %d: table %v, error %v", i, len(parts), got != nil, err)
					}
					if got != nil && !bytes.Equal(encode(t, got), encoding) {
						t.Errorf("another table came together: %+v", got)
					}
					if have, all := a.Progress(); have != i+1 || all != len(parts) || a.Missing(int(p.Index)) {
						t.Errorf("after part %d of %d: %d of %d, missing %v", i, len(parts), have, all, a.Missing(int(p.Index)))
					}
					if got, err := a.Add(m.(*Part)); got != nil || !errors.Is(err, ErrDuplicate) {
						t.Errorf("part %d of %d again: table %v, error %v", i, len(parts), got != nil, err)
					}
				}
				if a.Missing(-1) || a.Missing(len(parts)) || a.b != nil {
					t.Errorf("%d bytes held after the end", len(a.b))
				}
			}
		})
	}
	for _, n := range []int{0, tableLen - 1, MaxTable + 1} {
		if parts, err := Parts(make([]byte, n)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: %d parts, error %v", n, len(parts), err)
		}
	}
}

func TestAssemblerHostile(t *testing.T) {
	encoding := encode(t, farm(3))
	parts := split(t, encoding)
	last := len(parts) - 1
	change := func(i int, f func(p *Part)) *Part {
		p := parts[i]
		p.Data = bytes.Clone(p.Data)
		f(&p)
		return &p
	}
	for _, tt := range []struct {
		name string
		p    *Part
	}{
		{"of another table", change(1, func(p *Part) { p.Digest = digest(1) })},
		{"of no table", change(1, func(p *Part) { p.Digest = Digest{} })},
		{"of a part more", change(1, func(p *Part) { p.Count++ })},
		{"of a part fewer", change(1, func(p *Part) { p.Count-- })},
		{"behind the last", change(last, func(p *Part) { p.Index++ })},
		{"behind all", change(last, func(p *Part) { p.Index, p.Count = 65534, 65535 })},
		{"short", change(1, func(p *Part) { p.Data = p.Data[:MaxPart-1] })},
		{"long", change(1, func(p *Part) { p.Data = append(p.Data, 0) })},
		{"empty", change(last, func(p *Part) { p.Data = nil })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := NewAssembler(DigestOf(encoding))
			if _, err := a.Add(&parts[0]); err != nil {
				t.Fatal(err)
			}
			if table, err := a.Add(tt.p); table != nil || !errors.Is(err, ErrMalformed) {
				t.Errorf("table %v, error %v", table != nil, err)
			}
			// Nothing has changed.
			for i := range parts[1:] {
				table, err := a.Add(&parts[i+1])
				if err != nil || (table != nil) != (i+1 == last) {
					t.Fatalf("part %d: table %v, error %v", i+1, table != nil, err)
				}
			}
		})
	}

	// One part that is wrong costs them all; then they can come again.
	for _, tt := range []struct {
		name string
		p    *Part
	}{
		{"another byte", change(1, func(p *Part) { p.Data[7] ^= 1 })},
		{"last part too short", change(last, func(p *Part) { p.Data = p.Data[1:] })},
		{"last part too long", change(last, func(p *Part) { p.Data = append(p.Data, 0) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := NewAssembler(DigestOf(encoding))
			if _, err := a.Add(tt.p); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Add(&parts[tt.p.Index]); !errors.Is(err, ErrDuplicate) {
				t.Errorf("right part after the wrong one: error %v", err)
			}
			var err error
			for i := range parts {
				if i != int(tt.p.Index) {
					_, err = a.Add(&parts[i])
				}
			}
			if !errors.Is(err, ErrDigest) {
				t.Fatalf("error %v", err)
			}
			if have, all := a.Progress(); have != 0 || all != 0 || a.b != nil || a.Digest() != DigestOf(encoding) {
				t.Errorf("it has %d of %d parts of %x still", have, all, a.Digest())
			}
			var table *Table
			for i := range parts {
				table, err = a.Add(&parts[i])
			}
			if table == nil || err != nil {
				t.Errorf("from the right parts: table %v, error %v", table != nil, err)
			}
		})
	}

	// A digest proves that parts belong together, not that they are a table.
	junk := bytes.Repeat([]byte{1}, tableLen)
	a := NewAssembler(DigestOf(junk))
	if table, err := a.Add(&split(t, junk)[0]); table != nil || !errors.Is(err, ErrMagic) {
		t.Errorf("junk: table %v, error %v", table != nil, err)
	}
}
