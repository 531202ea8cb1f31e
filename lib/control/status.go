package control

// Paths that syncd serves on its control socket.
const (
	// PathSyncStatus returns one SyncStatus.
	PathSyncStatus = "/sync/status"
	// PathSyncConnections streams Connection values, one a line. It takes the
	// parameters of ConnectionFilter.
	PathSyncConnections = "/sync/connections"
	// PathSyncCompare streams CompareLine values; see there. It changes nothing.
	PathSyncCompare = "/sync/compare"
	// PathSyncResync (POST) streams ResyncLine values; see there.
	PathSyncResync = "/sync/resync"
	// PathSyncFlush (POST) streams FlushLine values; see there.
	PathSyncFlush = "/sync/flush"
)

// SyncStatus is the reply to "sync status".
type SyncStatus struct {
	// Node is the name of the director that answers.
	Node string `json:"node"`
	// Synced says that this director's table is complete and in its kernel.
	Synced      bool        `json:"synced"`
	Connections SyncCounts  `json:"connections"`
	Peers       []SyncPeer  `json:"peers"` // [] when there are none, never null
	LagMS       Lag         `json:"lag_ms"`
	Counters    SyncCounter `json:"counters"`
	// Join is how this run of syncd came, or comes, to its table.
	Join SyncJoin `json:"join"`
	// Backlog is what peers that missed something can still be sent again.
	Backlog SyncBacklog `json:"backlog"`
	// Audit is the comparison with peers that goes on by itself.
	Audit SyncAudit `json:"audit"`
	// KernelAudit is the comparison of the table with this director's kernel.
	KernelAudit SyncKernelAudit `json:"kernel_audit"`
	Keys        SyncKeys        `json:"keys"`
	// ClockLeadMS is by how much the clock of the farm, which runs ahead with the
	// fastest director's that was heard, is ahead of this director's, in ms.
	ClockLeadMS int64 `json:"clock_lead_ms"`
	// Incarnation names this run of syncd, as SyncPeer's does a peer's.
	Incarnation string `json:"incarnation"`
	// KernelEntries is the value of --kernel_entries.
	KernelEntries string `json:"kernel_entries"`
	// Share is what saru has told.
	Share SyncShare `json:"share"`
}

// Never stands for a time since something that has not happened yet.
const Never = -1

// States of SyncJoin.
const (
	// JoinJoining: the table is being fetched, or peers are being waited for.
	JoinJoining = "joining"
	// JoinSynced: the table is complete, or nobody was there to teach one.
	JoinSynced = "synced"
	// JoinPartial: taught by a peer that was itself not complete, or not taught
	// although there are peers.
	JoinPartial = "partial"
)

// SyncJoin is how a director that has started gets the farm's table.
type SyncJoin struct {
	State string `json:"state"` // JoinJoining, JoinSynced or JoinPartial
	// Teacher is the peer that teaches or has taught; "" if none has.
	Teacher string `json:"teacher"`
	// Entries of Total, the number that the teacher announced, have been learnt.
	Entries uint64 `json:"entries"`
	Total   uint64 `json:"total"`
	// Percent is Entries of Total in whole percent, 100 when the join is done.
	Percent int `json:"percent"`
	// TookMS is the time from the start of syncd to the end of the join, or to
	// now while it goes on, in ms.
	TookMS int64 `json:"took_ms"`
	// Attempts is how many teachers have been asked so far.
	Attempts int `json:"attempts"`
}

// SyncBacklog is what is kept of this director's own stream.
type SyncBacklog struct {
	// Bytes are kept, of at most LimitBytes (--backlog).
	Bytes      int `json:"bytes"`
	LimitBytes int `json:"limit_bytes"`
	// Datagrams is how many these are.
	Datagrams int `json:"datagrams"`
	// ReachMS is the age of the oldest of them, in ms: a peer that was away for
	// less needs no comparison.
	ReachMS int64 `json:"reach_ms"`
}

// SyncAudit is what came of the audits with peers.
type SyncAudit struct {
	// IntervalMS is the mean time between audits (--audit_interval), in ms; 0
	// means that there are only those that a loss asks for.
	IntervalMS int64 `json:"interval_ms"`
	// LastMSAgo is the time since the last audit ended, in ms, or Never.
	LastMSAgo int64 `json:"last_ms_ago"`
	// Peer is with whom it was.
	Peer string `json:"peer"`
	// Equal says that it found no difference.
	Equal bool `json:"equal"`
	// DifferingBuckets is in how many of the buckets it found one.
	DifferingBuckets int `json:"differing_buckets"`
	// Repaired counts the entries that audits have brought since the start.
	Repaired uint64 `json:"repaired"`
	// Rounds counts the audits that have ended since the start.
	Rounds uint64 `json:"rounds"`
}

