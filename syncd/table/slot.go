package table

import (
	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// Slot is where the entry with a record's key lies or would lie, looked up once for several steps. One that other changes have made out of
// date is looked up again by itself.
type Slot struct {
	changes uint32 // Table.changes when it was looked up
	hash    uint32
	i       uint32
	v6      bool
}

// Known says whether there was an entry.
func (s Slot) Known() bool { return s.i != none }

// Slot looks up the key of r. The slot is for records of this key only.
func (t *Table) Slot(r *ipvssync.Record) Slot {
	if r.Client.Addr().Is4() {
		k := keyOf4(r)
		i, h := t.v4.look(&k)
		return Slot{changes: t.changes, hash: h, i: i}
	}
	k := keyOf6(r)
	i, h := t.v6.look(&k)
	return Slot{changes: t.changes, hash: h, i: i, v6: true}
}

// Has says whether there is an entry with the key of r.
func (t *Table) Has(r *ipvssync.Record) bool { return t.Slot(r).Known() }

// NewestAt returns origin and stamp of the entry with the key of r, whose place was looked up before: what an update of it must beat.
func (t *Table) NewestAt(s Slot, r *ipvssync.Record) (peer.ID, Stamp, bool) {
	if s.changes != t.changes {
		s = t.Slot(r)
	}
	switch {
	case s.i == none:
		return 0, Stamp{}, false
	case s.v6:
		return newest(t, t.v6.at(s.i))
	}
	return newest(t, t.v4.at(s.i))
}

func newest[A address](t *Table, e *entry[A]) (peer.ID, Stamp, bool) {
	return t.origins[e.origin].id, Stamp{mirror.Grant(e.grant), e.clock}, true
}

func keyOf4(r *ipvssync.Record) key[[4]byte] {
	return key[[4]byte]{r.Client.Addr().As4(), r.Virtual.Addr().As4(), r.Client.Port(), r.Virtual.Port(), r.Protocol, r.Flags&ipvssync.FlagTemplate != 0}
}

func keyOf6(r *ipvssync.Record) key[[16]byte] {
	return key[[16]byte]{r.Client.Addr().As16(), r.Virtual.Addr().As16(), r.Client.Port(), r.Virtual.Port(), r.Protocol, r.Flags&ipvssync.FlagTemplate != 0}
}
