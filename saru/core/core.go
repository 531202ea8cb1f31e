package core

import (
	"fmt"
	"math/rand/v2"
	"time"

	"saru/lib/peer"
	"saru/proto/coord"
)

// leastSlack is how much a delayed renewal can prolong a lease at the least (docs/SAFETY.md, section 3).
const leastSlack = 50 * time.Millisecond

// Partition is the value of --partition.
type Partition uint8

// Partitions.
const (
	ByTableSize   Partition = iota // quorum from three members on
	WithQuorum                     // a side without a majority closes
	WithAvailable                  // each side goes on
)

// Never stands for a survivor delay that does not end.
const Never = time.Duration(-1)

// Config is what does not change while a director runs.
type Config struct {
	Node        string
	Incarnation peer.Incarnation
	Links       int // number of interfaces

	Keepalive, Warntime, Deadtime, Lease, Guard, StartDelay time.Duration

	Partition     Partition
	SurvivorDelay time.Duration // Never: a minority stays closed
	Expect        int           // directors at a cold start; 0: unknown
	Weight        uint16
	PingNodes     int // how many are configured

	// Incarnations draws the incarnations after the first; nil: peer.NewIncarnation.
	Incarnations func() peer.Incarnation
	// Jitter returns a random duration below its argument, to keep proposers apart; nil: math/rand.
	Jitter func(time.Duration) time.Duration
}

// Check says whether the timers satisfy what docs/SAFETY.md asks of them.
func (c *Config) Check() error {
	switch {
	case c.Lease < 2*c.Keepalive+100*time.Millisecond:
		return fmt.Errorf("--lease %v is below 2 --keepalive + 100ms = %v: one lost heartbeat would close this director", c.Lease, 2*c.Keepalive+100*time.Millisecond)
	case c.Lease+leastSlack+c.Guard > c.Deadtime:
		return fmt.Errorf("--deadtime %v is below --lease + 50ms + --guard = %v: a director could be replaced while it still holds", c.Deadtime, c.Lease+leastSlack+c.Guard)
	case c.Warntime <= c.Keepalive || c.Warntime > c.Deadtime:
		return fmt.Errorf("--warntime %v must be above --keepalive %v and at most --deadtime %v", c.Warntime, c.Keepalive, c.Deadtime)
	}
	return nil
}

// wait is rule 3 of docs/SAFETY.md, section 4: after it, every hold under a table whose successor counts has ended.
func (c *Config) wait() time.Duration { return c.Lease + c.Slack() + c.Guard }

// Slack is how much a delayed renewal can prolong a lease: the filter's fence is made so. A renewal that takes longer from reading the clock to the kernel is refused, which costs the kernel a
// grace period of RCU each time; so farms with long timers, of slow machines, have more, a sixth of the lease, as far as deadtime allows.
func (c *Config) Slack() time.Duration {
	return max(leastSlack, min(c.Lease/6, c.Deadtime-c.Lease-c.Guard)).Truncate(time.Millisecond)
}

// Local is what the daemon finds out about its own machine.
type Local struct {
	Synced   bool // syncd has joined, or there is none to wait for
	Usable   bool // each virtual service has a destination
	Pings    int  // ping nodes that answer
	Function coord.Function
	Term     uint32 // newest term that syncd has been told: a new line begins above it
}

// Desired is what the filter is to do. The lease belongs to just this set: whoever renews it must have made the set true before.
type Desired struct {
	Gen   uint64   // rises when Open or Function changes, not with Lease
	Open  []uint64 // bitset of buckets
	Lease time.Time
	// Function is that of the table; its addresses are open, others stay closed.
	Function *coord.Function
}

// Event is something that operators want to know.
type Event struct {
	At    time.Time
	Alarm bool
	Name  string // short and stable: "table", "dead", "lapsed", ...
	Text  string
}

// Flush asks for syncd's flush of buckets that are closed here; answer with Flushed.
type Flush struct {
	Gen     uint64
	Buckets []uint16
}

// Output is what is to be done now, in this order.
type Output struct {
	Filter *Desired // nil: as before
	Flush  *Flush
	Send   []coord.Message // on every link
	Events []Event
}

// member names an incarnation of a director.
type member struct{ node, incarnation uint64 }

