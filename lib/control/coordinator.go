package control

import (
	"fmt"
	"time"

	"saru/lib/flow"
)

// Paths that saru serves on its control socket.
const (
	// PathStatus returns one Status.
	PathStatus = "/status"
	// PathMembers returns a []Member: the one of the Status.
	PathMembers = "/members"
	// PathBuckets returns one Buckets.
	PathBuckets = "/buckets"
	// PathWhich returns one Which. It takes the parameters of WhichRequest.
	PathWhich = "/which"
	// PathDrain and PathUndrain (POST) stream DrainLine values; see there. They take
	// the parameters of DrainRequest.
	PathDrain   = "/drain"
	PathUndrain = "/undrain"
	// PathHistory streams Event values, oldest first. It takes the parameters of
	// HistoryRequest.
	PathHistory = "/history"
)

// States of a director, in Status and Member.
const (
	// StateJoining: it is no member of a table yet, or not any more, and wants to be.
	StateJoining = "joining"
	// StateMember: the table that counts has it as a member, and it has a lease.
	StateMember = "member"
	// StateDraining: it is a member that wants to own nothing, or is about to stop.
	StateDraining = "draining"
	// StateIsolated: it hears no other member of the table, or belongs to a side
	// without a majority. Whether it holds anything nevertheless is for --partition.
	StateIsolated = "isolated"
	// StateClosed: it lets nothing through for another reason, such as a lost lease
	// or another share function; an alarm tells which.
	StateClosed = "closed"
	// StateDead is of a Member only: the table has it, but nobody hears it any more.
	StateDead = "dead"
)

// Values of Status.Policy.
const (
	PolicyQuorum    = "quorum"
	PolicyAvailable = "available"
)

// Status is the reply to "status".
type Status struct {
	// Node is the name of the director that answers.
	Node  string `json:"node"`
	State string `json:"state"` // StateJoining, …, but not StateDead
	// Master is who made the table that counts here; "" if there is no table, or this
	// director does not know the name.
	Master string `json:"master"`
	// Term and Version are those of the table that counts here; 0: there is none.
	Term    uint32       `json:"term"`
	Version uint32       `json:"version"`
	Buckets BucketCounts `json:"buckets"`
	Lease   Lease        `json:"lease"`
	// Members are the table's, and whoever wants to be one, this director included,
	// by name; [] when there are none, never null.
	Members []Member `json:"members"`
	Sync    Sync     `json:"sync"`
	// Alarms are what is wrong now: "name: text", by name; [] when nothing is, never
	// null. Names are stable.
	Alarms []string `json:"alarms"`

	// Incarnation names this run of saru, as SyncPeer's does one of syncd; so do those
	// of the members.
	Incarnation string `json:"incarnation"`
	// UptimeMS is the time since saru started, SinceMS that since the table counts
	// here, in ms; Never when there is none.
	UptimeMS int64 `json:"uptime_ms"`
	SinceMS  int64 `json:"since_ms"`
	// Line is the line of tables that the table belongs to. Tables of different lines
	// cannot be compared: there were two farms.
	Line Line `json:"line"`
	// Policy is who chooses the table's successor: PolicyQuorum or PolicyAvailable; ""
	// without a table.
	Policy string `json:"policy"`
	// Pending is the version that was accepted as the table's successor and does not
	// count yet; 0: none.
	Pending uint32 `json:"pending"`
	// FunctionDigest names the table's share function, ConfiguredDigest that of this
	// director's own configuration: hexadecimal digits, the same for the same function,
	// or "".
	FunctionDigest   string `json:"function_digest"`
	ConfiguredDigest string `json:"configured_digest"`
	// Usable says that each virtual service of this director has a destination.
	Usable bool `json:"usable"`
	// Pings are the ping nodes.
	Pings Pings `json:"pings"`
	// Filter has what the filter has counted of each virtual address, by address; []
	// when there are none, never null.
	Filter []FilterCounts `json:"filter"`
	// Inside is what the filter has counted of what real servers send (LVS-NAT).
	Inside InsideCounts `json:"inside"`
	// Chance is what it has counted of frames that reached the shared MAC address by chance.
	Chance ChanceCounts `json:"chance"`
}

// Good reports whether nothing needs an operator.
func (s *Status) Good() bool {
	return len(s.Alarms) == 0 && (s.State == StateMember || s.State == StateDraining)
}

// BucketCounts is how many buckets there are, by what this director is to them.
type BucketCounts struct {
	// Total is how many the table has; without one, how many are configured.
	Total int `json:"total"`
	// Owned and Next are of how many the table names this director as owner, and as
	// next owner.
	Owned int `json:"owned"`
	Next  int `json:"next"`
	// Open is how many the filter lets through, as long as the lease lasts.
	Open int `json:"open"`
}

// Lease is until when the kernel lets anything through without being told again.
type Lease struct {
	// RemainingMS is 0 when there is none: nothing is let through.
	RemainingMS int64 `json:"remaining_ms"`
}

// Sync is what saru knows of syncd.
type Sync struct {
	// Synced says that syncd's table is complete and in this kernel, or that there is
	// no syncd to wait for (--syncd none).
	Synced bool `json:"synced"`
	// Error is why syncd cannot be asked, or has not done what it was asked; "" else.
	Error string `json:"error"`
}

// Line names a line of tables by the term in which it was founded, and by whom.
type Line struct {
	Term uint32 `json:"term"` // 0: there is none
	Node string `json:"node"` // a name, or 16 hexadecimal digits if it is not known
}

// Pings is how many ping nodes are configured and how many of them answer.
type Pings struct {
	Total   int `json:"total"`
	Reached int `json:"reached"`
}

