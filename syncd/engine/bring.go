package engine

import (
	"slices"
	"time"

	"saru/lib/flow"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// maxBefore bounds the shares that a walk compares with; beyond it everything is brought.
const maxBefore = 8

// walk is a way through the replica, to inject what this kernel did not need by the shares before.
type walk struct {
	planned bool
	wanted  []bool       // buckets; nil: which records are wanted must be asked of the shares
	list    []uint16     // these buckets, where the replica's own are the same; nil: they are not, and all entries are looked at
	at      table.Cursor // where they are
	done    bool
}

// Bringing reports whether entries are still to be injected because of what saru has told.
func (e *Engine) Bringing() bool { return e.share.settled < e.share.ticket }

// BringOwned goes on with that by up to limit entries of the replica, and reports whether there is more to do before the share can be ready.
func (e *Engine) BringOwned(now time.Time, limit int) bool {
	e.now = now
	if !e.share.owned {
		e.bringStep(now, limit)
	}
	return !e.share.owned
}

// bringStep goes on with injecting entries that this kernel is to have, and did not need by the shares before.
func (e *Engine) bringStep(now time.Time, limit int) {
	sh := &e.share
	if !e.Bringing() {
		return
	}
	w := &sh.walk
	if !w.planned {
		*w = sh.plan(!sh.owned)
	}
	bring := func(en *table.Entry) bool {
		if limit--; sh.brings(&en.Record) && !e.hasMade(en) && en.Remaining > 0 {
			e.counters[Brought]++
			e.enter(&en.Record, en.Age())
		}
		return true
	}
	switch {
	case w.done:
	case w.list != nil:
		for ; limit > 0 && len(w.list) > 0; w.list = w.list[1:] {
			e.table.Bucket(now, w.list[0], bring)
		}
		w.done = len(w.list) == 0
	default:
		w.at = e.table.Walk(now, w.at, limit, bring)
		w.done = w.at.Done
	}
	switch {
	case !w.done:
	case !sh.owned:
		sh.owned, sh.handed, sh.walk = true, sh.ticket, walk{}
	default:
		sh.settled, sh.before, sh.walk = sh.ticket, nil, walk{}
	}
}

// hasMade reports whether this director's kernel has reported the entry, since the join: then it has it.
func (e *Engine) hasMade(en *table.Entry) bool {
	return en.Origin == e.self && e.join.state > Publishing && en.Stamp.Clock > e.join.since
}

// plan returns the walk for the buckets that this director owns, and what is of none, or for the rest.
func (sh *sharing) plan(owned bool) walk {
	if !sh.next {
		return walk{planned: true, done: true}
	}
	now := sh.now
	if now == nil || len(sh.before) > maxBefore ||
		slices.ContainsFunc(sh.before, func(s *Share) bool { return s != nil && !s.sameFunction(now) }) {
		return walk{planned: true}
	}
	w := walk{planned: true, wanted: make([]bool, now.Buckets), list: []uint16{}}
	for b := range w.wanted {
		if owned && !now.Owned[b] || !owned && (now.Owned[b] || !now.Next[b]) {
			continue
		}
		// Without a share nothing was left out.
		if slices.ContainsFunc(sh.before, func(s *Share) bool { return s != nil && !s.Owned[b] && !s.Next[b] }) {
			w.wanted[b] = true
			w.list = append(w.list, uint16(b))
		}
	}
	if w.done = len(w.list) == 0; !now.plain() {
		w.list = nil
	}
	return w
}

// plain reports whether the buckets of the share are those of the replica.
func (s *Share) plain() bool {
	for _, f := range s.Functions {
		if f != flow.Default {
			return false
		}
	}
	return s.Buckets == table.Buckets
}

// brings reports whether the present walk injects a record: one that the kernel is to have now, and that some share before left out.
func (sh *sharing) brings(r *ipvssync.Record) bool {
	if wanted := sh.walk.wanted; wanted != nil {
		b, ok := sh.now.Bucket(r)
		return ok && wanted[b]
	}
	if !sh.now.keeps(r) || sh.now.owns(r) == sh.owned {
		return false
	}
	return len(sh.before) > maxBefore || slices.ContainsFunc(sh.before, func(s *Share) bool { return !s.keeps(r) })
}
