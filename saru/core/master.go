package core

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"saru/proto/coord"
	"saru/saru/alloc"
)

// eligibleFor is for how long a member may be worse off than others before it is drained (DESIGN 4.1: 5 s).
const eligibleFor = 5 * time.Second

// need is why the table that counts should be replaced.
type need struct {
	urgent  bool // buckets are without service
	why     string
	dead    []member
	joining []*view
	leaving []member
	renew   bool // the same again: leases were lost, or somebody counts a living member dead
	weights map[member]uint32
	fn      *coord.Function
}

// propose lets the table be replaced that should be, if it is this director's turn.
func (c *Core) propose() {
	if c.proposal != nil {
		c.pursue()
		return
	}
	if !c.votes() {
		c.alarm("ineligible", "")
		return
	}
	if c.muted != 0 || c.now.Before(c.quietUntil) {
		return
	}
	if c.review || c.now.Sub(c.reviewed) >= c.cfg.Keepalive/2 {
		c.review, c.reviewed = false, c.now
		c.need = c.needs()
	}
	n := c.need
	if n == nil {
		c.neededSince = time.Time{}
		return
	}
	if c.neededSince.IsZero() {
		c.neededSince = c.now
	}
	if c.now.Sub(c.neededSince) < time.Duration(c.turn())*patience*c.cfg.Keepalive {
		return
	}
	if !n.urgent && !c.settled() {
		return
	}
	if n = c.needs(); n == nil {
		return
	}
	t, err := c.build(n)
	if err != nil {
		c.alarm("internal", "the next table: "+err.Error())
		return
	}
	c.event("propose", fmt.Sprintf("version %d: %s", t.Version, n.why))
	c.begin(newTable(t))
	c.pursue()
}

// turn is how many others have to fail before this director proposes: the master comes first, then the members in order.
func (c *Core) turn() int {
	turn := 0
	for _, m := range c.counts.members {
		if m == c.self || c.dead[m] && c.alive(m) == nil || c.alive(m) == nil && c.now.Sub(later(c.heard[m], c.countsAt)) >= c.cfg.Deadtime {
			continue
		}
		if v := c.alive(m); v != nil && v.beat.State&coord.StateLeaves != 0 && m.node != c.counts.Master {
			continue
		}
		if m.node == c.counts.Master || m.node < c.self.node {
			turn++
		}
	}
	if c.counts.Master == c.self.node {
		return 0
	}
	return min(turn, 3) // standBack keeps those apart that come then
}

// settled reports whether the table that counts has been put into effect, as far as it can be.
func (c *Core) settled() bool {
	if c.now.Sub(c.countsAt) >= 2*c.cfg.wait() {
		return true
	}
	if len(c.awaiting) > 0 || !c.opens.IsZero() {
		return false
	}
	for _, m := range c.counts.members {
		if m == c.self {
			continue
		}
		if v := c.alive(m); v != nil && (v.beat.Counts != c.counts.ref || v.beat.Released != c.counts.ref.Digest) {
			return false
		}
	}
	return c.release.done
}

