package engine

import (
	"log/slog"
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// Times of the protocol.
const (
	// HeartbeatInterval is how often a director says that it lives. A gap at the tail of its stream is known that soon.
	HeartbeatInterval = 100 * time.Millisecond
	// DeadTime is how long a peer may be silent before it counts as lost.
	DeadTime = 2 * time.Second
	// JoinTime is how long a starting director waits for peers and for what they teach before it calls itself synced all the same.
	JoinTime = 5 * time.Second
	// quietTime is how long nobody must be heard for a starting director to conclude that it is alone.
	quietTime = 1 * time.Second
)

// Auth says which datagrams are signed and which are believed.
type Auth uint8

// The steps of --auth.
const (
	Enforce     Auth = iota // sign; believe what is signed
	Permissive              // sign; believe unsigned ones too, stock kernels' among them
	ReceiveOnly             // do not sign; believe both
)

// Output takes the engine's decisions. What a call is given is valid during the call only.
type Output interface {
	// Send multicasts a datagram on every link.
	Send(datagram []byte)
	// Inject makes the kernel of this director enter the record.
	Inject(r *ipvssync.Record)
}

// Service names a virtual service by what a record has of it. Fwmark services have no address, but a mark.
type Service struct {
	Protocol uint8
	Virtual  netip.AddrPort // port 0: every port
	Fwmark   uint32         // 0: none
}

// Config is what an engine needs to know.
type Config struct {
	Node        string
	Incarnation peer.Incarnation
	Links       []string // names of the interfaces
	SyncID      uint8
	Auth        Auth
	Ring        *seal.Ring                              // nil: --insecure
	Tick        netip.AddrPort                          // virtual service of the tap's own connection, which is never mirrored
	OnTick      func(now time.Time, r *ipvssync.Record) // told of records of that connection; may be nil

	DropSequence  bool      // the kernel's reports have sequence numbers that are wrong
	TemplatesOnly bool      // --mirror templates
	Services      []Service // --mirror_service; none: all

	Output Output
	Log    *slog.Logger
	Now    time.Time
}

// Engine mirrors. It is not safe for concurrent use.
type Engine struct {
	cfg      Config
	self     peer.ID
	peers    *peer.Set
	table    *table.Table
	clock    table.Clock
	counters Counters
	names    map[peer.ID]string // of origins, for status
	builders builders
	stream   uint64 // newest sequence number of the own stream

	started       time.Time
	nextHeartbeat time.Time
	nextExpiry    time.Time

	synced   bool
	stranger time.Time // when any other director was last heard, admitted or not
	progress time.Time // when the join last came forward
	lessons  map[peer.ID]*lesson
	told     time.Time        // when the latest table was sent to the end
	wants    map[peer.ID]bool // who is to be sent the table
	teach    teaching
	rebind   rebinding

	failure error
	alarmed time.Time

	// Scratch memory, so that the steady state does not allocate.
	rec    ipvssync.Record
	body   []byte
	echoes []peer.Echo
	wire   []mirror.Echo
}

// New returns an engine with an empty replica.
func New(cfg Config) *Engine {
	self := peer.IDOf(cfg.Node)
	e := &Engine{
		cfg: cfg, self: self,
		peers:   peer.NewSet(self, cfg.Incarnation, len(cfg.Links)),
		table:   table.New(cfg.Now),
		names:   map[peer.ID]string{self: cfg.Node},
		lessons: map[peer.ID]*lesson{},
		wants:   map[peer.ID]bool{},
		started: cfg.Now,
	}
	e.builders.engine = e
	return e
}

// Synced reports whether the replica is complete as far as this director can know.
func (e *Engine) Synced() bool { return e.synced }

// Failure returns why the daemon must stop, or nil: another live director has this one's name.
func (e *Engine) Failure() error { return e.failure }

// Counters returns a copy of the counters.
func (e *Engine) Counters() Counters { return e.counters }

// Node returns the name of this director.
func (e *Engine) Node() string { return e.cfg.Node }

// Incarnation returns the incarnation of this daemon.
func (e *Engine) Incarnation() peer.Incarnation { return e.cfg.Incarnation }

// SetKeys changes how datagrams are signed and verified from now on.
func (e *Engine) SetKeys(auth Auth, ring *seal.Ring) { e.cfg.Auth, e.cfg.Ring = auth, ring }
