package syncd

import (
	"fmt"
	"net/netip"
	"time"

	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// maxDifferences is how many differences with a peer are kept and listed, by about a KiB each: a peer may have nothing of a million entries.
const maxDifferences = 10000

// entryKey names an entry.
type entryKey struct {
	client, virtual netip.AddrPort
	protocol        uint8
	template        bool
}

func keyOf(r *ipvssync.Record) entryKey {
	return entryKey{r.Client, r.Virtual, r.Protocol, r.Template()}
}

// difference is an entry of which the two sides have different updates.
type difference struct{ here, there *table.Entry }

// lookedAt is the engine as a look needs it.
type lookedAt interface {
	Lookup(now time.Time, r *ipvssync.Record) (en table.Entry, local, known bool)
	Bucket(now time.Time, bucket uint16, fn func(*table.Entry) bool)
}

// look is one look at what differs between two replicas. Only what differs in the same way as in the look before is a difference.
type look struct {
	before *look // nil: this is the first one
	limit  int   // of found
	cut    uint64
	found  map[entryKey]difference
	more   uint64 // differences beyond the limit, which are only counted

	// What the peer has of the bucket that comes. Buckets come in ascending order.
	bucket int // -1: none yet
	keys   map[entryKey]bool
	done   [table.Buckets]bool
}

func newLook(before *look) *look {
	l := &look{before: before, limit: maxDifferences, found: map[entryKey]difference{}, bucket: -1, keys: map[entryKey]bool{}}
	if before != nil {
		before.before = nil
	}
	return l
}

// differ returns how many entries differ.
func (l *look) differ() uint64 { return uint64(len(l.found)) + l.more }

// theirs takes entries of the peer.
func (l *look) theirs(now time.Time, e lookedAt, entries []table.Entry) {
	for i := range entries {
		there := &entries[i]
		if b := int(table.BucketOf(&there.Record)); b != l.bucket {
			l.ours(now, e)
			l.bucket = b
		}
		k := keyOf(&there.Record)
		l.keys[k] = true
		here, _, known := e.Lookup(now, &there.Record)
		switch {
		case !settled(there, l.cut):
		case !known:
			l.add(k, nil, there)
		case here.Stamp != there.Stamp || here.Origin != there.Origin || here.Record.Real != there.Record.Real || here.Record.State != there.Record.State:
			l.add(k, &here, there)
		}
	}
}

// ours looks for what only the replica has of the bucket that has come.
func (l *look) ours(now time.Time, e lookedAt) {
	defer clear(l.keys)
	if l.bucket < 0 || l.done[l.bucket] {
		return
	}
	l.done[l.bucket] = true
	e.Bucket(now, uint16(l.bucket), func(en *table.Entry) bool {
		if k := keyOf(&en.Record); !l.keys[k] && settled(en, l.cut) {
			l.add(k, en, nil)
		}
		return true
	})
}

// lacking looks at a bucket that differs, after everything has come. The peer may have nothing of it.
func (l *look) lacking(now time.Time, e lookedAt, bucket uint16) {
	l.ours(now, e)
	l.bucket = int(bucket)
	l.ours(now, e)
}

// add takes a difference. Entries are copied: they are valid during a call only.
func (l *look) add(k entryKey, here, there *table.Entry) {
	f := difference{here, there}
	if l.before != nil {
		before, known := l.before.found[k]
		switch {
		case known && !f.same(before): // it changes, so it is on its way
			return
		case !known && l.before.more > 0: // it may be one of those that were counted
			l.more++
			return
		case !known:
			return
		}
	} else if len(l.found) >= l.limit {
		l.more++
		return
	}
	l.found[k] = difference{keep(here), keep(there)}
}

// end ends the look. Of those beyond the limit it is not known whether they are the same as before; so the least number counts.
func (l *look) end() {
	if l.before != nil {
		l.more = min(l.more, l.before.more)
	}
}

// settled reports whether an entry was made long enough ago, and lives long enough, for both sides to have it.
func settled(en *table.Entry, cut uint64) bool {
	return en.Stamp.Clock <= cut && en.Remaining > 4*time.Second
}

// keep copies an entry out of memory that is valid during a call only.
func keep(en *table.Entry) *table.Entry {
	if en == nil {
		return nil
	}
	c := *en
	c.Record.PEName, c.Record.PEData = nil, nil
	return &c
}

// same reports whether a difference is the one that was seen before.
func (f difference) same(before difference) bool {
	side := func(a, b *table.Entry) bool {
		return (a == nil) == (b == nil) && (a == nil || a.Stamp == b.Stamp && a.Origin == b.Origin)
	}
	return side(f.here, before.here) && side(f.there, before.there)
}

func (f difference) why(name string) string {
	switch {
	case f.here == nil:
		return fmt.Sprintf("%s has it, this director does not: the next audit will bring it", name)
	case f.there == nil:
		return fmt.Sprintf("this director has it, %s does not: its next audit will bring it there", name)
	case f.here.Record.Real != f.there.Record.Real:
		return fmt.Sprintf("the real server is %s here and %s at %s", f.here.Record.Real, f.there.Record.Real, name)
	case f.here.Stamp.Compare(f.here.Origin, f.there.Stamp, f.there.Origin) > 0:
		return fmt.Sprintf("the update here is newer than that of %s", name)
	default:
		return fmt.Sprintf("the update of %s is newer", name)
	}
}
