package engine

import (
	"time"

	"saru/proto/ipvssync"
)

// The kernel moves a TCP or SCTP connection to another real server when a record says so that does not close it. It does not move a
// template, which a record only gives more time, nor what is inactive, as all UDP is (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn).
// A record that closes a TCP or SCTP connection to another server than the kernel's is left to the kernel's judgement: the port may be in
// use again.

const (
	// moveTime is how long a template takes to go that was given a second to live.
	moveTime = 2 * time.Second
	// maxMoving bounds the templates that are on the way; the audit of the kernel moves those beyond.
	maxMoving = 1024
)

// moving is a template whose old entry has been told to go.
type moving struct {
	record ipvssync.Record // its key
	due    time.Time       // when the new one is injected
}

// move injects a record of a connection that this director's kernel has with another real server.
func (e *Engine) move(now time.Time, r *ipvssync.Record, age uint32) {
	switch {
	case r.Template():
		if len(e.moving) < maxMoving {
			old := ipvssync.Record{
				Protocol: r.Protocol, State: r.State, Flags: r.Flags | ipvssync.FlagInactive, Fwmark: r.Fwmark, Timeout: 1,
				Client: r.Client, Virtual: r.Virtual, Real: r.Real,
			}
			e.cfg.Output.Inject(&old)
			e.moving = append(e.moving, moving{old, now.Add(moveTime)})
		}
	case r.Flags&ipvssync.FlagInactive != 0 && r.Protocol != ipvssync.ProtocolTCP && r.Protocol != ipvssync.ProtocolSCTP:
		// As an active one it replaces what is there; the record as it is then sets right how it is counted.
		r.Flags &^= ipvssync.FlagInactive
		e.inject(r, age)
		r.Flags |= ipvssync.FlagInactive
		e.inject(r, age)
	default:
		e.inject(r, age)
	}
}

// enter injects a record. A template whose old entry is on its way out is not given more time meanwhile.
func (e *Engine) enter(r *ipvssync.Record, age uint32) {
	if r.Template() {
		for i := range e.moving {
			m := &e.moving[i].record
			if m.Client == r.Client && m.Virtual == r.Virtual && m.Protocol == r.Protocol {
				return
			}
		}
	}
	e.inject(r, age)
}

// moveStep injects the templates whose old entries have gone.
func (e *Engine) moveStep(now time.Time) {
	n := 0
	for n < len(e.moving) && !now.Before(e.moving[n].due) {
		if en, known := e.table.Get(now, &e.moving[n].record); known && en.Remaining > 0 && e.kept(&en.Record) {
			e.inject(&en.Record, en.Age())
		}
		n++
	}
	e.moving = e.moving[n:]
	if len(e.moving) == 0 {
		e.moving = nil
	}
}
