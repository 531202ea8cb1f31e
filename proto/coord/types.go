package coord

import "net/netip"

// Kind is what a datagram is for.
type Kind uint8

// Kinds.
const (
	KindHeartbeat Kind = 1 + iota
	KindPrepare
	KindAccept
	KindPart
	KindFetch
	KindCommand
)

// Header is what all datagrams have. Key 0: unsigned.
type Header struct {
	Key         uint8
	Sender      uint64 // first 8 bytes of the SHA-256 of the node's name
	Incarnation uint64 // 64 random bits, drawn at each start; 0 is none
	Sequence    uint64 // from 1, one series for all kinds
}

// Digest names a table or a share function: the first 16 bytes of the SHA-256 of its encoding. The zero value names nothing.
type Digest [16]byte

// Line names a line of tables: which incarnation founded it, under which term. A later line has a higher term.
type Line struct {
	Term uint32
	Node uint64
}

// Ref refers to a table. The zero value refers to none.
type Ref struct {
	Line    Line
	Version uint32
	Digest  Digest
}

// Ballot orders proposals for the successor of one table. The zero value is below every ballot.
type Ballot struct {
	Round uint32
	Node  uint64
}

// State is a set of things that a director says of itself.
type State uint16

// States.
const (
	StateSynced   State = 1 << iota // syncd has joined, or there is none
	StateUsable                     // each virtual service has a destination that can be used
	StateJoins                      // it wants to become a member
	StateDrains                     // it wants to own nothing
	StateLeaves                     // it is about to stop
	StateLapsed                     // its lease under the table that counts is lost
	StateReleased                   // Released is clean: each bucket of it was its own to open
	StateDeaf                       // it hears none of the members
	StateFits                       // its own share function has all of the table that counts
	StateAsks                       // its lease runs out: heartbeats are asked for, now

	allStates State = 1<<iota - 1
)

// Echo is what a director says of another one that it has heard.
type Echo struct {
	Node        uint64
	Incarnation uint64
	Sequence    uint64 // newest heard; 0: none yet
	AgeMS       uint32 // since it was heard
	Supports    bool   // Sequence supports a lease
	Dead        bool   // it is counted dead under the table that counts here
	Counts      bool   // what it sends is used (it has proved that it lives)
}

// Timers are those of a director that others rely on, in microseconds. Guard may be 0.
type Timers struct {
	Keepalive uint32
	Deadtime  uint32
	Lease     uint32
	Guard     uint32
}

// Heartbeat is what a director says of itself and of those that it hears, every keepalive and when something of it changes. More echoes than fit
// into one datagram come in several, each complete but for its echoes.
type Heartbeat struct {
	Header
	Name          string // node name in printable ASCII without spaces, 1 to 63 bytes
	UptimeMS      uint64
	State         State
	Weight        uint16
	Pings         uint16 // ping nodes that it reaches
	Open          uint32 // buckets that it holds open
	Function      Digest // of the share function that it is configured for
	Timers        Timers // that it is configured for
	Term          uint32 // newest term that it has heard of; 0: none
	Master        uint64 // of the table that counts; 0: it has none, or is no member of it
	Counts        Ref    // the table that counts here
	Pending       Ref    // the table accepted as its successor
	PendingBallot Ballot // under which it was accepted
	Promise       Ballot // below which nothing is accepted as successor of Counts
	Released      Digest // the table of which everything that it takes away has been closed and flushed here
	Answer        uint64 // Nonce of the newest command that was obeyed
	Paged         bool   // there are further echoes in other datagrams
	Echoes        []Echo // at most MaxEchoes: Pages splits more
}

// Prepare asks the members of a table to promise a ballot for its successor.
type Prepare struct {
	Header
	Parent Ref
	Ballot Ballot
}

// Accept asks the members of a table to accept a successor under a ballot. The table itself comes in parts.
type Accept struct {
	Header
	Parent Ref
	Ballot Ballot
	Table  Ref
}

// Part is a part of the encoding of a table.
type Part struct {
	Header
	Digest Digest
	Index  uint16
	Count  uint16
	Data   []byte // 1 to MaxPart bytes; all but the last part have MaxPart
}

// Fetch asks a director for the parts of a table.
type Fetch struct {
	Header
	Digest Digest
	Node   uint64 // who is asked; not 0
}

// Verb is a command.
type Verb uint8

// Verbs.
const (
	VerbDrain   Verb = 1 // own nothing
	VerbUndrain Verb = 2 // take part again
)

// Command tells another director to do something, on behalf of an operator; the target says in Answer that it has obeyed.
type Command struct {
	Header
	Target uint64
	Nonce  uint64 // not 0
	Verb   Verb
}

// Table is the allocation of buckets to directors. Its digest is over its encoding.
type Table struct {
	Line     Line
	Version  uint32 // from 1
	Parent   Digest // zero: it founds a farm
	Term     uint32 // not below the line's
	Master   uint64 // node ID of one of the members
	Policy   Policy
	Members  []Member // in ascending order of node, 1 to MaxMembers
	Dead     []Member // members of the parent that were dead when this was proposed, in ascending order of node; without names
	Function Function
	// Owner and Next are indexes into Members for each bucket, or NoMember.
	Owner, Next []uint8
}

// Policy says who chooses a table's successor.
type Policy uint8

// Policies.
const (
	Quorum    Policy = 1 // a majority of the members
	Available Policy = 2 // all members that are not dead
)

// Limits.
const (
	MaxMembers  = 64
	NoMember    = 255
	MaxBuckets  = 1 << 16
	MaxVirtuals = 1024
	MaxPart     = 1200
)

// Member is an incarnation of a director in a table.
type Member struct {
	Node        uint64
	Incarnation uint64
	Weight      uint16
	Name        string // as in Heartbeat
}

// Function is the share function: what gives each packet its bucket.
type Function struct {
	Buckets  uint32    // 1 to MaxBuckets
	Seed     uint32    // not 0
	Virtuals []Virtual // in ascending order of address (netip.Addr.Compare), each once, at most MaxVirtuals
}

// Virtual is an address that is shared, and how. Fields are bits in the order of package flow: source address, source port, destination address,
// destination port: package flow's Sense. Mask is how many bits of the source address count.
type Virtual struct {
	Address netip.Addr // without a zone, and not IPv4-mapped IPv6
	Fields  uint8
	Mask    uint8
}