// SyncKernelAudit is what came of comparing the table with the kernel's own.
type SyncKernelAudit struct {
	// LastMSAgo is the time since the last comparison ended, in ms, or Never.
	LastMSAgo int64 `json:"last_ms_ago"`
	// Readable says that the kernel's table can be listed in time; if not, Why
	// says what prevents it.
	Readable bool   `json:"readable"`
	Why      string `json:"why"`
	// MissingInKernel and MissingInReplica count the entries that the last
	// comparison found on one side only.
	MissingInKernel  uint64 `json:"missing_in_kernel"`
	MissingInReplica uint64 `json:"missing_in_replica"`
	// Repaired counts those that were injected or published since the start.
	Repaired uint64 `json:"repaired"`
}

// SyncKeys is how this director signs and whom it believes.
type SyncKeys struct {
	// Signing is the id of the key that signs; 0: nothing is signed.
	Signing int `json:"signing"`
	// Auth is the value of --auth.
	Auth string `json:"auth"`
}

// SyncCounts is the number of records in the table by where they come from.
type SyncCounts struct {
	// Local counts what this director's own kernel reported.
	Local int `json:"local"`
	// Remote counts what peers reported.
	Remote int `json:"remote"`
}

// SyncPeer is what a director knows about another one.
type SyncPeer struct {
	Node string `json:"node"`
	// Incarnation names one run of the peer's daemon: 64 random bits in 16
	// hexadecimal digits (a JSON number would lose bits in most languages).
	Incarnation string `json:"incarnation"`
	// Sequence is the newest number of the peer's stream that was received.
	Sequence uint64 `json:"sequence"`
	// Missing is how many messages of the stream were sent and not received.
	Missing uint64 `json:"missing"`
	// LastHeardMS is the time since the peer's last authentic message, in ms.
	LastHeardMS int64 `json:"last_heard_ms"`
	// Synced is what the peer says of itself.
	Synced bool `json:"synced"`
	// Links are this director's interfaces, each with what it has brought of the
	// peer; [] when unknown, never null.
	Links []SyncLink `json:"links"`
	// GivenUp is how many of the missing messages cannot be sent again; what
	// they said is made good by an audit.
	GivenUp uint64 `json:"given_up"`
	// Lost says that the peer is not heard any more.
	Lost bool `json:"lost"`
	// Teaches is the ADDR:PORT on which the peer teaches (--join); "": it does
	// not.
	Teaches string `json:"teaches"`
	// Entries is the size of the peer's table, as it says.
	Entries uint64 `json:"entries"`
	// Confirmed is the number of this director's stream up to which the peer has
	// everything in its kernel.
	Confirmed uint64 `json:"confirmed"`
}

// SyncLink is what one interface has brought of a peer.
type SyncLink struct {
	Interface string `json:"interface"`
	// LastHeardMS is the time since the peer was last heard on it, in ms, or
	// Never.
	LastHeardMS int64 `json:"last_heard_ms"`
}

// Lag is how long a record waits in this director's kernel and tap before syncd has it, in milliseconds, over the last 20 s. It is
// measured with the tick's own records, which wait as long as any. The way over the segment and into a peer's kernel comes on top.
// Both are 0 when nothing was measured yet.
type Lag struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// SyncCounter holds counters by name since the daemon started. The names
// beginning with drop_ are always present: see NewSyncCounter.
type SyncCounter map[string]uint64

// Names of the counters for datagrams that changed nothing, by reason.
const (
	// DropForged: the authentication tag is wrong.
	DropForged = "drop_forged"
	// DropReplayed: the sequence number was seen already or is too old.
	DropReplayed = "drop_replayed"
	// DropTruncated: shorter than its own lengths say, or malformed.
	DropTruncated = "drop_truncated"
	// DropUnknownKey: signed with a key id that the key file does not have.
	DropUnknownKey = "drop_unknown_key"
	// DropIncarnation: from a sender that has not echoed our incarnation.
	DropIncarnation = "drop_incarnation"
	// DropUnsigned: without a tag, while --auth does not permit it.
	DropUnsigned = "drop_unsigned"
)

// NewSyncCounter returns counters in which every drop reason is present as 0, so
// that a script need not tell "none" from "does not exist".
func NewSyncCounter() SyncCounter {
	return SyncCounter{
		DropForged: 0, DropReplayed: 0, DropTruncated: 0,
		DropUnknownKey: 0, DropIncarnation: 0, DropUnsigned: 0,
	}
}

// Connection is one line of "sync connections", and part of a line of "inspect".
type Connection struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Protocol is "tcp", "udp", "sctp", "ah", "esp" or a decimal number.
	Protocol string `json:"protocol"`
	// Client, Virtual and Real are ADDR:PORT, IPv6 addresses in brackets. A
	// persistence template has client port 0.
	Client  string `json:"client"`
	Virtual string `json:"virtual"`
	Real    string `json:"real"`
	// State is the kernel's name of it, such as "ESTABLISHED".
	State string `json:"state"`
	// Flags are the names of the kernel's IP_VS_CONN_F_* bits.
	Flags []string `json:"flags"`
	// Origin is the node whose kernel reported the connection.
	Origin string `json:"origin"`
	// ExpiresS is the time until the record ends by itself, in seconds.
	ExpiresS int64 `json:"expires_s"`
}
