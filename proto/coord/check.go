package coord

import "fmt"

// allFields are the bits that Fields may have.
const allFields = 1<<4 - 1

// Check says what is wrong with the table: its error wraps ErrMalformed. It looks at this table only, and not at whether it may follow its parent.
func (t *Table) Check() error {
	switch {
	case t.Policy != Quorum && t.Policy != Available:
		return fmt.Errorf("%s: %w", t.Policy, ErrMalformed)
	case t.Line.Term == 0 || t.Line.Node == 0 || t.Version == 0 || t.Term < t.Line.Term:
		return fmt.Errorf("line %+v, version %d, term %d: %w", t.Line, t.Version, t.Term, ErrMalformed)
	case len(t.Members) == 0 || len(t.Members) > MaxMembers || len(t.Dead) > MaxMembers:
		return fmt.Errorf("%d members and %d dead: %w", len(t.Members), len(t.Dead), ErrMalformed)
	}
	if err := checkMembers(t.Members); err != nil {
		return err
	}
	if err := checkMembers(t.Dead); err != nil {
		return fmt.Errorf("dead: %w", err)
	}
	for _, m := range t.Members {
		if !nameOK(m.Name) {
			return fmt.Errorf("member %#x with name %q: %w", m.Node, m.Name, ErrMalformed)
		}
	}
	for _, m := range t.Dead {
		if m.Name != "" {
			return fmt.Errorf("dead %#x with name %q: %w", m.Node, m.Name, ErrMalformed)
		}
		if i := t.MemberIndex(m.Node); i >= 0 && t.Members[i].Incarnation == m.Incarnation {
			return fmt.Errorf("member %#x is dead: %w", m.Node, ErrMalformed)
		}
	}
	if t.MemberIndex(t.Master) < 0 {
		return fmt.Errorf("master %#x is no member: %w", t.Master, ErrMalformed)
	}
	if err := t.Function.Check(); err != nil {
		return err
	}
	if err := t.checkOwners(t.Owner); err != nil {
		return fmt.Errorf("owners: %w", err)
	}
	if err := t.checkOwners(t.Next); err != nil {
		return fmt.Errorf("next owners: %w", err)
	}
	return nil
}

// checkMembers checks what members and dead have in common.
func checkMembers(members []Member) error {
	var last uint64 // below every node
	for i := range members {
		m := &members[i]
		if m.Node <= last || m.Incarnation == 0 {
			return fmt.Errorf("member %#x, incarnation %#x, after %#x: %w", m.Node, m.Incarnation, last, ErrMalformed)
		}
		last = m.Node
	}
	return nil
}

func (t *Table) checkOwners(owners []uint8) error {
	if len(owners) != int(t.Function.Buckets) {
		return fmt.Errorf("%d of %d buckets: %w", len(owners), t.Function.Buckets, ErrMalformed)
	}
	for b, i := range owners {
		if i != NoMember && int(i) >= len(t.Members) {
			return fmt.Errorf("member %d of %d has bucket %d: %w", i, len(t.Members), b, ErrMalformed)
		}
	}
	return nil
}

// Check says what is wrong with the share function: its error wraps ErrMalformed.
func (f *Function) Check() error {
	switch {
	case f.Buckets == 0 || f.Buckets > MaxBuckets:
		return fmt.Errorf("%d buckets: %w", f.Buckets, ErrMalformed)
	case f.Seed == 0: // of which a kernel would make one of its own: package flow
		return fmt.Errorf("seed 0: %w", ErrMalformed)
	case len(f.Virtuals) > MaxVirtuals:
		return fmt.Errorf("%d virtuals: %w", len(f.Virtuals), ErrMalformed)
	}
	for i, v := range f.Virtuals {
		switch {
		case !v.Address.IsValid() || v.Address.Is4In6() || v.Address.Zone() != "":
			return fmt.Errorf("virtual %s: %w", v.Address, ErrMalformed)
		case v.Fields == 0 || v.Fields > allFields:
			return fmt.Errorf("virtual %s with fields %#x: %w", v.Address, v.Fields, ErrMalformed)
		case v.Mask == 0 || int(v.Mask) > v.Address.BitLen():
			return fmt.Errorf("virtual %s with a mask of %d bits: %w", v.Address, v.Mask, ErrMalformed)
		case i > 0 && f.Virtuals[i-1].Address.Compare(v.Address) >= 0:
			return fmt.Errorf("virtual %s after %s: %w", v.Address, f.Virtuals[i-1].Address, ErrMalformed)
		}
	}
	return nil
}
