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
	RemoteRecords // records of peers
	RemoteStale   // of them, those that were not newer than the replica
	Injected      // records given to the kernel
	Takeovers     // connections that this director took over from another one
	Expired       // entries whose time was over
	Namesakes     // heartbeats of another live director with this director's name

	RepairRequests   // requests sent for datagrams that are missing
	RepairHeld       // requests not sent, as another director had asked for the same
	RepairAsked      // datagrams that others asked this director for
	RepairGone       // of them, those that it does not have any more
	RepairDatagrams  // datagrams sent again
	RepairBytes      // bytes of them
	RepairKnown      // repeated datagrams that were here already; normal, as all hear what one asked for
	RepairRecovered  // repeated datagrams that were missing
	LearnedRecords   // records pulled from peers' tables
	LearnedChanged   // of them, those that were newer than the replica
	Reclaimed        // records published again, as a peer took them over while it could not be heard
	KernelReinjected // records injected again, as this kernel had lost or changed them
	KernelPublished  // connections that this kernel had and had not reported
	KernelForeign    // entries of this kernel that somebody else has injected: left alone
	Overruled        // records of this kernel that another director's, of a later grant, stands above
	Late             // records of peers of before this director was given the bucket, which must not overwrite what its kernel has
	LeftOut          // records of peers that were not injected, by --kernel_entries next
	Brought          // records that were injected when their bucket came to this director

	numCounters
)

var counterNames = [numCounters]string{
	"drop_forged", "drop_replayed", "drop_truncated", "drop_unknown_key", "drop_incarnation", "drop_unsigned", "drop_syncid",
	"drop_version", "drop_kind", "drop_own", "drop_peers", "drop_stock",
	"duplicate_link", "accepted_unsigned", "sent_datagrams", "sent_bytes", "received_datagrams", "received_bytes",
	"tap_messages", "tap_damaged", "tap_records", "tap_filtered", "sent_records", "remote_records", "remote_stale",
	"injected", "takeovers", "expired", "namesakes",
	"repair_requests", "repair_held", "repair_asked", "repair_gone", "repair_datagrams", "repair_bytes", "repair_known", "repair_recovered",
	"learned_records", "learned_changed", "reclaimed", "kernel_reinjected", "kernel_published", "kernel_foreign",
	"overruled", "late", "left_out", "brought",
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
