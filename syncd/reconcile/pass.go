package reconcile

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"time"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// Replica is the table that the kernel is compared with. The calls lock it for a short time each; fn is called with the lock
// held and is quick.
type Replica interface {
	// Lookup fills out with what the replica has of the records, at most 256 of them.
	Lookup(records []ipvssync.Record, out []View)
	// Walk calls fn for a part of the replica, from the cursor on, and returns the cursor for the next call.
	Walk(c table.Cursor, fn func(e *table.Entry, local bool) bool) table.Cursor
}

// View is what the replica has of a record.
type View struct {
	Entry table.Entry
	Known bool // there is an entry
	Local bool // it comes from this director
}

const (
	// batch is how many records are looked up with one call.
	batch = 256
	// settle is how many seconds ago a record of another director must have been made for the kernel to have it.
	settle = 3
	// Settled is after how long what was made before is no younger than that, in whole seconds of two clocks, and all of it is compared.
	Settled = (settle + 2) * time.Second
	// ending is how much of its life an entry must have left: replica and kernel count in seconds of their own.
	ending = 5 * time.Second
	// early is how much earlier than in the replica an entry may expire in the kernel.
	early = 30 * time.Second
	// manyFindings is the default of Config.Findings. A finding takes half a kilobyte at most.
	manyFindings = 1 << 15
	// wait is how many lines, or places of the replica, go by before ctx is looked at.
	wait = 4096
)

// Result is what a pass has found.
type Result struct {
	Began, Ended time.Time
	Kernel       int // entries of the kernel that were compared
	Replica      int // entries of the replica that were compared
	Duplicates   int // lines that came again
	Ignored      int // lines that are no matter of the mirror: the tick's, services that are not mirrored, unknown states
	Counts       Counts
	Findings     []Finding
	Truncated    bool // there were more than Config.Findings
	pass         *Pass
}

// Listed reports whether the kernel has listed the entry of a record, or the template that it was before it was given up.
func (r *Result) Listed(rec *ipvssync.Record) bool {
	p := r.pass
	return p != nil && (p.seen.has(hashOf(p.seed, rec)) || rec.Template() && p.givenUp[p.templateHash(rec)])
}

// Pass compares once: Line for each line of the kernel's list, Finish at its end. It keeps 8 to 13 bytes of each entry. Not safe for
// concurrent use, and used once.
type Pass struct {
	cfg      Config
	replica  Replica
	services *services
	seed     maphash.Seed
	seen     keySet
	givenUp  map[uint64]bool // invalidated templates, without their virtual port
	result   Result

	records []ipvssync.Record
	conns   []Conn
	views   []View
}

// NewPass begins a pass.
func NewPass(cfg Config, r Replica) *Pass {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Findings == 0 {
		cfg.Findings = manyFindings
	}
	return &Pass{
		cfg: cfg, replica: r, services: indexServices(cfg.Services), seed: maphash.MakeSeed(), givenUp: map[uint64]bool{},
		result:  Result{Began: cfg.Now()},
		records: make([]ipvssync.Record, 0, batch), conns: make([]Conn, 0, batch), views: make([]View, batch),
	}
}

// Run makes a pass over the whole list. On an error there is no result: from half a list nothing follows.
func Run(ctx context.Context, cfg Config, r Replica, list iter.Seq2[ipvs.ProcConn, error]) (Result, error) {
	p := NewPass(cfg, r)
	lines := 0
	for c, err := range list {
		if err != nil {
			return Result{}, err
		}
		if lines++; cfg.Limit > 0 && lines > cfg.Limit {
			return Result{}, fmt.Errorf("%w: more than %d entries", ErrTooLong, cfg.Limit)
		}
		if lines%wait == 0 && ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		p.Line(&c)
	}
	return p.Finish(ctx)
}

// Line takes a line of the kernel's list.
func (p *Pass) Line(c *ipvs.ProcConn) {
	if c.Virtual == p.cfg.Tick {
		p.result.Ignored++
		return
	}
	p.conns = p.conns[:len(p.conns)+1]
	k := &p.conns[len(p.conns)-1]
	drop := func() { p.conns = p.conns[:len(p.conns)-1] }
	switch p.services.convert(c, k) {
	case invalidated:
		drop()
		p.givenUp[p.templateHash(&ipvssync.Record{Protocol: c.Protocol, Client: c.Client, Virtual: c.Virtual, Flags: ipvssync.FlagTemplate})] = true
		return
	case unknown:
		drop()
		p.result.Ignored++
		return
	}
	if k.Fault == EngineData && k.Record.Template() {
		// Several of a client differ only in what is not shown.
		drop()
		p.result.Counts[Engine]++
		return
	}
	if !p.seen.add(hashOf(p.seed, &k.Record)) {
		drop()
		p.result.Duplicates++
		return
	}
	p.records = append(p.records, k.Record)
	if len(p.conns) == batch {
		p.flush()
	}
}

// templateHash names a template without its virtual port, which older kernels overwrite when they give it up. Of a mark's, the
// "address" names the service.
func (p *Pass) templateHash(r *ipvssync.Record) uint64 {
	t := ipvssync.Record{Protocol: r.Protocol, Flags: ipvssync.FlagTemplate, Client: r.Client, Virtual: anyPort(r.Virtual)}
	return hashOf(p.seed, &t)
}

// flush compares what was gathered.
func (p *Pass) flush() {
	if len(p.conns) == 0 {
		return
	}
	p.replica.Lookup(p.records, p.views[:len(p.records)])
	now := p.cfg.Now()
	for i := range p.conns {
		k, v := &p.conns[i], &p.views[i]
		if !p.cfg.mirrored(&k.Record) && (!v.Known || !p.cfg.mirrored(&v.Entry.Record)) {
			p.result.Ignored++
			continue
		}
		p.result.Kernel++
		if kind, ok := p.judge(k, v); ok {
			p.note(now, kind, k, v)
		}
	}
	clear(p.views[:len(p.conns)]) // they hold memory of persistence engines
	p.records, p.conns = p.records[:0], p.conns[:0]
}

// note counts a kind, and keeps it if it is a difference.
func (p *Pass) note(now time.Time, kind Kind, k *Conn, v *View) {
	p.result.Counts[kind]++
	if !kind.Difference() {
		return
	}
	if len(p.result.Findings) == p.cfg.Findings {
		p.result.Truncated = true
		return
	}
	f := Finding{Kind: kind, At: now}
	if k != nil {
		c := *k
		f.Kernel = &c
	}
	if v.Known {
		e := v.Entry
		f.Replica, f.Local = &e, v.Local
	}
	p.result.Findings = append(p.result.Findings, f)
}

// Finish looks in the replica for what the kernel has not listed.
func (p *Pass) Finish(ctx context.Context) (Result, error) {
	p.flush()
	for c := (table.Cursor{}); !c.Done; {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		now := p.cfg.Now()
		c = p.replica.Walk(c, func(e *table.Entry, local bool) bool {
			r := &e.Record
			if r.Virtual == p.cfg.Tick || !p.cfg.mirrored(r) {
				return true
			}
			p.result.Replica++
			if !p.seen.has(hashOf(p.seed, r)) {
				v := View{Entry: *e, Known: true, Local: local}
				p.note(now, p.absent(&v), nil, &v)
			}
			return true
		})
	}
	p.result.Ended, p.result.pass = p.cfg.Now(), p
	return p.result, nil
}
