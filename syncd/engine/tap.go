package engine

import (
	"errors"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// FromTap takes one message of this director's kernel. What is gathered goes out when a datagram is full, and on Flush: call that
// when the tap has nothing more to read.
func (e *Engine) FromTap(now time.Time, b []byte) {
	e.counters[TapMessages]++
	msg, err := ipvssync.Parse(b)
	if err != nil {
		e.counters[TapDamaged]++
		return
	}
	r := msg.Reader()
	for {
		err := r.Next(&e.rec)
		switch {
		case err == nil:
		case ipvssync.Skipped(err):
			continue
		default:
			if !errors.Is(err, ipvssync.ErrEnd) {
				e.counters[TapDamaged]++
			}
			return
		}
		if e.rec.Virtual == e.cfg.Tick {
			if e.cfg.OnTick != nil {
				e.cfg.OnTick(now, &e.rec)
			}
			continue
		}
		if e.rec.Timeout == 0 {
			e.rec.Timeout = defaultTimeout(&e.rec)
		}
		e.local(now, &e.rec)
	}
}

// Flush sends what FromTap has gathered.
func (e *Engine) Flush() { e.builders.flush() }

// local handles a record of this director's kernel: it has just forwarded a packet of the connection.
func (e *Engine) local(now time.Time, r *ipvssync.Record) {
	e.counters[TapRecords]++
	if !e.mirrored(r) {
		e.counters[TapFiltered]++
		return
	}
	if e.cfg.DropSequence {
		r.DropSeq()
	}
	r.Normalize()
	origin, newest, known := e.table.Newest(r)
	grant := newest.Grant
	switch {
	case !known && r.Flags&ipvssync.FlagSync != 0:
		// Taken over from somebody whose record is not here (this daemon was restarted): above whatever a first owner has.
		grant = mirror.NewGrant(0, 1)
	case known && origin != e.self:
		grant++
		e.counters[Takeovers]++
	}
	e.publish(now, r, grant)
}

// mirrored applies --mirror and --mirror_service.
func (e *Engine) mirrored(r *ipvssync.Record) bool {
	if e.cfg.TemplatesOnly && !r.Template() {
		return false
	}
	if len(e.cfg.Services) == 0 {
		return true
	}
	for i := range e.cfg.Services {
		if e.cfg.Services[i].matches(r) {
			return true
		}
	}
	return false
}

// matches reports whether a record belongs to the service, as the kernel finds it (ip_vs_sync.c, ip_vs_proc_conn: by mark first,
// then by protocol and virtual endpoint, then with port 0).
func (s *Service) matches(r *ipvssync.Record) bool {
	if s.Fwmark != 0 {
		return r.Fwmark == s.Fwmark
	}
	return s.Protocol == r.Protocol && s.Virtual.Addr() == r.Virtual.Addr() &&
		(s.Virtual.Port() == r.Virtual.Port() || s.Virtual.Port() == 0 || r.Virtual.Port() == 0)
}

// reclaim handles a taught record of a connection that this kernel has forwarded packets of since the daemon started, before its
// teacher knew: the connection is live here, and what is taught is older. It is published again above it.
func (e *Engine) reclaim(now time.Time, r *ipvssync.Record, taught table.Stamp) bool {
	origin, newest, known := e.table.Newest(r)
	if !known || origin != e.self || newest.Clock < wall(e.started) || taught.Grant < newest.Grant ||
		e.synced && taught.Clock >= newest.Clock {
		return false
	}
	cur, _ := e.table.Get(now, r)
	e.publish(now, &cur.Record, taught.Grant+1)
	return true
}

// inject gives the kernel a record that was refreshed age seconds ago. Connections get what remains of their time; a template keeps
// its timeout, as the kernel starts it anew whenever one of its connections ends.
func (e *Engine) inject(r *ipvssync.Record, age uint32) {
	timeout := r.Timeout
	if !r.Template() {
		r.Timeout -= min(age, r.Timeout-1)
	}
	e.cfg.Output.Inject(r)
	r.Timeout = timeout
	e.counters[Injected]++
}

func (e *Engine) name(id peer.ID) string {
	if n, ok := e.names[id]; ok {
		return n
	}
	return id.String()
}
