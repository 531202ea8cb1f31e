package coord

import (
	"encoding/binary"
	"fmt"
)

// partLen is the length of a part's body before its data.
const partLen = 22

// ok reports whether the reference is whole, or none at all.
func (r Ref) ok() bool { return r == Ref{} || r.whole() }

// whole reports whether the reference is one.
func (r Ref) whole() bool {
	return r.Line.Term != 0 && r.Line.Node != 0 && r.Version != 0 && r.Digest != Digest{}
}

// ok reports whether the ballot has a proposer, or is none at all.
func (l Ballot) ok() bool { return l.Node != 0 || l.Round == 0 }

// Kind returns KindPrepare.
func (m *Prepare) Kind() Kind { return KindPrepare }

func (m *Prepare) check() error {
	if err := m.Header.check(); err != nil {
		return err
	}
	if !m.Parent.whole() || m.Ballot.Node == 0 {
		return fmt.Errorf("ballot %+v for %+v: %w", m.Ballot, m.Parent, ErrMalformed)
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (m *Prepare) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, fmt.Errorf("append prepare: %w", err)
	}
	b = m.appendHeader(b, KindPrepare, 0)
	return appendTag(appendBallot(appendRef(b, m.Parent), m.Ballot)), nil
}

// Kind returns KindAccept.
func (m *Accept) Kind() Kind { return KindAccept }

// Parent and table are the same where a farm is founded.
func (m *Accept) check() error {
	if err := m.Header.check(); err != nil {
		return err
	}
	if !m.Parent.whole() || !m.Table.whole() || m.Ballot.Node == 0 {
		return fmt.Errorf("ballot %+v for %+v after %+v: %w", m.Ballot, m.Table, m.Parent, ErrMalformed)
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (m *Accept) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, fmt.Errorf("append accept: %w", err)
	}
	b = m.appendHeader(b, KindAccept, 0)
	return appendTag(appendRef(appendBallot(appendRef(b, m.Parent), m.Ballot), m.Table)), nil
}

// Kind returns KindPart.
func (m *Part) Kind() Kind { return KindPart }

func (m *Part) check() error {
	if err := m.Header.check(); err != nil {
		return err
	}
	return m.checkPart()
}

// checkPart checks all but the header.
func (m *Part) checkPart() error {
	if m.Digest == (Digest{}) || m.Count > MaxParts || m.Index >= m.Count {
		return fmt.Errorf("part %d of %d of table %x: %w", m.Index, m.Count, m.Digest, ErrMalformed)
	}
	if n := len(m.Data); n == 0 || n > MaxPart || n < MaxPart && m.Index != m.Count-1 {
		return fmt.Errorf("part %d of %d with %d bytes: %w", m.Index, m.Count, n, ErrMalformed)
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (m *Part) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, fmt.Errorf("append part: %w", err)
	}
	b = m.appendHeader(b, KindPart, 0)
	b = append(b, m.Digest[:]...)
	b = binary.BigEndian.AppendUint16(b, m.Index)
	b = binary.BigEndian.AppendUint16(b, m.Count)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Data)))
	return appendTag(append(b, m.Data...)), nil
}

func parsePart(h Header, r *reader) *Part {
	m := &Part{Header: h, Digest: r.digest(), Index: r.uint16(), Count: r.uint16()}
	m.Data = append(m.Data, r.bytes(int(r.uint16()))...)
	return m
}

// Kind returns KindFetch.
func (m *Fetch) Kind() Kind { return KindFetch }

func (m *Fetch) check() error {
	if err := m.Header.check(); err != nil {
		return err
	}
	if m.Digest == (Digest{}) || m.Node == 0 {
		return fmt.Errorf("table %x of %#x: %w", m.Digest, m.Node, ErrMalformed)
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (m *Fetch) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, fmt.Errorf("append fetch: %w", err)
	}
	b = m.appendHeader(b, KindFetch, 0)
	b = append(b, m.Digest[:]...)
	return appendTag(binary.BigEndian.AppendUint64(b, m.Node)), nil
}

// Kind returns KindCommand.
func (m *Command) Kind() Kind { return KindCommand }

func (m *Command) check() error {
	if err := m.Header.check(); err != nil {
		return err
	}
	if m.Target == 0 || m.Nonce == 0 || m.Verb != VerbDrain && m.Verb != VerbUndrain {
		return fmt.Errorf("%s of %#x with nonce %#x: %w", m.Verb, m.Target, m.Nonce, ErrMalformed)
	}
	return nil
}

// AppendBinary appends the datagram, with a tag of zeros. On an error b is returned unchanged.
func (m *Command) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, fmt.Errorf("append command: %w", err)
	}
	b = m.appendHeader(b, KindCommand, 0)
	b = binary.BigEndian.AppendUint64(b, m.Target)
	b = binary.BigEndian.AppendUint64(b, m.Nonce)
	return appendTag(append(b, uint8(m.Verb))), nil
}
