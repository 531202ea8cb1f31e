package engine

// Counter names one of the engine's counters.
type Counter uint8

// Counters. Those of dropped datagrams come first; each dropped datagram raises exactly one.
const (
	DropForged      Counter = iota // the tag is wrong
	DropReplayed                   // seen before, or too old to tell
	DropTruncated                  // lengths that do not agree with the datagram, or a body that is malformed
	DropUnknownKey                 // signed with a key that is not in the key file
	DropIncarnation                // its sender has not proved that it lives now
	DropUnsigned                   // not signed, and --auth enforce
	DropSyncID                     // of another --syncid
	DropVersion                    // trailer of another format version
	DropKind                       // of a kind that this version does not know
	DropOwn                        // this director's own datagram, come back
	DropPeers                      // from more nodes than are kept account of
	DropStock                      // stock kernel's message with a damaged record; as in a kernel, what stood before it counts

	DuplicateLink    // a copy that came by another link; normal with two interfaces
	AcceptedUnsigned // datagrams believed without a signature
	SentDatagrams
	SentBytes
	ReceivedDatagrams // believed
	ReceivedBytes
	TapMessages   // messages read from the kernel
	TapDamaged    // of them, those that do not parse
	TapRecords    // records read from the kernel, the tick's left out
	TapFiltered   // of them, those that --mirror or --mirror_service leaves out
	SentRecords   // records sent live
	TaughtRecords // records sent to newcomers
	RemoteRecords // records of peers
	RemoteStale   // of them, those that were not newer than the replica
	Injected      // records given to the kernel
	Takeovers     // connections that this director took over from another one
	Expired       // entries whose time was over
	Namesakes     // heartbeats of another live director with this director's name

	numCounters
)

var counterNames = [numCounters]string{
	"drop_forged", "drop_replayed", "drop_truncated", "drop_unknown_key", "drop_incarnation", "drop_unsigned", "drop_syncid",
	"drop_version", "drop_kind", "drop_own", "drop_peers", "drop_stock",
	"duplicate_link", "accepted_unsigned", "sent_datagrams", "sent_bytes", "received_datagrams", "received_bytes",
	"tap_messages", "tap_damaged", "tap_records", "tap_filtered", "sent_records", "taught_records", "remote_records", "remote_stale",
	"injected", "takeovers", "expired", "namesakes",
}

// String returns the counter's name in JSON.
func (c Counter) String() string { return counterNames[c] }

// Counters are all counters of an engine since its start.
type Counters [numCounters]uint64

// All iterates over name and value.
func (c *Counters) All(yield func(string, uint64) bool) {
	for i, v := range c {
		if !yield(counterNames[i], v) {
			return
		}
	}
}