// needs says why the table should be replaced; nil: it should not.
func (c *Core) needs() *need {
	n := &need{}
	reason := func(urgent bool, format string, args ...any) {
		n.urgent = n.urgent || urgent
		if n.why != "" {
			n.why += ", "
		}
		n.why += fmt.Sprintf(format, args...)
	}
	counted := c.countedDead()
	for _, m := range c.counts.members {
		v := c.alive(m)
		switch {
		case m == c.self:
			if c.leaving {
				n.leaving = append(n.leaving, m)
				reason(false, "%s leaves", c.name(m))
			}
			if c.lapsed {
				n.renew = true
				reason(true, "%s has lost its lease", c.name(m))
			}
		case v == nil && c.agreedDead(m):
			n.dead = append(n.dead, m)
			reason(true, "%s is dead", c.name(m))
		case v == nil:
		case v.beat.State&coord.StateLeaves != 0:
			n.leaving = append(n.leaving, m)
			reason(false, "%s leaves", c.name(m))
		case v.beat.State&coord.StateLapsed != 0 && v.beat.Counts == c.counts.ref:
			n.renew = true
			reason(true, "%s has lost its lease", c.name(m))
		case (c.dead[m] || counted[m]) && c.speaks(v):
			// It lives, and yet its lease is not supported by all any more: until the next table. A dead one may be counted dead by some only.
			if c.now.Sub(c.countsAt) > 2*c.cfg.wait() {
				n.renew = true
				reason(false, "%s lives and was counted dead", c.name(m))
			}
		}
	}
	if c.pending != nil && c.now.Sub(c.pendingAt) > patience*c.cfg.Keepalive {
		n.renew = true
		reason(true, "version %d was proposed, and it is not known whether it counts", c.pending.Version)
	}
	for v := range c.live {
		if v.beat.State&coord.StateJoins == 0 || c.counts.index(v.who) >= 0 || c.deaf(v) || !c.alike(v) {
			continue
		}
		if r := v.beat.Counts; r != (coord.Ref{}) && r.Line != c.counts.ref.Line {
			continue // it still follows another line
		}
		if len(c.counts.members)+len(n.joining) < coord.MaxMembers {
			n.joining = append(n.joining, v)
		}
	}
	if len(n.joining) > 0 && (n.why != "" || c.joinersWaited(n.joining)) {
		for _, v := range n.joining {
			reason(false, "%s joins", v.beat.Name)
		}
	} else {
		n.joining = nil
	}
	if len(n.leaving) == len(c.counts.members) && len(n.joining) == 0 {
		return nil // nobody is left to hand anything to
	}
	c.weigh(n, reason)
	c.chooseFunction(n, reason)
	if n.why == "" {
		return nil
	}
	return n
}

// joinersWaited lets several that start together join together.
func (c *Core) joinersWaited(joining []*view) bool {
	for _, v := range joining {
		if c.now.Sub(v.since) < 3*c.cfg.Keepalive {
			return false
		}
	}
	return true
}

// agreedDead reports whether enough members count a member dead for the next table to name it so (rule 2).
func (c *Core) agreedDead(m member) bool {
	if !c.dead[m] || c.meets() {
		return false // while another line is met: one of the two yields first
	}
	n, others := 1, 1
	for _, o := range c.counts.members {
		if o == c.self || o == m {
			continue
		}
		v := c.alive(o)
		if v == nil {
			if !c.dead[o] {
				others++ // heard by somebody: it has not agreed
			}
			continue
		}
		others++
		if v.beat.Counts == c.counts.ref && v.deadHere[m] {
			n++
		}
	}
	if c.counts.Policy == coord.Available {
		// Who has ping nodes and reaches none is cut off itself.
		return n == others && (c.cfg.PingNodes == 0 || c.local.Pings > 0 || others > 1)
	}
	return n >= c.majority(c.counts)
}

// countedDead returns whom any member counts dead.
func (c *Core) countedDead() map[member]bool {
	var out map[member]bool
	for v := range c.live {
		if len(v.deadHere) == 0 || v.beat.Counts != c.counts.ref || c.counts.index(v.who) < 0 {
			continue
		}
		for m := range v.deadHere {
			if out == nil {
				out = map[member]bool{}
			}
			out[m] = out[m] || m != v.who
		}
	}
	return out
}

// said is what a member says of itself, or this director of itself.
func (c *Core) said(m member) (state coord.State, weight, pings uint16, fn coord.Digest, ok bool) {
	if m == c.self {
		return c.state(), c.cfg.Weight, uint16(c.local.Pings), c.fn, true
	}
	v := c.alive(m)
	if v == nil {
		return 0, 0, 0, coord.Digest{}, false
	}
	return v.beat.State, v.beat.Weight, v.beat.Pings, v.beat.Function, true
}

