package engine

import (
	"cmp"
	"log/slog"
	"math/rand/v2"
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
	// JoinTime is how long a starting director tries to be taught, counted from its start and from the last thing that came forward,
	// before it calls itself synced all the same.
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

	DropSequence bool // the kernel's reports have sequence numbers that are wrong
	Filter       Filter

	Teaches       netip.AddrPort // where this director's table can be pulled; invalid: nowhere
	Backlog       int            // bytes of datagrams that are kept for repair; 0: DefaultBacklog
	AuditInterval time.Duration  // how often the replica is compared with that of a peer; 0: never
	KernelNext    bool           // --kernel_entries next: this kernel has the entries only of buckets that are, or may soon be, this director's

	Output Output
	Log    *slog.Logger
	Now    time.Time
}

// Filter says what is mirrored: --mirror and --mirror_service.
type Filter struct {
	TemplatesOnly bool
	Services      []Service // none: all
}

// Engine mirrors. It is not safe for concurrent use.
type Engine struct {
	cfg      Config
	self     peer.ID
	peers    *peer.Set
	partners map[peer.ID]*partner
	table    *table.Table
	clock    table.Clock
	counters Counters
	names    map[peer.ID]string // of origins, for status
	forgot   time.Time          // when some of those were looked for that are of no use
	builders builders
	stream   uint64 // newest sequence number of the own stream
	backlog  backlog
	rand     *rand.Rand

	now           time.Time // of the latest call
	started       time.Time
	nextHeartbeat time.Time
	nextExpiry    time.Time
	lastTick      time.Time
	trusted       time.Time     // when this director may judge again who is lost: it was stalled itself
	stalled       time.Duration // how long, the last time
	backAt        time.Time     // when that was over

	join    joining
	share   sharing
	pulls   pulls
	confirm confirming
	rebind  rebinding
	moving  []moving // in the order in which they are due
	budget  float64  // datagrams that may be repeated now

	failure error
	alarmed time.Time

	leadSaid   time.Duration // lead at the latest alarm
	leadSaidAt time.Time     // when that was

	// Scratch memory, so that the steady state does not allocate.
	rec    ipvssync.Record
	body   []byte
	echoes []peer.Echo
	wire   []mirror.Echo
	ranges []mirror.Range
}

// partner is what the engine knows of a peer beyond its liveness.
type partner struct {
	ask      time.Time      // when to ask for what is missing; the zero time: nothing is
	asked    []mirror.Range // what another director has asked this peer for
	askedAt  time.Time
	heard    uint64    // this director's clock when the peer was last heard
	from, to uint64    // the clock when the latest silence of the peer began (0: never) and when it ended (0: not yet)
	pulled   time.Time // when the latest pull from it began
	audited  time.Time // when the latest one began that went well
	failures int       // pulls from it that failed, in a row
	awaited  uint64    // number up to which it waits for its stream to be confirmed; 0: it does not
	told     uint64    // number up to which a heartbeat has confirmed its stream

	notBefore time.Time // it is not pulled from until then, but by a newcomer
	givenUp   uint64    // of its stream, when it was last looked
	lossAt    time.Time // when that last grew, or compare was set
	compare   bool      // its replica may have what this one lacks: pull soon
}

// New returns an engine with an empty replica.
func New(cfg Config) *Engine {
	self := peer.IDOf(cfg.Node)
	e := &Engine{
		cfg: cfg, self: self,
		peers:    peer.NewSet(self, cfg.Incarnation, len(cfg.Links)),
		partners: map[peer.ID]*partner{},
		table:    table.New(cfg.Now),
		names:    map[peer.ID]string{self: cfg.Node},
		rand:     rand.New(rand.NewPCG(uint64(cfg.Incarnation), uint64(self))),
		now:      cfg.Now,
		started:  cfg.Now,
		share:    sharing{next: cfg.KernelNext, owned: true},
	}
	e.builders.engine = e
	e.backlog.limit = cmp.Or(cfg.Backlog, DefaultBacklog)
	e.join = joining{own: table.New(cfg.Now), asked: map[peer.ID]peer.Incarnation{}}
	return e
}

// Synced reports whether the replica is complete as far as this director can know, and in its kernel.
func (e *Engine) Synced() bool { return e.join.state == Synced }

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

// Keys returns what SetKeys was last given.
func (e *Engine) Keys() (*seal.Ring, Auth) { return e.cfg.Ring, e.cfg.Auth }

// Len returns the number of entries of the replica.
func (e *Engine) Len() int { return e.table.Len() }

// Remote returns the number of entries that come from others.
func (e *Engine) Remote() int { return e.table.Len() - e.table.Origin(e.self) }

// SetFilter changes what is mirrored from now on. What was mirrored before stays until it expires.
func (e *Engine) SetFilter(f Filter) { e.cfg.Filter = f }

// Filter returns what is mirrored.
func (e *Engine) Filter() Filter { return e.cfg.Filter }

// SetLimits changes the size of the backlog and how often the replica is compared with a peer's.
func (e *Engine) SetLimits(backlog int, auditInterval time.Duration) {
	e.backlog.setLimit(cmp.Or(backlog, DefaultBacklog))
	e.cfg.AuditInterval = auditInterval
	e.pulls.next = time.Time{}
}

// SetTeaches says where this director's table can be pulled from now on.
func (e *Engine) SetTeaches(at netip.AddrPort) { e.cfg.Teaches = at }

// partner returns the account of a peer.
func (e *Engine) partner(id peer.ID) *partner {
	p := e.partners[id]
	if p == nil {
		p = &partner{}
		e.partners[id] = p
	}
	return p
}
