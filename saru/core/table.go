package core

import (
	"errors"
	"slices"
	"time"

	"saru/proto/coord"
)

// table is a table with what is often asked of it.
type table struct {
	*coord.Table
	ref     coord.Ref
	fn      coord.Digest
	members []member
	byNode  map[member]int
	held    time.Time // S of the quorum, as it was when something had changed last
}

func newTable(t *coord.Table) *table {
	out := &table{Table: t, ref: t.Ref(), fn: t.Function.Digest(), byNode: make(map[member]int, len(t.Members))}
	for i, m := range t.Members {
		who := member{m.Node, m.Incarnation}
		out.members = append(out.members, who)
		out.byNode[who] = i
	}
	return out
}

// index returns the place of a member, or -1.
func (t *table) index(m member) int {
	if i, ok := t.byNode[m]; ok {
		return i
	}
	return -1
}

// founds reports whether the table founds a farm.
func (t *table) founds() bool { return t.Parent == coord.Digest{} }

// owner returns who owns a bucket; the zero member: nobody.
func (t *table) owner(b int) member {
	if o := t.Owner[b]; o != coord.NoMember {
		return t.members[o]
	}
	return member{}
}

// gone reports whether the table takes a member of its parent out as dead.
func (t *table) gone(m member) bool {
	for _, d := range t.Dead {
		if d.Node == m.node && d.Incarnation == m.incarnation {
			return true
		}
	}
	return false
}

func (t *table) master() member {
	for _, m := range t.members {
		if m.node == t.Master {
			return m
		}
	}
	return member{}
}

// storeSize is how many tables are remembered besides: a proposal or two, the one that counts, and its parent for who is behind.
const storeSize = 8

// store has tables by digest, and parts of some that are not complete.
type store struct {
	tables   map[coord.Digest]*table
	order    []coord.Digest
	partial  map[coord.Digest]*coord.Assembler
	partials []coord.Digest
}

func newStore() *store {
	return &store{tables: map[coord.Digest]*table{}, partial: map[coord.Digest]*coord.Assembler{}}
}

func (s *store) get(d coord.Digest) *table { return s.tables[d] }

func (s *store) put(t *table) {
	if s.tables[t.ref.Digest] != nil {
		return
	}
	s.tables[t.ref.Digest] = t
	if s.order = append(s.order, t.ref.Digest); len(s.order) > storeSize {
		delete(s.tables, s.order[0])
		s.order = s.order[1:]
	}
}

// part takes a part in and returns the table when it is complete.
func (s *store) part(p *coord.Part) *table {
	if t := s.tables[p.Digest]; t != nil {
		return nil
	}
	a := s.partial[p.Digest]
	if a == nil {
		a = coord.NewAssembler(p.Digest)
		s.partial[p.Digest] = a
		if s.partials = append(s.partials, p.Digest); len(s.partials) > storeSize {
			delete(s.partial, s.partials[0])
			s.partials = s.partials[1:]
		}
	}
	got, err := a.Add(p)
	if errors.Is(err, coord.ErrMalformed) {
		// Somebody's first part may have been wrong: all begin anew.
		s.forget(p.Digest)
		return nil
	}
	if err != nil || got == nil {
		return nil
	}
	s.forget(p.Digest)
	t := newTable(got)
	s.put(t)
	return t
}

// forget drops the parts of a table.
func (s *store) forget(d coord.Digest) {
	delete(s.partial, d)
	s.partials = slices.DeleteFunc(s.partials, func(o coord.Digest) bool { return o == d })
}

// fetching limits requests for tables that are missing, and their answers.
type fetching struct {
	asked    time.Time
	answered map[coord.Digest]time.Time
}

// lookup returns a table that is known, or nil. Those that matter here are known however many others were heard of since.
func (c *Core) lookup(d coord.Digest) *table {
	matters := []*table{c.counts, c.pending}
	if p := c.proposal; p != nil {
		matters = append(matters, p.want, p.value)
	}
	for _, t := range matters {
		if t != nil && t.ref.Digest == d {
			return t
		}
	}
	return c.store.get(d)
}

func (c *Core) hearPart(p *coord.Part) {
	if t := c.store.part(p); t != nil {
		c.dirty = c.dirty || c.counts == nil
	}
}

// fetch asks a director for a table, at most every half keepalive.
func (c *Core) fetch(d coord.Digest, of member) {
	if c.now.Sub(c.fetching.asked) < c.cfg.Keepalive/2 {
		return
	}
	c.fetching.asked = c.now
	c.send(&coord.Fetch{Header: c.header(), Digest: d, Node: of.node})
}

func (c *Core) hearFetch(f *coord.Fetch) {
	if f.Node != c.self.node {
		return
	}
	t := c.lookup(f.Digest)
	if t == nil || c.now.Sub(c.fetching.answered[f.Digest]) < c.cfg.Keepalive/4 {
		return
	}
	c.sendParts(t)
}

func (c *Core) sendParts(t *table) {
	if c.fetching.answered == nil || len(c.fetching.answered) > 4*storeSize {
		c.fetching.answered = map[coord.Digest]time.Time{}
	}
	c.fetching.answered[t.ref.Digest] = c.now
	encoding, err := t.AppendBinary(nil)
	if err != nil {
		c.event("internal", "encode a table: "+err.Error())
		return
	}
	parts, err := coord.Parts(encoding)
	if err != nil {
		c.event("internal", "encode a table: "+err.Error())
		return
	}
	for i := range parts {
		p := parts[i]
		p.Header = c.header()
		c.send(&p)
	}
}
