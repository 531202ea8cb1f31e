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
	extras  map[extraKey]extra
}

type origin struct {
	id    peer.ID
	count int
}

// extraKey names an entry that has sequence deltas or persistence-engine data. Few have, so they stand apart.
type extraKey struct {
	v6 bool
	i  uint32
}

type extra struct {
	seq            bool
	in, out        ipvssync.Seq
	peName, peData string
}

// New returns an empty table; now starts its clock of seconds.
func New(now time.Time) *Table {
	return &Table{
		epoch: now, v4: newStore[[4]byte](0), v6: newStore[[16]byte](0),
		index: map[peer.ID]uint16{}, extras: map[extraKey]extra{},
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
	Stale                   // what is there is the same or later: nothing changed
	Refused                 // no entry can be made of it: expired, without a stamp, or of too many origins
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

// originIndex interns an origin. Origins without entries make room when the numbers run out.
func (t *Table) originIndex(id peer.ID) (uint16, bool) {
	if i, ok := t.index[id]; ok {
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
// that was taught has been rounded twice. Where its time is over already, the next connection of the same ports starts from grant 0.
const expirySlack = 2

// Put enters a record that the origin stamped, age seconds ago. It keeps nothing of the memory that r points to.
func (t *Table) Put(now time.Time, r *ipvssync.Record, from peer.ID, stamp Stamp, age uint32) Outcome {
	if r.Client.Addr().Is4() {
		return put(t, t.v4, now, keyOf4(r), r.Real.Addr().As4(), r, from, stamp, age)
	}
	return put(t, t.v6, now, keyOf6(r), r.Real.Addr().As16(), r, from, stamp, age)
}

func keyOf4(r *ipvssync.Record) key[[4]byte] {
	return key[[4]byte]{r.Client.Addr().As4(), r.Virtual.Addr().As4(), r.Client.Port(), r.Virtual.Port(), r.Protocol, r.Flags&ipvssync.FlagTemplate != 0}
}

func keyOf6(r *ipvssync.Record) key[[16]byte] {
	return key[[16]byte]{r.Client.Addr().As16(), r.Virtual.Addr().As16(), r.Client.Port(), r.Virtual.Port(), r.Protocol, r.Flags&ipvssync.FlagTemplate != 0}
}

func put[A address](t *Table, s *store[A], now time.Time, k key[A], real A, r *ipvssync.Record, from peer.ID, stamp Stamp, age uint32) Outcome {
	oi, ok := t.originIndex(from)
	if !ok || r.Timeout <= age || stamp.Clock == 0 {
		return Refused
	}
	expires := t.seconds(now) + min(r.Timeout-age, 1<<30)
	h := s.hash(&k)
	i, out := s.find(&k, h), Replaced
	if i == none {
		i, out = s.insert(&k, h), Inserted
		t.origins[oi].count++
	} else {
		e := s.at(i)
		if stamp.Compare(from, Stamp{mirror.Grant(e.grant), e.clock}, t.origins[e.origin].id) <= 0 &&
			(stamp.Clock <= e.clock || e.expires > t.seconds(now)+expirySlack) {
			return Stale
		}
		if e.origin != oi {
			t.origins[e.origin].count--
			t.origins[oi].count++
		}
	}
	e := s.at(i)
	if out == Inserted || e.expires != expires {
		if out == Replaced {
			s.unlink(i)
		}
		e.expires = expires
		s.link(i)
	}
	e.origin, e.real, e.realPort = oi, real, r.Real.Port()
	e.state, e.flags, e.fwmark, e.timeout = r.State, r.Flags, r.Fwmark, r.Timeout
	e.grant, e.clock = uint64(stamp.Grant), stamp.Clock
	t.putExtra(extraKey{len(real) == 16, i}, r)
	return out
}

func (t *Table) putExtra(k extraKey, r *ipvssync.Record) {
	if r.HasSeq || len(r.PEName) > 0 || len(r.PEData) > 0 {
		t.extras[k] = extra{seq: r.HasSeq, in: r.In, out: r.Out, peName: string(r.PEName), peData: string(r.PEData)}
	} else if len(t.extras) > 0 {
		delete(t.extras, k)
	}
}

// Get returns the entry with the key of r.
func (t *Table) Get(now time.Time, r *ipvssync.Record) (Entry, bool) {
	if r.Client.Addr().Is4() {
		k := keyOf4(r)
		return get(t, t.v4, now, &k)
	}
	k := keyOf6(r)
	return get(t, t.v6, now, &k)
}

func get[A address](t *Table, s *store[A], now time.Time, k *key[A]) (Entry, bool) {
	i := s.find(k, s.hash(k))
	if i == none {
		return Entry{}, false
	}
	return export(t, s, now, i), true
}

// Newest returns origin and stamp of the entry with the key of r: what an update of it must beat.
func (t *Table) Newest(r *ipvssync.Record) (peer.ID, Stamp, bool) {
	if r.Client.Addr().Is4() {
		k := keyOf4(r)
		return newest(t, t.v4, &k)
	}
	k := keyOf6(r)
	return newest(t, t.v6, &k)
}

func newest[A address](t *Table, s *store[A], k *key[A]) (peer.ID, Stamp, bool) {
	i := s.find(k, s.hash(k))
	if i == none {
		return 0, Stamp{}, false
	}
	e := s.at(i)
	return t.origins[e.origin].id, Stamp{mirror.Grant(e.grant), e.clock}, true
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
			Protocol: e.protocol, Flags: e.flags, State: e.state, Timeout: e.timeout, Fwmark: e.fwmark,
			Client:  netip.AddrPortFrom(addrOf(e.client), e.clientPort),
			Virtual: netip.AddrPortFrom(addrOf(e.virtual), e.virtualPort),
			Real:    netip.AddrPortFrom(addrOf(e.real), e.realPort),
		},
		Origin: t.origins[e.origin].id,
		Stamp:  Stamp{mirror.Grant(e.grant), e.clock},
	}
	if sec := t.seconds(now); e.expires > sec {
		out.Remaining = time.Duration(e.expires-sec) * time.Second
	}
	if len(t.extras) > 0 {
		if x, ok := t.extras[extraKey{len(e.real) == 16, i}]; ok {
			out.Record.HasSeq, out.Record.In, out.Record.Out = x.seq, x.in, x.out
			out.Record.PEName, out.Record.PEData = []byte(x.peName), []byte(x.peData)
		}
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
	for i = max(i, 1); i < s.used; i++ {
		if limit--; limit < 0 {
			return i, 0, true
		}
		if s.at(i).clock == 0 { // unused: no stamp has clock 0, Clock.Next starts at 1
			continue
		}
		e := export(t, s, now, i)
		if !fn(&e) {
			return i + 1, 0, true
		}
	}
	return i, limit, false
}

// Expire removes the entries whose time is over and returns how many.
func (t *Table) Expire(now time.Time) int {
	sec, before := t.seconds(now), t.Len()
	t.v4.sweep(sec, func(i uint32, e *entry[[4]byte]) { t.gone(extraKey{false, i}, e.origin) })
	t.v6.sweep(sec, func(i uint32, e *entry[[16]byte]) { t.gone(extraKey{true, i}, e.origin) })
	return before - t.Len()
}

func (t *Table) gone(k extraKey, origin uint16) {
	t.origins[origin].count--
	if len(t.extras) > 0 {
		delete(t.extras, k)
	}
}
