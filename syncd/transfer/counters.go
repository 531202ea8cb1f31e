package transfer

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"

	"saru/lib/seal"
	wire "saru/proto/transfer"
)

// Errors of sessions, besides seal.ErrUnknownKey, seal.ErrForged and those of package proto/transfer.
var (
	ErrUnsigned    = errors.New("unsigned, and signatures are required")
	ErrReflected   = errors.New("this director's own hello came back")
	ErrGroup       = errors.New("of another multicast group")
	ErrIncarnation = errors.New("not the incarnation that is meant")
	ErrBusy        = errors.New("teaches as many as it can")
	ErrRefused     = errors.New("refused by the teacher")
	ErrStopping    = errors.New("teacher stops")
	ErrTimeout     = errors.New("took too long")
	ErrClosed      = errors.New("connection closed before the end")
	ErrUnexpected  = errors.New("frame that does not belong here")
	ErrExcess      = errors.New("more than was announced or allowed")
	ErrBucket      = errors.New("bucket that was not asked for")
	ErrOrigin      = errors.New("origin that was not announced")
	ErrRecord      = errors.New("damaged record")
	ErrCount       = errors.New("other number of entries than were sent")
)

// errCrowded ends a connection that makes room for a newer one.
var errCrowded = errors.New("too many connections that have not proved themselves")

// Counter names one of the counters of sessions.
type Counter uint8

// Counters. Each session raises exactly one of those up to Failed.
const (
	Finished           Counter = iota // in good order
	RefusedBusy                       // as many are taught already
	RefusedConnects                   // made room: too many connections that had not proved themselves
	RefusedIncarnation                // the hello is not of the incarnation that is meant, or is meant for another one
	Refused                           // purpose or page that the teacher does not know
	Unsigned                          // and --auth enforce
	UnknownKey                        // signed with a key that is not in the key file
	Forged                            // a tag is wrong: also of a recorded session
	Reflected                         // own hello
	WrongGroup                        // of another multicast group
	WrongVersion                      // of another format version
	Malformed                         // hello, frame, payload or record, or one that does not belong there
	Excess                            // more than was announced or allowed
	Timeout                           // a deadline has passed
	Closed                            // connection lost
	Stopped                           // as one of the two daemons stops
	Failed                            // anything else
	Entries                           // sent by a server, received by a client
	Bytes
	Skipped // entries that could not be encoded, or meant nothing

	numCounters
)

var counterNames = [numCounters]string{
	"finished", "refused_busy", "refused_connects", "refused_incarnation", "refused", "unsigned", "unknown_key", "forged", "reflected",
	"wrong_group", "wrong_version", "malformed", "excess", "timeout", "closed", "stopped", "failed", "entries", "bytes", "skipped",
}

// String returns the counter's name in JSON, without a prefix.
func (c Counter) String() string { return counterNames[c] }

// Counters count sessions, of a server or of pulls. The zero value is ready; all methods may be called concurrently.
type Counters struct{ values [numCounters]atomic.Uint64 }

// Get returns the value of a counter.
func (c *Counters) Get(n Counter) uint64 { return c.values[n].Load() }

// All iterates over names, each behind the prefix ("join_forged" for "join_"), and values.
func (c *Counters) All(prefix string) iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for i := range c.values {
			if !yield(prefix+counterNames[i], c.values[i].Load()) {
				return
			}
		}
	}
}

func (c *Counters) add(n Counter, by uint64) {
	if c != nil {
		c.values[n].Add(by)
	}
}

// reasons are the errors that have a counter of their own, the first that applies.
var reasons = [...]struct {
	err error
	n   Counter
}{
	{context.Canceled, Stopped}, {ErrStopping, Stopped}, {errCrowded, RefusedConnects}, {ErrBusy, RefusedBusy},
	{ErrIncarnation, RefusedIncarnation}, {ErrRefused, Refused}, {ErrUnsigned, Unsigned}, {seal.ErrUnknownKey, UnknownKey},
	{seal.ErrForged, Forged}, {ErrReflected, Reflected}, {ErrGroup, WrongGroup}, {wire.ErrVersion, WrongVersion}, {wire.ErrMagic, Malformed},
	{wire.ErrHello, Malformed}, {wire.ErrFrame, Malformed}, {wire.ErrPayload, Malformed}, {ErrUnexpected, Malformed}, {ErrBucket, Malformed},
	{ErrOrigin, Malformed}, {ErrRecord, Malformed}, {ErrCount, Malformed}, {ErrExcess, Excess}, {ErrTimeout, Timeout},
	{context.DeadlineExceeded, Timeout}, {ErrClosed, Closed},
}

// outcome returns the counter of a session that ended with err.
func outcome(err error) Counter {
	if err == nil {
		return Finished
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.n
		}
	}
	return Failed
}