// Core is the coordinator. It is not safe for concurrent use.
type Core struct {
	cfg   Config
	self  member
	peers *peer.Set
	views map[uint64]*view
	all   []*view // the same, in order of their first hearing
	// strangers are members that are heard and have not proved that they live, as they do not hear this director: what was heard of them last.
	strangers map[member]stranger
	heard     map[member]time.Time // when anybody last heard it, as far as is known here

	started, now, ticked time.Time
	listens              time.Time // since when a farm is looked for
	rumour               time.Time // when somebody who has not proved yet that it lives last spoke of a table
	wordLine             coord.Line
	met                  bool              // somebody of a foreign line is heard
	metUntil             time.Time         // nothing is opened before
	word                 time.Time         // the same, of somebody who was known before this director began anew
	known                map[member]uint64 // newest numbers of those that were known then
	nextBeat             time.Time
	dirty                bool      // something of the heartbeat has changed
	asked                time.Time // when heartbeats were last asked for
	beaten               time.Time // when the last own one was sent
	muted                uint64    // generation that the kernel must confirm before anything is sent; 0: none
	sent                 ring      // send times of own heartbeats

	local    Local
	fn       coord.Digest // of local.Function
	draining bool
	leaving  bool
	handed   bool // the table that counts took this director out
	answer   uint64

	// Tables.
	store         *store
	counts        *table
	pending       *table
	pendingBallot coord.Ballot
	pendingAt     time.Time
	acceptedAt    time.Time // when counts was accepted, or came to count if it was not
	promise       coord.Ballot
	countsAt      time.Time
	dead          map[member]bool // counted dead under counts
	proposal      *proposal
	neededSince   time.Time // since when counts should be replaced; zero: it need not
	quietUntil    time.Time // no proposal before, after one has failed
	maxTerm       uint32    // highest term of a line that was heard of
	fetching      fetching
	founding      *founding
	silent        time.Time // nobody is supported before
	command       *command
	failed        int // proposals in a row

	// Holdings.
	notBefore []time.Time       // of each bucket: it must not be opened before; zero: at any time
	given     map[uint16]bool   // buckets that a table taken for the successor took away: closed until one counts, as it may have been said that they are
	awaiting  map[uint16]member // buckets that open as soon as this member releases them
	release   release
	lapsed    bool
	held      bool // has had a lease under counts
	lease     time.Time
	desired   Desired
	applied   uint64 // generation that the kernel has confirmed
	stale     bool   // holdings must be computed again
	opens     time.Time

	// What saves time with many members: most datagrams change nothing.
	swept    time.Time // when it was last looked who is not heard any more
	death    time.Time // when somebody may have to be counted dead
	resupply bool      // support may have changed
	times    []time.Time
	review   bool // what is needed of the next table may have changed
	reviewed time.Time
	need     *need // as it was then

	others  map[uint64]string    // nodes that have a farm with other timers
	without map[uint64]string    // nodes that this side has taken over from, though they may live
	passing map[string]time.Time // when alarms end by themselves
	// overtaken is the newest version of this line that was heard of while the lease was running under an older one.
	overtaken uint32

	minoritySince time.Time
	ineligible    map[member]time.Time
	out           Output
	alarms        map[string]string
	failure       error
}

// New returns the coordinator of a director whose kernel has been confirmed closed.
func New(cfg Config, now time.Time) *Core {
	self := member{uint64(peer.IDOf(cfg.Node)), uint64(cfg.Incarnation)}
	if cfg.Jitter == nil {
		cfg.Jitter = func(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d))) }
	}
	if cfg.Incarnations == nil {
		cfg.Incarnations = peer.NewIncarnation
	}
	return &Core{
		cfg: cfg, self: self, started: now, now: now, ticked: now, listens: now, nextBeat: now,
		peers: peer.NewSet(peer.ID(self.node), cfg.Incarnation, cfg.Links),
		views: map[uint64]*view{}, heard: map[member]time.Time{}, dead: map[member]bool{},
		store: newStore(), awaiting: map[uint16]member{}, given: map[uint16]bool{}, strangers: map[member]stranger{}, ineligible: map[member]time.Time{}, alarms: map[string]string{}, known: map[member]uint64{}, others: map[uint64]string{}, without: map[uint64]string{}, passing: map[string]time.Time{}, stale: true,
	}
}

// SetLocal tells what was found out about this machine.
func (c *Core) SetLocal(now time.Time, l Local) {
	c.advance(now)
	digest := l.Function.Digest()
	if digest != c.fn {
		c.stale = true
	}
	if l.Synced != c.local.Synced || l.Usable != c.local.Usable || l.Pings != c.local.Pings || digest != c.fn {
		c.dirty = true
	}
	c.local, c.fn = l, digest
	c.review = true
	c.maxTerm = max(c.maxTerm, l.Term)
	c.step()
}

// SetWeight changes the share of this director.
func (c *Core) SetWeight(now time.Time, weight uint16) {
	c.advance(now)
	c.dirty = c.dirty || weight != c.cfg.Weight
	c.cfg.Weight, c.review = weight, true
	c.step()
}

// Applied tells that the kernel lets through what Desired of this generation said, and nothing else.
func (c *Core) Applied(now time.Time, gen uint64) {
	c.advance(now)
	c.applied = max(c.applied, gen)
	if c.applied >= c.release.gen && c.release.gen != 0 && c.release.closed.IsZero() {
		c.release.closed = c.now
	}
	if c.muted != 0 && c.applied >= c.muted {
		c.muted, c.dirty, c.stale = 0, true, true
	}
	c.step()
}

