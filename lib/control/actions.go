package control

import (
	"fmt"
	"net/url"
	"slices"
)

// Progress is a line of a long answer: how far it is. Such lines come at least
// once a second while the work goes on, and say nothing of its result.
type Progress struct {
	// Phase is what is being done, in a few words for an operator.
	Phase string `json:"phase"`
	// Done of Total have been done, in the unit of the phase; Total 0 means that
	// it is not known.
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
}

// Kinds of a Difference.
const (
	// MissingHere: only the other side has the entry.
	MissingHere = "missing_here"
	// MissingThere: only this director's table has the entry.
	MissingThere = "missing_there"
	// Differs: both have it, with other contents.
	Differs = "differs"
)

// WithKernel is the Difference.With of this director's own kernel.
const WithKernel = "kernel"

// CompareLine is one line of the answer to PathSyncCompare: exactly one field is
// set. Progress and differences come in any order, the summary last, and an answer
// without it is not complete. The comparison ends when the client goes away.
type CompareLine struct {
	Progress   *Progress       `json:"progress,omitempty"`
	Difference *Difference     `json:"difference,omitempty"`
	Summary    *CompareSummary `json:"summary,omitempty"`
}

// Difference is an entry that this director's table and its kernel, or a peer's
// table, do not agree upon.
type Difference struct {
	// With is WithKernel or the name of a peer.
	With string `json:"with"`
	Kind string `json:"kind"` // MissingHere, MissingThere or Differs
	// Why says in words what differs, and what may have caused it if that is known.
	Why string `json:"why"`
	// Which connection, as in Connection.
	Family   string `json:"family"`
	Protocol string `json:"protocol"`
	Client   string `json:"client"`
	Virtual  string `json:"virtual"`
	// Here is the entry of this director's table, There that of the other side;
	// absent where there is none.
	Here  *Connection `json:"here,omitempty"`
	There *Connection `json:"there,omitempty"`
}

// NewDifference describes an entry; nil is a side that lacks it.
func NewDifference(with, why string, here, there *Connection) Difference {
	d := Difference{With: with, Kind: Differs, Why: why, Here: here, There: there}
	key := here
	switch {
	case here == nil:
		d.Kind, key = MissingHere, there
	case there == nil:
		d.Kind = MissingThere
	}
	if key != nil {
		d.Family, d.Protocol, d.Client, d.Virtual = key.Family, key.Protocol, key.Client, key.Virtual
	}
	return d
}

// CompareSummary is the end of a comparison.
type CompareSummary struct {
	// Equal says that everything could be compared and nothing differs: the
	// kernel was readable, every live peer answered, and all agree.
	Equal  bool          `json:"equal"`
	Kernel CompareKernel `json:"kernel"`
	Peers  []ComparePeer `json:"peers"` // [] when there are none, never null
}

// CompareKernel is the comparison of the table with this director's own kernel.
type CompareKernel struct {
	// Compared is the number of entries that at least one side has.
	Compared uint64 `json:"compared"`
	Equal    bool   `json:"equal"` // readable, and Differ is 0
	Differ   uint64 `json:"differ"`
	// Explained counts by reason the entries that differ as they should, such as
	// those that ended while the kernel was read. They are not in Differ.
	Explained map[string]uint64 `json:"explained"` // {} when there are none, never null
	// Readable says that the kernel's table could be listed; if not, Why says
	// what prevented it, and nothing was compared.
	Readable bool   `json:"readable"`
	Why      string `json:"why"`
}

// ComparePeer is the comparison with one peer.
type ComparePeer struct {
	Node string `json:"node"`
	// Compared is the number of entries that at least one side has.
	Compared uint64 `json:"compared"`
	Equal    bool   `json:"equal"` // no Error, and Differ is 0
	Differ   uint64 `json:"differ"`
	// Unlisted is how many of Differ have no line of their own: syncd lists 10,000
	// for each peer.
	Unlisted uint64 `json:"unlisted"`
	// Error says why there is no result, "" otherwise.
	Error string `json:"error"`
}

// ResyncLine is one line of the answer to PathSyncResync: exactly one field is set.
// A resync fetches the tables of all live peers, or of the one that the parameter
// "peer" names, enters what is newer, and injects all entries into the kernel again.
// It ends when the client goes away; what was fetched by then stays.
type ResyncLine struct {
	Progress *Progress      `json:"progress,omitempty"`
	Summary  *ResyncSummary `json:"summary,omitempty"`
}

// ResyncSummary is the end of a resync.
type ResyncSummary struct {
	Peers []ResyncPeer `json:"peers"` // [] when there are none, never null
	// Injected is how many entries were given to the kernel again.
	Injected uint64 `json:"injected"`
}

// Complete reports whether everything that was asked for could be fetched.
func (s *ResyncSummary) Complete() bool {
	for _, p := range s.Peers {
		if p.Error != "" {
			return false
		}
	}
	return true
}

// ResyncPeer is what one peer has taught.
type ResyncPeer struct {
	Node string `json:"node"`
	// Entries were sent by the peer; Changed of them were new or newer here.
	Entries uint64 `json:"entries"`
	Changed uint64 `json:"changed"`
	TookMS  int64  `json:"took_ms"`
	// Error says why not everything was fetched, "" otherwise.
	Error string `json:"error"`
}

// FlushLine is one line of the answer to PathSyncFlush: exactly one field is set.
// A flush brings everything that this director knows of the buckets of the
// parameter "buckets" ("0-99,200" or "all") to all live peers, out of the kernel's
// own queue as well, and waits until their kernels have it.
type FlushLine struct {
	Progress *Progress     `json:"progress,omitempty"`
	Summary  *FlushSummary `json:"summary,omitempty"`
}

// FlushSummary is the end of a flush.
type FlushSummary struct {
	// Complete says that every live peer has confirmed everything; if not, Why
	// says what is missing.
	Complete bool   `json:"complete"`
	Why      string `json:"why"`
	// Buckets is how many were asked for.
	Buckets int `json:"buckets"`
	// BarrierMS is how long the kernel took to give out what it held back, in ms.
	BarrierMS float64 `json:"barrier_ms"`
	// HalfOpen is how many connections in SYN_RECV, of which the kernel does not
	// tell by itself, were sent.
	HalfOpen uint64 `json:"half_open"`
	// Sequence is the number of the stream up to which confirmation was waited for.
	Sequence uint64 `json:"sequence"`
	// Confirmed and Missing are the peers that have confirmed and those that have
	// not; [] when there are none, never null.
	Confirmed []FlushPeer `json:"confirmed"`
	Missing   []string    `json:"missing"`
	TookMS    float64     `json:"took_ms"` // the whole of it, in ms
}

// FlushPeer is a peer that has confirmed.
type FlushPeer struct {
	Node string  `json:"node"`
	MS   float64 `json:"ms"` // since the flush began
}

// Parameters checks that a request has no parameters but those named, as the
// effect of another one would be missed, and none of them twice. Its errors wrap
// ErrBadRequest.
func Parameters(q url.Values, names ...string) error {
	for name, values := range q {
		if !slices.Contains(names, name) {
			return fmt.Errorf("%w: %s: no such parameter", ErrBadRequest, name)
		}
		if len(values) > 1 {
			return fmt.Errorf("%w: %s: given %d times", ErrBadRequest, name, len(values))
		}
	}
	return nil
}
