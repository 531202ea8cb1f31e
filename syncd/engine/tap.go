package engine

import (
	"errors"
	"time"

	"saru/proto/ipvssync"
)

// FromTap takes one message of this director's kernel. What is gathered goes out when a datagram is full, and on Flush: call that
// when the tap has nothing more to read.
func (e *Engine) FromTap(now time.Time, b []byte) {
	e.now = now
	e.counters[TapMessages]++
	e.table.Fetch()
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
		case errors.Is(err, ipvssync.ErrEnd): // asked first, as most messages have one record
			return
		case ipvssync.Skipped(err):
			continue
		default:
			e.counters[TapDamaged]++
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

// Expect prepares for a message that FromTap will be given next or soon, and reports whether there is room to prepare for more of them.
// It makes FromTap faster and changes nothing else.
func (e *Engine) Expect(b []byte) bool {
	msg, err := ipvssync.Parse(b)
	return err != nil || e.expect(msg)
}

// expect prepares for the records of a message.
func (e *Engine) expect(msg ipvssync.Message) bool {
	room := true
	for r := msg.Reader(); ; {
		if err := r.Next(&e.rec); errors.Is(err, ipvssync.ErrEnd) || err != nil && !ipvssync.Skipped(err) {
			return room
		}
		room = e.table.Expect(&e.rec)
	}
}

// Flush sends what FromTap has gathered.
func (e *Engine) Flush() { e.builders.flush() }

// Mirrored reports whether --mirror and --mirror_service let a record of this director's kernel through.
func (e *Engine) Mirrored(r *ipvssync.Record) bool {
	return r.Virtual != e.cfg.Tick && e.cfg.Filter.Match(r)
}

// Match reports whether a record is mirrored.
func (f *Filter) Match(r *ipvssync.Record) bool {
	if f.TemplatesOnly && !r.Template() {
		return false
	}
	if len(f.Services) == 0 {
		return true
	}
	for i := range f.Services {
		if f.Services[i].matches(r) {
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