// Flushed tells that syncd has brought the buckets of a Flush to the other kernels, or that it cannot.
func (c *Core) Flushed(now time.Time, gen uint64) {
	c.advance(now)
	if c.release.gen == gen && c.release.flushing {
		c.release.flushing, c.release.flushed = false, true
	}
	c.step()
}

// Lapsed tells that the filter had to close because the lease could not be renewed in time.
func (c *Core) Lapsed(now time.Time) {
	c.advance(now)
	if c.held && !c.lapsed {
		c.lapse("the kernel's lease ended before it was renewed")
	}
	c.step()
}

// Failure is why this director must not go on, or nil: it closes and ends.
func (c *Core) Failure() error { return c.failure }

// Drain makes this director own nothing, or take part again.
func (c *Core) Drain(now time.Time, on bool) {
	c.advance(now)
	if c.draining != on {
		c.draining, c.dirty, c.review = on, true, true
		c.event("drain", fmt.Sprintf("draining: %v", on))
	}
	c.step()
}

// Leave makes this director hand its buckets over; Left says when that is done.
func (c *Core) Leave(now time.Time) {
	c.advance(now)
	if !c.leaving {
		c.leaving, c.dirty, c.review = true, true, true
	}
	c.step()
}

// Left reports whether nothing of the farm depends on this director any more: the table that counts gives it nothing, and its kernel is closed; or
// nobody is there to hand anything to.
func (c *Core) Left() bool {
	switch {
	case c.applied < c.desired.Gen:
		return false
	case c.counts == nil:
		return true
	case c.counts.index(c.self) < 0:
		for v := range c.live {
			if c.counts.index(v.who) >= 0 && (v.beat.Counts.Line != c.counts.ref.Line || v.beat.Counts.Version < c.counts.Version) {
				return false // it may not know yet
			}
		}
		return c.release.done
	}
	for v := range c.live {
		if v.beat.State&coord.StateLeaves == 0 && c.alike(v) {
			return false
		}
	}
	return true
}

// Tick lets time pass. Call it at Next, or whenever.
func (c *Core) Tick(now time.Time) {
	c.advance(now)
	c.swept = time.Time{}
	c.step()
}

// advance takes the time over, and notices timers that were missed (docs/SAFETY.md, section 7).
func (c *Core) advance(now time.Time) {
	if now.After(c.now) {
		c.now = now
	}
	if late := c.now.Sub(c.ticked); late > 3*c.cfg.Keepalive {
		for m := range c.heard {
			c.heard[m] = c.now
		}
		for p := range c.peers.Peers {
			if !p.Lost {
				p.LastHeard = c.now
			}
		}
		c.swept = time.Time{}
		c.event("stalled", fmt.Sprintf("this director's own timers stood still for %v", late.Round(time.Millisecond)))
	}
	c.ticked = c.now
}

// step makes everything follow from what is known.
func (c *Core) step() {
	if c.now.Sub(c.swept) >= c.cfg.Keepalive/20 {
		c.swept = c.now
		c.expire()
		c.countDead()
	}
	c.catchUp()
	c.yieldToForeign()
	c.observe()
	c.learnReleases()
	c.updateLease()
	c.rebuild()
	c.releaseStep()
	c.found()
	c.propose()
	c.rebuild()
	c.beat()
}

// Next is when Tick should be called at the latest.
func (c *Core) Next() time.Time {
	next := c.nextBeat
	sooner := func(t time.Time) {
		if !t.IsZero() && t.After(c.now) && t.Before(next) {
			next = t
		}
	}
	sooner(c.opens)
	if !c.release.done && !c.release.closed.IsZero() {
		sooner(c.release.closed.Add(c.cfg.Guard))
	}
	if c.held && !c.lapsed {
		sooner(c.lease)
	}
	sooner(c.death)
	if p := c.proposal; p != nil {
		sooner(p.again)
	} else if c.need != nil {
		sooner(c.quietUntil)
	}
	if at := c.asksAt(); !at.IsZero() {
		sooner(later(at, c.asked.Add(c.cfg.Keepalive/4)))
	}
	return next
}

// Take returns what is to be done and forgets it.
func (c *Core) Take() Output {
	out := c.out
	c.out = Output{}
	return out
}

func (c *Core) event(name, text string) {
	c.out.Events = append(c.out.Events, Event{At: c.now, Name: name, Text: text})
}

// alarm raises or, with an empty text, ends an alarm.
func (c *Core) alarm(name, text string) {
	old, on := c.alarms[name]
	switch {
	case text == "" && on:
		delete(c.alarms, name)
		c.event(name, "over: "+old)
	case text != "" && text != old:
		c.alarms[name] = text
		c.out.Events = append(c.out.Events, Event{At: c.now, Alarm: true, Name: name, Text: text})
	}
}
