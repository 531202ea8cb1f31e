package engine

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"saru/lib/flow"
	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// ErrOlderShare is returned by SetShare for a share of an earlier table than the one that is known.
var ErrOlderShare = errors.New("a later table is known")

// ErrOtherShare is returned by SetShare for a share that says otherwise than the one of the same table that is known.
var ErrOtherShare = errors.New("another table of the same term and version is known")

// Share is what saru has told: which bucket a connection is of, and which buckets are whose. Nobody changes it. A nil Share is that of a
// director without saru, of which no connection has a bucket.
type Share struct {
	Grant     mirror.Grant
	Buckets   uint32
	Seed      uint32
	Functions map[netip.Addr]flow.Function // by virtual address; all of Buckets and Seed
	Owned     []bool                       // buckets that the table gives to this director
	Next      []bool                       // and those of which this director is the next owner
	Held      []bool                       // of Owned, those that this director holds
}

// Bucket returns the bucket that saru's filter gives to the connection of a record. There is none of a virtual address that saru does not
// share, and of what serves packets of more than one bucket: where the function looks at ports, a record that does not know them (a
// template, an FTP data connection that has not begun), and the IKE connection that IPVS sends AH and ESP after.
func (s *Share) Bucket(r *ipvssync.Record) (uint32, bool) {
	if s == nil || r.Protocol == 0 { // a fwmark service's template: its virtual address is the mark
		return 0, false
	}
	f, known := s.Functions[r.Virtual.Addr()]
	if !known {
		return 0, false
	}
	src, dst := f.Sense.Has(flow.SrcPort), f.Sense.Has(flow.DstPort)
	if src && r.Client.Port() == 0 || dst && r.Virtual.Port() == 0 {
		return 0, false
	}
	// net/netfilter/ipvs/ip_vs_proto_ah_esp.c: AH and ESP go by a UDP connection between ports 500, and the filter sees no ports of theirs.
	if (src || dst) && (r.Protocol == ipvssync.ProtocolAH || r.Protocol == ipvssync.ProtocolESP ||
		r.Protocol == ipvssync.ProtocolUDP && r.Virtual.Port() == portISAKMP) {
		return 0, false
	}
	return f.Bucket(r.Client, r.Virtual), true
}

// portISAKMP is PORT_ISAKMP of ip_vs_proto_ah_esp.c.
const portISAKMP = 500

// keeps reports whether a kernel with --kernel_entries next has the entry of a record: if its bucket is this director's or, should its owner
// die, will be; and if it has none.
func (s *Share) keeps(r *ipvssync.Record) bool {
	b, ok := s.Bucket(r)
	return !ok || s.Owned[b] || s.Next[b]
}

// owns reports whether this director handles the packets of a record's connection, or does so with others.
func (s *Share) owns(r *ipvssync.Record) bool {
	b, ok := s.Bucket(r)
	return !ok || s.Owned[b]
}

// Kept returns of how many buckets a kernel with --kernel_entries next has the entries.
func (s *Share) Kept() (n int) {
	for b := range s.Owned {
		if s.Owned[b] || s.Next[b] {
			n++
		}
	}
	return n
}

// sameFunction reports whether two shares give every connection the same bucket.
func (s *Share) sameFunction(t *Share) bool {
	return s.Buckets == t.Buckets && s.Seed == t.Seed && maps.Equal(s.Functions, t.Functions)
}

// sameTable reports whether two shares are of one table.
func (s *Share) sameTable(t *Share) bool {
	return s.sameFunction(t) && slices.Equal(s.Owned, t.Owned) && slices.Equal(s.Next, t.Next)
}

// sharing is what the engine makes of what saru tells.
type sharing struct {
	next bool   // Config.KernelNext
	now  *Share // nil: nothing was told, or it was forgotten
	// Of each bucket: under which grant this director held it last, and the clock when it was given it.
	last  []mirror.Grant
	since []uint64
	term  uint32 // the highest that was told or seen

	// Entries are brought into the kernel by walks over the replica: first those of buckets that this director owns, then the rest.
	before  []*Share // those by which was injected until now, since the kernel had everything by the first of them
	walk    walk
	owned   bool   // the first walk is over
	ticket  uint64 // of the latest SetShare
	handed  uint64 // the latest ticket whose first walk is over
	settled uint64 // and the latest whose second one is
	ready   uint64 // the latest ticket of which the kernel has entered what the first walk has injected
}

