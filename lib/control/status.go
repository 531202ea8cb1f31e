package control

// Paths that syncd serves on its control socket.
const (
	// PathSyncStatus returns one SyncStatus.
	PathSyncStatus = "/sync/status"
	// PathSyncConnections streams Connection values, one a line. It takes the
	// parameters of ConnectionFilter.
	PathSyncConnections = "/sync/connections"
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
