// Package peer keeps account of the other directors: who they are, whether they live now, and which of their datagrams are new.
// Both daemons use it. It is a step function: it is told what was heard and when, and has neither sockets nor clocks.
//
// # Nothing counts from a sender until it echoes the receiver
//
// A sender is an incarnation of a node: 64 random bits, drawn at each start. Whatever a director hears of an incarnation only makes it a
// candidate, until a heartbeat of it shows that it hears this director now: it must echo this director's incarnation together with a
// control sequence number that this director sent after it had first heard the candidate. Nobody can have such a heartbeat in store,
// so datagrams of yesterday, also correctly signed ones of an earlier incarnation of a peer, admit nobody and need no list of
// retired incarnations. After admission two windows of sequence numbers, for control and stream datagrams, tell new from replayed.
// The stream's window also tells what is missing, what may still be asked for, and what is lost for good (Peer.Gaps, Peer.GivenUp).
//
// One name, two live directors: the same proof of life is asked of a stranger that uses this director's own name (Namesake).
package peer

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// ID names a node on the wire: the first 8 bytes of the SHA-256 of its name.
type ID uint64

// IDOf returns the ID of a node name.
func IDOf(name string) ID {
	sum := sha256.Sum256([]byte(name))
	return ID(binary.BigEndian.Uint64(sum[:]))
}

// String returns the ID as logs print it.
func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Incarnation is drawn at each start of a daemon; 0 is none.
type Incarnation uint64

// NewIncarnation draws an incarnation.
func NewIncarnation() Incarnation {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
		if i := binary.BigEndian.Uint64(b[:]); i != 0 {
			return Incarnation(i)
		}
	}
}

// String returns the incarnation as logs and JSON print it.
func (i Incarnation) String() string { return fmt.Sprintf("%016x", uint64(i)) }

// Limits that keep a flood of signed datagrams, or an --insecure farm, within bounded memory.
const (
	// MaxPeers is how many other nodes are kept account of.
	MaxPeers = 64
	// maxCandidates is how many incarnations of one node may be candidates at once; the one heard longest ago makes room.
	maxCandidates = 8
	// candidateAge is how long an unheard candidate is remembered and echoed.
	candidateAge = 3 * time.Second
	// echoAge is how long an echo of this director counts that is not repeated because there are more than fit into a heartbeat: all come
	// round within 23 heartbeats, should every peer and all its candidates be alive.
	echoAge = 3 * time.Second
)

// Echo is what one node tells another that it last heard of it.
type Echo struct {
	Node        ID
	Incarnation Incarnation
	Control     uint64        // newest control sequence number heard
	Stream      uint64        // newest stream sequence number heard
	Confirmed   uint64        // number up to which its stream has been taken by the kernel
	Age         time.Duration // since it was last heard
	Counts      bool          // what this incarnation sends is used
}

// Heartbeat is what this package needs of a heartbeat that has been authenticated.
type Heartbeat struct {
	Node        ID
	Incarnation Incarnation
	Name        string
	Control     uint64 // its own sequence number
	Stream      uint64 // newest stream sequence number that the sender has used
	Oldest      uint64 // oldest stream sequence number that it can repeat
	Teaches     netip.AddrPort
	Entries     uint32
	Clock       uint64
	Uptime      time.Duration
	Synced      bool
	Confirm     bool
	Link        int  // index of the link that it came by
	Echo        Echo // its echo of this director; Incarnation 0: none
	Paged       bool // it is full of echoes: there may be more, this director's among them, in the next ones
}

// Verdict says what to do with a datagram.
type Verdict uint8

// Verdicts.
const (
	Accept           Verdict = iota // use it
	Repeated                        // a copy came before, by another link or as a repetition: normal, ignore it
	Known                           // a repetition, asked for by whomever, of what is known or too old: normal, ignore it
	Replayed                        // seen before on this link, or too old: drop and count
	WrongIncarnation                // from a sender that has not (yet) proved that it lives: drop and count
	Own                             // this director's own datagram came back: drop and count
	Overflow                        // too many nodes: drop and count
)

// Event says what a heartbeat changed.
type Event uint8

// Events.
const (
	Nothing  Event = iota
	Admitted       // an incarnation counts from now on; it knows nothing of what this director sent before
	Returned       // a peer that was Lost is heard again, under the incarnation that it had
	Namesake       // another live director uses this director's name
)

// LinkState is what one link has brought of a peer.
type LinkState struct {
	LastHeard time.Time // zero: never

	control, stream Window
}

// Silence is a time during which a peer was Lost: from when it had last been heard to when it returned.
type Silence struct{ From, To time.Time }

// Peer is another node. What its heartbeats say is from the newest of them.
type Peer struct {
	ID          ID
	Name        string
	Incarnation Incarnation // 0: not admitted
	Synced      bool
	Lost        bool    // not heard for the dead time
	Silence     Silence // the latest one of this incarnation; while the peer is Lost, To is zero; zero: never
	LastHeard   time.Time
	Uptime      time.Duration // at LastHeard
	Control     Window
	Stream      Window
	Announced   uint64         // newest stream sequence number that the peer says it has used
	Oldest      uint64         // oldest stream sequence number that it can repeat; Announced+1: none; it never goes back
	Teaches     netip.AddrPort // where it teaches its table; zero: nowhere
	Entries     uint32         // of its table
	Clock       uint64         // its hybrid clock at LastHeard, microseconds
	Confirm     bool           // it waits until its stream is confirmed
	Confirmed   uint64         // what the user says to be echoed: number up to which the peer's stream has been taken by the kernel
	Echoed      Echo           // its newest echo of this director; Incarnation 0: it does not hear this director
	Links       []LinkState

	beat       uint64    // number of its newest heartbeat
	echoedAt   time.Time // when Echoed came
	candidates []candidate
}

type candidate struct {
	incarnation Incarnation
	since       uint64 // this director's newest control number when the candidate was first heard
	control     uint64
	stream      uint64
	echo        uint64 // newest control number of this director that it has echoed
	heard       time.Time
}

// Set is the account of all peers. It is not safe for concurrent use.
type Set struct {
	self        ID
	incarnation Incarnation
	links       int
	control     uint64
	peers       map[ID]*Peer
	order       []ID // in order of first hearing, for paging
	page        int
	namesake    []candidate
}

// NewSet returns the account of a director that is named and has the incarnation, on a number of links.
func NewSet(self ID, inc Incarnation, links int) *Set {
	return &Set{self: self, incarnation: inc, links: links, peers: map[ID]*Peer{}}
}

// NextControl returns the sequence number for the next control datagram of this director.
func (s *Set) NextControl() uint64 { s.control++; return s.control }

// Peers iterates over the admitted peers in order of their first hearing.
func (s *Set) Peers(yield func(*Peer) bool) {
	for _, id := range s.order {
		if p := s.peers[id]; p.Incarnation != 0 && !yield(p) {
			return
		}
	}
}

// Get returns the admitted peer with this ID, or nil.
func (s *Set) Get(id ID) *Peer {
	if p := s.peers[id]; p != nil && p.Incarnation != 0 {
		return p
	}
	return nil
}