// weigh finds out how much each member is to own: nothing if it drains, does not fit, or was not eligible for 5 s while another is.
func (c *Core) weigh(n *need, reason func(bool, string, ...any)) {
	n.weights = map[member]uint32{}
	var all []member
	for _, m := range c.counts.members {
		if !slices.Contains(n.dead, m) && !slices.Contains(n.leaving, m) {
			all = append(all, m)
		}
	}
	for _, v := range n.joining {
		all = append(all, v.who)
	}
	best := uint16(0)
	for _, m := range all {
		if _, _, pings, _, ok := c.said(m); ok {
			best = max(best, pings)
		}
	}
	anybody := false
	for _, m := range all {
		state, weight, pings, _, ok := c.said(m)
		if !ok {
			// Not heard for a moment: as in the table.
			if i := c.counts.index(m); i >= 0 {
				n.weights[m] = uint32(c.counts.Members[i].Weight)
			}
			continue
		}
		eligible := state&coord.StateSynced != 0 && state&coord.StateUsable != 0 && pings == best
		i := c.counts.index(m)
		switch {
		case state&coord.StateDrains != 0:
			n.weights[m] = 0
			continue
		case state&coord.StateFits == 0 && (m == c.self || c.alive(m).beat.Counts == c.counts.ref):
			n.weights[m] = 0 // it holds nothing, or would not
			continue
		case i >= 0 && state&coord.StateFits == 0: // it has not said yet whether it fits
			n.weights[m] = uint32(c.counts.Members[i].Weight)
			continue
		case eligible:
			delete(c.ineligible, m)
			anybody = true
		case c.ineligible[m].IsZero():
			c.ineligible[m] = c.now
		}
		n.weights[m] = uint32(weight)
	}
	if !anybody {
		c.alarm("ineligible", "no director is eligible: not synced, no usable service, or fewer ping nodes than others")
		for i, m := range c.counts.members { // nothing is better than what is
			if w, there := n.weights[m]; there && w != 0 {
				n.weights[m] = uint32(c.counts.Members[i].Weight)
			}
		}
	} else {
		c.alarm("ineligible", "")
		for m, since := range c.ineligible {
			if _, there := n.weights[m]; there && (c.now.Sub(since) >= eligibleFor || c.counts.index(m) < 0) {
				n.weights[m] = 0
			}
		}
	}
	for i, m := range c.counts.members {
		if w, there := n.weights[m]; there && w != uint32(c.counts.Members[i].Weight) {
			reason(false, "%s has weight %d instead of %d", c.name(m), w, c.counts.Members[i].Weight)
		}
	}
}

// chooseFunction lets the share function be the one that most members have (docs/SAFETY.md, section 8).
func (c *Core) chooseFunction(n *need, reason func(bool, string, ...any)) {
	if !c.settled() {
		return // somebody may not have closed yet what the table that counts closes
	}
	votes := map[coord.Digest]int{}
	for m := range n.weights {
		if _, _, _, fn, ok := c.said(m); ok {
			votes[fn]++
		}
	}
	if c.fn == c.counts.fn || votes[c.fn] <= len(n.weights)/2 || c.fn == (coord.Digest{}) {
		return // who has the function that most have proposes it
	}
	mine := c.local.Function
	if mine.Buckets != c.counts.Function.Buckets || mine.Seed != c.counts.Function.Seed {
		return // needs a new farm: said by --check and by an alarm of the daemon
	}
	// What is changed is taken out first; what is new or gone needs one table only.
	out := coord.Function{Buckets: mine.Buckets, Seed: mine.Seed}
	changed := false
	for _, v := range mine.Virtuals {
		i := slices.IndexFunc(c.counts.Function.Virtuals, func(o coord.Virtual) bool { return o.Address == v.Address })
		if i >= 0 && c.counts.Function.Virtuals[i] != v {
			changed = true
			continue
		}
		out.Virtuals = append(out.Virtuals, v)
	}
	if out.Digest() == c.counts.fn {
		return
	}
	n.fn = &out
	if changed {
		reason(false, "addresses whose share function changes are closed")
	} else {
		reason(false, "the share function changes")
	}
}

