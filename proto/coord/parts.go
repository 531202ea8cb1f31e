package coord

import (
	"errors"
	"fmt"
)

// MaxParts is how many parts the longest table takes.
const MaxParts = (MaxTable + MaxPart - 1) / MaxPart

// Errors of Assembler.Add, besides ErrMalformed and those of ParseTable.
var (
	// ErrDuplicate is no sign of anything: a part comes by each link, and from everybody who was asked.
	ErrDuplicate = errors.New("part is there already")
	// ErrDigest says that some part was not of the table.
	ErrDigest = errors.New("parts do not have the digest that they name")
)

// Parts splits the encoding of a table. The parts alias the encoding; their headers are empty.
func Parts(encoding []byte) ([]Part, error) {
	if len(encoding) < tableLen || len(encoding) > MaxTable {
		return nil, fmt.Errorf("parts of a table of %d bytes: %w", len(encoding), ErrMalformed)
	}
	parts := make([]Part, (len(encoding)+MaxPart-1)/MaxPart)
	digest := DigestOf(encoding)
	for i := range parts {
		first, last := i*MaxPart, min((i+1)*MaxPart, len(encoding))
		parts[i] = Part{Digest: digest, Index: uint16(i), Count: uint16(len(parts)), Data: encoding[first:last:last]}
	}
	return parts, nil
}

// Assembler collects the parts of one table, in any order. It holds no more than MaxParts of them, and copies what it holds.
type Assembler struct {
	digest Digest
	count  int // of parts; 0: not known yet
	have   int
	there  [MaxParts]bool
	b      []byte
	length int // of the encoding; 0 until the last part is there
}

// NewAssembler returns an assembler for the table of this digest.
func NewAssembler(d Digest) *Assembler { return &Assembler{digest: d} }

// Digest returns the digest of the table that is wanted.
func (a *Assembler) Digest() Digest { return a.digest }

// Progress returns how many parts are there, and how many there are in all; 0, 0 before the first one.
func (a *Assembler) Progress() (have, all int) { return a.have, a.count }

// Missing reports whether a part is not there yet. Before the first part, all are missing.
func (a *Assembler) Missing(index int) bool {
	return index >= 0 && index < MaxParts && (a.count == 0 || index < a.count) && !a.there[index]
}

// Add adds a part. It returns the table with the part that completes it, and nil before. Its header is not looked at. What it returns besides:
//
//   - ErrDuplicate: the part is there; the one that came first stays. So it is with every part after the last one.
//   - ErrMalformed: the part is of another table, or of another number of parts than the first one. Nothing changes.
//   - ErrDigest: what came together is not the table that is wanted. The assembler is empty again.
//   - other errors of [ParseTable]: the digest is right, but it is no table. The assembler is empty again, but nothing better will come.
//
// Parts of somebody who lies about their number can keep the right ones out: who gets no further takes a new assembler.
func (a *Assembler) Add(p *Part) (*Table, error) {
	if err := p.checkPart(); err != nil {
		return nil, err
	}
	if p.Digest != a.digest || a.count != 0 && int(p.Count) != a.count {
		return nil, fmt.Errorf("part %d of %d of table %x, to %d of table %x: %w", p.Index, p.Count, p.Digest, a.count, a.digest, ErrMalformed)
	}
	i := int(p.Index)
	if a.there[i] {
		return nil, ErrDuplicate
	}
	if a.count == 0 {
		a.count = int(p.Count)
		a.b = make([]byte, a.count*MaxPart)
	}
	copy(a.b[i*MaxPart:], p.Data)
	a.there[i] = true
	a.have++
	if i == a.count-1 {
		a.length = i*MaxPart + len(p.Data)
	}
	if a.have < a.count {
		return nil, nil
	}
	b := a.b[:a.length]
	if DigestOf(b) != a.digest {
		*a = Assembler{digest: a.digest}
		return nil, ErrDigest
	}
	t, err := ParseTable(b)
	if err != nil {
		*a = Assembler{digest: a.digest}
		return nil, err
	}
	a.b = nil // it is not needed any more
	return t, nil
}
