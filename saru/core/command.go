package core

import (
	"fmt"
	"math/rand/v2"

	"saru/lib/peer"
	"saru/proto/coord"
)

// command is one that this director passes on for an operator, until the target says that it has obeyed.
type command struct {
	coord.Command
	done bool
}

// Order passes a command on to another director. Obeyed says when that has obeyed.
func (c *Core) Order(node string, verb coord.Verb) error {
	id := uint64(peer.IDOf(node))
	if id == c.self.node {
		c.Drain(c.now, verb == coord.VerbDrain)
		c.command = nil
		return nil
	}
	v := c.views[id]
	if v == nil || c.alive(v.who) == nil {
		return fmt.Errorf("%s is not heard", node)
	}
	c.command = &command{Command: coord.Command{Target: id, Nonce: rand.Uint64() | 1, Verb: verb}}
	c.repeatCommand()
	return nil
}

// Obeyed reports whether the last command was obeyed.
func (c *Core) Obeyed() bool { return c.command == nil || c.command.done }

func (c *Core) repeatCommand() {
	o := c.command
	if o == nil || o.done {
		return
	}
	if v := c.views[o.Target]; v != nil && v.beat.Answer == o.Nonce {
		o.done = true
		return
	}
	m := o.Command
	m.Header = c.header()
	c.send(&m)
}

func (c *Core) hearCommand(m *coord.Command) {
	if m.Target != c.self.node || m.Nonce == c.answer {
		return
	}
	c.answer, c.dirty = m.Nonce, true
	on := m.Verb == coord.VerbDrain
	if c.draining != on {
		c.draining, c.review = on, true
		c.event("drain", fmt.Sprintf("draining: %v, as %s says", on, c.name(member{m.Sender, m.Incarnation})))
	}
}
