package table

import (
	"net/netip"
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// Table is a replica. It is not safe for concurrent use.
type Table struct {
	epoch   time.Time
	v4      *store[[4]byte]
	v6      *store[[16]byte]
	origins []origin
	index   map[peer.ID]uint16
	recent  uint16 // of origins: records of one come in a row
	extras  map[extraKey]extra
	changes uint32 // entries added and removed: what may make a Slot point elsewhere
}

type origin struct {
	id    peer.ID
	count int
}

// extraKey names an entry that has sequence deltas, persistence-engine data or a state beyond a byte. Few have the former and no kernel's
// connection has the latter, so they stand apart.
type extraKey struct {
	v6 bool
	i  uint32
}

type extra struct {
	state          uint16
	seq            bool
	in, out        ipvssync.Seq
	peName, peData string
}

// New returns an empty table; now starts its clock of seconds.
func New(now time.Time) *Table {
	return &Table{
		epoch: now, v4: newStore[[4]byte](0), v6: newStore[[16]byte](0),
		index: map[peer.ID]uint16{}, extras: map[extraKey]extra{}, changes: 1, // a Slot of 0 is none of this table
	}
}

// Entry is one connection as Get and Walk return it.
type Entry struct {
	Record    ipvssync.Record // Timeout is that of the record, not what remains
	Origin    peer.ID
	Stamp     Stamp
	Remaining time.Duration // until it expires, in whole seconds
}

// Age returns how long ago the entry was refreshed, in seconds.
func (e *Entry) Age() uint32 {
	return e.Record.Timeout - min(e.Record.Timeout, uint32(e.Remaining/time.Second))
}

// Outcome says what Put did.
type Outcome uint8

// Outcomes.
const (
	Inserted Outcome = iota // it was not there
	Replaced                // it was there, with an earlier stamp
	Moved                   // so it was, and with another real server
	Stale                   // what is there is the same or later: nothing changed
	Refused                 // no entry can be made of it: expired, without a stamp, of too many origins or too many of them
)

// Len returns the number of entries.
func (t *Table) Len() int { return t.v4.count + t.v6.count }

// Origin returns the number of entries that come from a director.
func (t *Table) Origin(id peer.ID) int {
	if i, ok := t.index[id]; ok {
		return t.origins[i].count
	}
	return 0
}

func (t *Table) seconds(now time.Time) uint32 { return uint32(max(now.Sub(t.epoch)/time.Second, 0)) }

// secondsUp rounds up: an entry never expires before its time, however often it has been taught with its age in seconds. The digest of a
// bucket relies on that.
func (t *Table) secondsUp(now time.Time) uint32 {
	return uint32(max((now.Sub(t.epoch)+time.Second-1)/time.Second, 0))
}

// originIndex interns an origin. Origins without entries make room when the numbers run out.
func (t *Table) originIndex(id peer.ID) (uint16, bool) {
	if int(t.recent) < len(t.origins) && t.origins[t.recent].id == id {
		return t.recent, true
	}
	if i, ok := t.index[id]; ok {
		t.recent = i
		return i, true
	}
	i := len(t.origins)
	if i == 1<<16 {
		if i = slices.IndexFunc(t.origins, func(o origin) bool { return o.count == 0 }); i < 0 {
			return 0, false
		}
		delete(t.index, t.origins[i].id)
		t.origins[i] = origin{id: id}
	} else {
		t.origins = append(t.origins, origin{id: id})
	}
	t.index[id] = uint16(i)
	return uint16(i), true
}

// expirySlack is by how many seconds replicas may differ in when an entry expires: times are whole seconds of each one's own, and an entry
// that was taught has been rounded up twice. Where its time is over already, the next connection of the same ports starts from grant 0.
const expirySlack = 3

// Put enters a record that the origin stamped, age seconds ago. It keeps nothing of the memory that r points to.
func (t *Table) Put(now time.Time, r *ipvssync.Record, from peer.ID, stamp Stamp, age uint32) Outcome {
	return t.put(t.Slot(r), now, r, from, stamp, age)
}

// PutAt is Put of a record whose place was looked up before.
func (t *Table) PutAt(s Slot, now time.Time, r *ipvssync.Record, from peer.ID, stamp Stamp, age uint32) Outcome {
	if s.changes != t.changes {
		s = t.Slot(r)
	}
	return t.put(s, now, r, from, stamp, age)
}

func (t *Table) put(s Slot, now time.Time, r *ipvssync.Record, from peer.ID, stamp Stamp, age uint32) Outcome {
	if s.v6 {
		return put(t, t.v6, s, now, keyOf6, r.Real.Addr().As16(), r, from, stamp, age)
	}
	return put(t, t.v4, s, now, keyOf4, r.Real.Addr().As4(), r, from, stamp, age)
}

func put[A address](t *Table, s *store[A], at Slot, now time.Time, keyOf func(*ipvssync.Record) key[A], real A, r *ipvssync.Record,
	from peer.ID, stamp Stamp, age uint32) Outcome {
	oi, ok := t.originIndex(from)
	if !ok || r.Timeout <= age || stamp.Clock == 0 || stamp.Clock > MaxClock {
		return Refused
	}
	expires := t.secondsUp(now) + min(r.Timeout-age, 1<<30)
	i, out := at.i, Replaced
	if i == none {
		k := keyOf(r)
		if i, out = s.insert(&k, at.hash, BucketOf(r)), Inserted; i == none {
			return Refused
		}
		t.origins[oi].count++
		t.changes++
	} else {
		e := s.at(i)
		if stamp.Compare(from, Stamp{mirror.Grant(e.grant), e.clock}, t.origins[e.origin].id) <= 0 &&
			(stamp.Clock <= e.clock || e.expires > t.seconds(now)+expirySlack) {
			return Stale
		}
		if e.real != real || e.realPort != r.Real.Port() {
			out = Moved
		}
		if e.origin != oi {
			t.origins[e.origin].count--
			t.origins[oi].count++
		}
	}
	e := s.at(i)
	if out == Inserted || e.expires != expires {
		if out != Inserted {
			s.unlink(i)
		}
		e.expires = expires
		s.link(i)
	}
	e.origin, e.real, e.realPort = oi, real, r.Real.Port()
	e.state, e.flags, e.fwmark, e.timeout = uint8(r.State), r.Flags, r.Fwmark, r.Timeout
	e.grant, e.clock = uint64(stamp.Grant), stamp.Clock
	if extras := r.HasSeq || len(r.PEName) > 0 || len(r.PEData) > 0 || r.State > 0xff; extras || e.extras {
		e.extras = extras
		t.putExtra(extraKey{len(real) == 16, i}, extras, r)
	}
	return out
}

func (t *Table) putExtra(k extraKey, extras bool, r *ipvssync.Record) {
	if !extras {
		delete(t.extras, k)
		return
	}
	t.extras[k] = extra{state: r.State, seq: r.HasSeq, in: r.In, out: r.Out, peName: string(r.PEName), peData: string(r.PEData)}
}

// Get returns the entry with the key of r.
func (t *Table) Get(now time.Time, r *ipvssync.Record) (Entry, bool) {
	s := t.Slot(r)
	switch {
	case s.i == none:
		return Entry{}, false
	case s.v6:
		return export(t, t.v6, now, s.i), true
	}
	return export(t, t.v4, now, s.i), true
}

func addrOf[A address](a A) netip.Addr {
	var b [16]byte
	for i := range len(a) {
		b[i] = a[i]
	}
	if len(a) == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

func export[A address](t *Table, s *store[A], now time.Time, i uint32) Entry {
	e := s.at(i)
	out := Entry{
		Record: ipvssync.Record{
			Protocol: e.protocol, Flags: e.flags, State: uint16(e.state), Timeout: e.timeout, Fwmark: e.fwmark,
			Client:  netip.AddrPortFrom(addrOf(e.client), e.clientPort),
			Virtual: netip.AddrPortFrom(addrOf(e.virtual), e.virtualPort),
			Real:    netip.AddrPortFrom(addrOf(e.real), e.realPort),
		},
		Origin: t.origins[e.origin].id,
		Stamp:  Stamp{mirror.Grant(e.grant), e.clock},
	}
	if sec := t.seconds(now); e.expires > sec {
		out.Remaining = time.Duration(min(e.expires-sec, e.timeout)) * time.Second
	}
	if e.extras {
		x := t.extras[extraKey{len(e.real) == 16, i}]
		out.Record.State, out.Record.HasSeq, out.Record.In, out.Record.Out = x.state, x.seq, x.in, x.out
		out.Record.PEName, out.Record.PEData = []byte(x.peName), []byte(x.peData)
	}
	return out
}

// Cursor is a place in a walk over a table that may change meanwhile. The zero value is the start.
type Cursor struct {
	v6   bool
	next uint32
	Done bool // the walk is over
}

// Walk calls fn for up to limit places from the cursor on and returns the cursor for the next call. Every entry that is there all
// the while is visited exactly once; others may be or not. fn returns false to stop after the entry that it was given.
func (t *Table) Walk(now time.Time, c Cursor, limit int, fn func(*Entry) bool) Cursor {
	if !c.v6 {
		var more bool
		if c.next, limit, more = walk(t, t.v4, now, c.next, limit, fn); more {
			return c
		}
		c = Cursor{v6: true}
	}
	var more bool
	c.next, _, more = walk(t, t.v6, now, c.next, limit, fn)
	c.Done = !more
	return c
}

func walk[A address](t *Table, s *store[A], now time.Time, i uint32, limit int, fn func(*Entry) bool) (uint32, int, bool) {
	var e Entry // one for all visits, as fn makes it escape
	for i = max(i, 1); i < s.used; i++ {
		if limit--; limit < 0 {
			return i, 0, true
		}
		if s.at(i).clock == 0 { // unused: no stamp has clock 0, Clock.Next starts at 1
			continue
		}
		e = export(t, s, now, i)
		if !fn(&e) {
			return i + 1, 0, true
		}
	}
	return i, limit, false
}

// Expire removes the entries whose time is over and returns how many.
func (t *Table) Expire(now time.Time) int {
	sec, before := t.seconds(now), t.Len()
	t.v4.sweep(sec, func(i uint32, e *entry[[4]byte]) { t.gone(extraKey{false, i}, e.origin, e.extras) })
	t.v6.sweep(sec, func(i uint32, e *entry[[16]byte]) { t.gone(extraKey{true, i}, e.origin, e.extras) })
	return before - t.Len()
}

func (t *Table) gone(k extraKey, origin uint16, extras bool) {
	t.changes++
	t.origins[origin].count--
	if extras {
		delete(t.extras, k)
	}
}
