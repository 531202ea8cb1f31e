package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	wire "saru/proto/transfer"
	"saru/syncd/table"
)

// Entry is one connection of a table.
type Entry = table.Entry

// Digest tells what a bucket holds.
type Digest = wire.Digest

// Purpose says what a pull is for.
type Purpose = wire.Purpose

// Purposes.
const (
	Join    = wire.Join    // the whole table
	Audit   = wire.Audit   // what differs, to be entered
	Compare = wire.Compare // what differs, to be looked at
)

// Limits of time.
const (
	frameTime     = 5 * time.Second        // for one frame, in either direction
	handshakeTime = 2 * time.Second        // from the connect to the proof
	lifetime      = 10 * time.Minute       // of a session
	stopTime      = 500 * time.Millisecond // for what is still written when the server stops
	roundPause    = 300 * time.Millisecond // between rounds of digests: what is on the way arrives meanwhile
	progressTime  = 200 * time.Millisecond
)

// Limits of amounts.
const (
	maxSessions = 2 // taught at a time
	maxHalfOpen = 8 // connections that have not proved themselves
	maxRounds   = 3 // of digests
	// maxPages is how many pages of digests a client can have answered: each costs the teacher a walk over its buckets.
	maxPages = maxRounds * wire.Buckets / wire.MaxPage
	// excess is by how many entries a teacher may exceed twice what it announced: tables grow while they are sent.
	excess = 1e6
	// maxBatch is how many entries are learned at once, for whoever learns locks meanwhile.
	maxBatch        = 256
	progressEntries = 10_000
	// flushAt is from how many bytes on entries are sent at the end of a bucket; a bucket seldom has to be split then.
	flushAt = 48 << 10
	// maxKept is how large a buffer may be to be kept after a bucket that was huge.
	maxKept = 1 << 20
)

// Source is the table that a Server teaches from. Its methods are called by several sessions at once, and each locks the table for its
// own duration only.
type Source interface {
	// Digests appends the digests of the buckets to dst, in their order.
	Digests(cut uint64, buckets []uint16, dst []Digest) []Digest
	// Bucket calls fn for every entry of the bucket until it returns false. The entry is valid during the call only; fn calls nothing of
	// the Source.
	Bucket(bucket uint16, fn func(*Entry) bool)
	State() State
	// OriginName returns the name of a director that entries come from; empty: not known.
	OriginName(id peer.ID) string
}

// State is what a Source is.
type State struct {
	Node        peer.ID
	Incarnation peer.Incarnation
	Synced      bool   // the table is complete as far as it knows
	Entries     uint64 // of the table
}

// Auth says who is believed.
type Auth struct {
	Group         string     // multicast group and port as given to seal.NewRing; directors of another one are refused
	Ring          *seal.Ring // nil: --insecure. Only derived from, so it need not be cloned
	Sign          bool       // sign what is sent; needs a Ring
	RequireSigned bool       // refuse who does not sign; needs a Ring
}

func (a *Auth) keyID() uint8 {
	if a.Ring == nil || !a.Sign {
		return 0
	}
	return a.Ring.Signer()
}

// group returns what a hello says of the group. The ring is bound to it already; without keys this keeps farms apart.
func (a *Auth) group() uint64 {
	sum := sha256.Sum256([]byte("saru 1 syncd " + a.Group))
	return binary.BigEndian.Uint64(sum[:])
}

// Config is what a pull needs to know of this director.
type Config struct {
	Node        peer.ID
	Incarnation peer.Incarnation
	Auth        Auth
	Counters    *Counters // nil: nobody counts
}

// Teacher is who is expected at the other end.
type Teacher struct {
	Node        peer.ID
	Incarnation peer.Incarnation
}

// Request says what to pull, and what to do with it. All functions are called by the goroutine that called Pull.
type Request struct {
	Purpose Purpose
	Expect  Teacher
	// Own appends this director's digests of the buckets to dst, in their order. Not for Join.
	Own func(cut uint64, buckets []uint16, dst []Digest) []Digest
	// Cut returns the cut for a round of digests. Not for Join.
	Cut func() uint64
	// BucketOf returns the bucket that a record belongs to; an entry under another one is an error. nil: not checked.
	BucketOf func(r *ipvssync.Record) uint16
	// Learn takes entries, at most 256. They and the memory that they point to are valid during the call only. names are those of the origins announced so
	// far; it must not be changed, and is valid during the call only as well.
	Learn func(entries []Entry, names map[peer.ID]string)
	// Progress hears of progress, at most every 200 ms or 10,000 entries, and at the end; total is an estimate. It may be nil.
	Progress func(done, total uint64)
}

// Result is what came of a pull. After an error it says how far it got.
type Result struct {
	Complete bool     // the teacher's table was complete, and all of what was asked for has arrived
	Entries  uint64   // received
	Skipped  uint64   // of them, those that mean nothing: without clock or time, or left out by kernels
	Bytes    uint64   // received
	Buckets  []uint16 // that differed to the last, ascending; nil for Join
	Took     time.Duration
}