// SetShare takes what saru tells; nil: it is to be forgotten. It returns a ticket for ShareReady. The share counts from now on.
func (e *Engine) SetShare(now time.Time, s *Share) (ticket uint64, err error) {
	sh, was := &e.share, e.share.now
	e.now = now
	if s != nil && was != nil {
		if s.Grant < was.Grant {
			return 0, fmt.Errorf("%w: term %d, version %d is older than term %d, version %d", ErrOlderShare,
				s.Grant.Term(), s.Grant.Version(), was.Grant.Term(), was.Grant.Version())
		}
		if s.Grant == was.Grant && !s.sameTable(was) {
			return 0, fmt.Errorf("%w: term %d, version %d", ErrOtherShare, s.Grant.Term(), s.Grant.Version())
		}
	}
	switch {
	case s == nil:
		sh.last, sh.since = nil, nil
	case was == nil || s.Buckets != was.Buckets || s.Seed != was.Seed:
		sh.last, sh.since = make([]mirror.Grant, s.Buckets), make([]uint64, s.Buckets)
		was = nil
	}
	if s != nil {
		sh.term = max(sh.term, s.Grant.Term())
		clock := e.clock.Next(e.wall(now))
		for b, held := range s.Held {
			if had := was != nil && was.Held[b]; had && !held {
				sh.last[b] = was.Grant
			} else if held && !had {
				sh.since[b] = clock
			}
		}
	}
	sh.ticket++
	if same := s == sh.now || s != nil && sh.now != nil && s.sameTable(sh.now); same { // the kernel needs nothing more
		if sh.owned {
			sh.handed = sh.ticket
		}
		if len(sh.before) == 0 {
			sh.settled = sh.ticket
		}
	} else {
		sh.before, sh.owned, sh.walk = append(sh.before, sh.now), false, walk{}
	}
	sh.now = s
	return sh.ticket, nil
}

// Share returns what saru has told, or nil.
func (e *Engine) Share() *Share { return e.share.now }

// ShareReady reports whether this kernel has the entries of the buckets that the share with a ticket, or one that was told later, gives to this
// director.
func (e *Engine) ShareReady(ticket uint64) bool { return e.share.ready >= ticket }

// Kept returns a function that reports whether this kernel is to have the record of another director, by what saru has told until now; nil: all
// of them.
func (e *Engine) Kept() func(*ipvssync.Record) bool {
	if s := e.share.now; e.share.next && s != nil {
		return s.keeps
	}
	return nil
}

// kept reports whether this kernel is to have the record of another director.
func (e *Engine) kept(r *ipvssync.Record) bool { return !e.share.next || e.share.now.keeps(r) }

// leavesOut reports whether this kernel is not to have the entries of a bucket.
func (sh *sharing) leavesOut(bucket uint32) bool {
	return sh.next && !sh.now.Owned[bucket] && !sh.now.Next[bucket]
}

// grant returns under which grant this director's kernel reports a connection of a bucket of which the replica has an update. A report of what
// it holds, or held last, is of that grant. Whoever has told of it under a later one since this director was given the bucket is right, as it
// was given the bucket later: then what is returned loses against that.
func (sh *sharing) grant(bucket uint32, newest table.Stamp, own bool) mirror.Grant {
	g := sh.last[bucket]
	held := sh.now.Held[bucket]
	if held {
		g = sh.now.Grant
	}
	// What is later although it was told before this director was given the bucket is of a farm that has forgotten its terms.
	if newest.Grant > g && (own || held && newest.Clock < sh.since[bucket]) {
		return newest.Grant
	}
	return g
}

// late reports whether an update is from before this director was given a bucket that it holds.
func (e *Engine) late(bucket uint32, stamp table.Stamp) bool {
	return e.share.now.Held[bucket] && stamp.Grant < e.share.now.Grant && e.join.state != Learning
}

// enterLate injects an update that is late. What this kernel has of the connection may be its own and live, and not reported yet. So the
// record is given as an inactive one, which makes an entry where there is none, and leaves one with another real server alone (ip_vs_sync.c,
// ip_vs_proc_conn); and one that ends or moves a connection is not given at all. The kernel's audit, which knows what the kernel has, does the
// rest.
func (e *Engine) enterLate(r *ipvssync.Record, out table.Outcome, age uint32) {
	e.counters[Late]++
	switch {
	case out == table.Moved:
	case r.Template() || r.Protocol != ipvssync.ProtocolTCP && r.Protocol != ipvssync.ProtocolSCTP:
		e.enter(r, age)
	case r.Flags&ipvssync.FlagInactive == 0:
		r.Flags |= ipvssync.FlagInactive
		e.inject(r, age)
		r.Flags &^= ipvssync.FlagInactive
	}
}

// sawGrant takes the grant of another director's record into account.
func (e *Engine) sawGrant(origin peer.ID, g mirror.Grant) {
	if origin != e.self {
		e.share.term = max(e.share.term, g.Term())
	}
}

// ShareStatus says what saru has told.
type ShareStatus struct {
	Share   *Share // nil: nothing
	Next    bool   // --kernel_entries next
	Ready   bool
	Settled bool
	Term    uint32 // the highest that was told or seen
}

func (e *Engine) shareStatus() ShareStatus {
	sh := &e.share
	return ShareStatus{Share: sh.now, Next: sh.next, Ready: sh.ready == sh.ticket, Settled: sh.settled == sh.ticket, Term: sh.term}
}