// build makes the table that is needed.
func (c *Core) build(n *need) (*coord.Table, error) {
	old := c.counts
	t := &coord.Table{Line: old.ref.Line, Version: old.Version + 1, Parent: old.ref.Digest, Term: old.Term, Master: c.self.node, Function: old.Function}
	if n.fn != nil {
		t.Function = *n.fn
	}
	for i, m := range old.members {
		switch {
		case slices.Contains(n.dead, m):
			t.Dead = append(t.Dead, coord.Member{Node: m.node, Incarnation: m.incarnation})
		case slices.Contains(n.leaving, m):
		default:
			e := old.Members[i]
			e.Weight = uint16(n.weights[m])
			t.Members = append(t.Members, e)
		}
	}
	for _, v := range n.joining {
		t.Members = slices.DeleteFunc(t.Members, func(m coord.Member) bool { return m.Node == v.who.node }) // an earlier incarnation
		t.Members = append(t.Members, coord.Member{Node: v.who.node, Incarnation: v.who.incarnation, Weight: uint16(n.weights[v.who]), Name: v.beat.Name})
	}
	if len(t.Members) == 0 {
		return nil, fmt.Errorf("nobody is left")
	}
	slices.SortFunc(t.Members, byNode)
	slices.SortFunc(t.Dead, byNode)
	if t.MemberIndex(c.self.node) < 0 {
		t.Master = t.Members[0].Node // this director leaves
	}
	if t.Master != old.Master {
		t.Term++
	}
	if len(t.Dead) > 0 && old.Policy == coord.Available {
		t.Line = coord.Line{Term: max(c.maxTerm, t.Term, old.Line.Term) + 1, Node: c.self.incarnation}
		t.Term = t.Line.Term
	}
	t.Policy = c.policyFor(len(t.Members))
	c.allocate(t)
	return t, t.Check()
}

func byNode(a, b coord.Member) int { return cmp.Compare(a.Node, b.Node) }

// weightOf is what a director that starts is to own: nothing if it drains, or could not serve.
func weightOf(h coord.Heartbeat) uint16 {
	if h.State&coord.StateDrains != 0 || h.State&coord.StateSynced == 0 || h.State&coord.StateUsable == 0 {
		return 0
	}
	return h.Weight
}

// allocateNew gives out buckets that nobody has.
func allocateNew(buckets int, weights []uint32) (owner, next []uint8) {
	none := slices.Repeat([]uint8{alloc.None}, buckets)
	return alloc.Allocate(none, none, weights)
}

// allocate gives the buckets out, with as little movement as possible.
func (c *Core) allocate(t *coord.Table) {
	old := c.counts
	move := make([]uint8, len(old.members)) // old index -> new index
	for i, m := range old.members {
		move[i] = alloc.None
		if j := t.MemberIndex(m.node); j >= 0 && t.Members[j].Incarnation == m.incarnation {
			move[i] = uint8(j)
		}
	}
	owner, next := make([]uint8, len(old.Owner)), make([]uint8, len(old.Owner))
	for b := range owner {
		owner[b], next[b] = alloc.None, alloc.None
		if o := old.Owner[b]; o != coord.NoMember {
			owner[b] = move[o]
		}
		if o := old.Next[b]; o != coord.NoMember {
			next[b] = move[o]
		}
	}
	weights := make([]uint32, len(t.Members))
	for i, m := range t.Members {
		weights[i] = uint32(m.Weight)
	}
	t.Owner, t.Next = alloc.Allocate(owner, next, weights)
}