// Member is what this director knows about one of the farm, or about itself.
type Member struct {
	Node   string `json:"node"`
	State  string `json:"state"` // StateJoining, …
	Weight int    `json:"weight"`
	// Owned is how many buckets the table gives to it.
	Owned int `json:"owned"`
	// Links are this director's interfaces, each with what it has brought of the
	// other; [] for this director itself, never null.
	Links []Link `json:"links"`

	// Next is of how many buckets it is the next owner; Open is how many it holds open,
	// as it says itself.
	Next int `json:"next"`
	Open int `json:"open"`
	// Incarnation names one run of its saru; see SyncPeer.
	Incarnation string `json:"incarnation"`
	// Self says that it is the director that answers, Master that it made the table.
	Self   bool `json:"self"`
	Master bool `json:"master"`
	// LastHeardMS is the time since it was last heard on any link, in ms, or Never; 0
	// for this director itself.
	LastHeardMS int64 `json:"last_heard_ms"`
	// Synced, Usable and Pings (how many it reaches) are what it says of itself, as
	// are the table that counts for it.
	Synced  bool   `json:"synced"`
	Usable  bool   `json:"usable"`
	Pings   int    `json:"pings"`
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
	// UptimeMS is the time since its saru started, in ms.
	UptimeMS int64 `json:"uptime_ms"`
}

// Link is what one interface has brought of a director.
type Link struct {
	Interface string `json:"interface"`
	// LastHeardMS is the time since the director was last heard on it, in ms, or
	// Never.
	LastHeardMS int64 `json:"last_heard_ms"`
}

// FilterCounts is what the filter of this director has counted of a virtual address
// since its table was installed.
type FilterCounts struct {
	Virtual string `json:"virtual"`
	// Accepted and Foreign count the packets that were let through, and those that
	// are another director's.
	Accepted uint64 `json:"accepted"`
	Foreign  uint64 `json:"foreign"`
	// Late counts those of the accepted that were dropped as IPVS did not take them.
	Late uint64 `json:"late"`
}

// InsideCounts is the same for packets of real servers, on the inside interface.
type InsideCounts struct {
	Accepted uint64 `json:"accepted"`
	Foreign  uint64 `json:"foreign"`
}

// ChanceCounts is the same for frames to the shared MAC address whose packets are for
// others; Rebounded ones are for another director itself and go nowhere.
type ChanceCounts struct {
	Accepted  uint64 `json:"accepted"`
	Foreign   uint64 `json:"foreign"`
	Rebounded uint64 `json:"rebounded"`
}

// Buckets is the reply to "buckets": the table that counts, and what is open here.
type Buckets struct {
	// Node is the name of the director that answers.
	Node    string `json:"node"`
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
	Buckets int    `json:"buckets"` // how many there are; 0 without a table
	// Members are the names of the table's directors; [] when there are none, never
	// null.
	Members []string `json:"members"`
	// Owner and Next have a byte for each bucket: an index of Members, or NoMember. In
	// JSON they are base64.
	Owner []byte `json:"owner"`
	Next  []byte `json:"next"`
	// Open are the buckets that the filter of this director lets through: "0-99,200",
	// "all" or "none". It is "none" without a lease.
	Open string `json:"open"`
}

// Check says what is wrong with the reply: who reads it uses its indexes.
func (b *Buckets) Check() error {
	if b.Buckets < 0 || len(b.Owner) != b.Buckets || len(b.Next) != b.Buckets {
		return fmt.Errorf("owners of %d and next owners of %d buckets: there are %d", len(b.Owner), len(b.Next), b.Buckets)
	}
	for i := range b.Owner {
		for _, m := range []byte{b.Owner[i], b.Next[i]} {
			if m != NoMember && int(m) >= len(b.Members) {
				return fmt.Errorf("bucket %d of member %d: there are %d", i, m, len(b.Members))
			}
		}
	}
	if b.Buckets == 0 {
		return nil
	}
	if _, err := flow.ParseBuckets(b.Open, b.Buckets); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return nil
}

// Which is the reply to "which": who answers a flow.
type Which struct {
	Bucket int `json:"bucket"`
	// Owner and Next are names of directors; "" is nobody.
	Owner string `json:"owner"`
	Next  string `json:"next"`
	// Open says that the filter of this director lets it through now.
	Open    bool   `json:"open"`
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
	// Sense is what of the flow counts, as in --sense, and Mask how many bits of the
	// source address.
	Sense string `json:"sense"`
	Mask  int    `json:"mask"`
}

// DrainLine is one line of the answer to PathDrain and PathUndrain: exactly one
// field is set. The work is to tell the director and to wait until it says that it
// has obeyed; with wait, also until it owns nothing and has nothing open any more, or
// (PathUndrain) owns something again. What was ordered stays when the client goes away.
type DrainLine struct {
	Progress *Progress     `json:"progress,omitempty"`
	Summary  *DrainSummary `json:"summary,omitempty"`
}

// DrainSummary is the end of it.
type DrainSummary struct {
	// Node is who was told.
	Node string `json:"node"`
	// Complete says that what was asked for is done; if not, Why says what is missing.
	Complete bool   `json:"complete"`
	Why      string `json:"why"`
	// Obeyed says that the director has confirmed the order.
	Obeyed bool `json:"obeyed"`
	// Owned is how many buckets it owns, Open how many it holds open, at the end.
	Owned  int   `json:"owned"`
	Open   int   `json:"open"`
	TookMS int64 `json:"took_ms"`
}

// Event is a line of the history: something that operators want to know.
type Event struct {
	Time time.Time `json:"time"`
	// Name is short and stable, such as "table" or "dead".
	Name string `json:"name"`
	Text string `json:"text"`
	// Alarm says that an alarm began. That it is over is an event of the same name.
	Alarm bool `json:"alarm"`
	// Term and Version are those of the table that counted; 0: none.
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
}
