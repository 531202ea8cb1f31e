package core

import "saru/proto/coord"

// Member reports whether this director is a member of the table that counts here.
func (c *Core) Member() bool { return c.counts != nil && c.counts.index(c.self) >= 0 }

// HasMember reports whether a director is a member of the table that counts here, under this incarnation.
func (c *Core) HasMember(node uint64, incarnation uint64) bool {
	return c.counts != nil && c.counts.index(member{node, incarnation}) >= 0
}

// Line returns the line of the table that counts here, or the zero line.
func (c *Core) Line() coord.Line {
	if c.counts == nil {
		return coord.Line{}
	}
	return c.counts.Line
}

// Self returns how this director is called on the wire.
func (c *Core) Self() (node, incarnation uint64) { return c.self.node, c.self.incarnation }
