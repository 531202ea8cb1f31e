package engine

import (
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// Lookup returns the entry with the key of r, and whether it is of this director.
func (e *Engine) Lookup(now time.Time, r *ipvssync.Record) (en table.Entry, local, known bool) {
	en, known = e.table.Get(now, r)
	return en, en.Origin == e.self, known
}

// IsSelf reports whether an origin is this director.
func (e *Engine) IsSelf(id peer.ID) bool { return id == e.self }

// Restore injects the entry with the key of r again: this kernel has lost or changed it.
func (e *Engine) Restore(now time.Time, r *ipvssync.Record) {
	e.now = now
	if en, known := e.table.Get(now, r); known && en.Remaining > 0 && e.kept(r) {
		e.inject(&en.Record, en.Age())
		e.counters[KernelReinjected]++
	}
}

// Replace injects the entry with the key of r again: this kernel has it with another real server.
func (e *Engine) Replace(now time.Time, r *ipvssync.Record) {
	e.now = now
	if en, known := e.table.Get(now, r); known && en.Remaining > 0 && e.kept(r) {
		e.move(now, &en.Record, en.Age())
		e.counters[KernelReinjected]++
	}
}

// Found publishes a connection that this kernel has, refreshed age seconds ago, and did not report. One that came into the kernel by
// a sync message, but is not in the replica, is not: this director did not inject it, so somebody else on this host did, and it must
// not spread. It reports whether it has published it.
func (e *Engine) Found(now time.Time, r *ipvssync.Record, age uint32) bool {
	e.now = now
	if e.join.state == Learning || !e.Mirrored(r) || r.Timeout <= age {
		return false
	}
	r.Normalize()
	if r.Flags&ipvssync.FlagSync != 0 && !e.table.Has(r) {
		e.counters[KernelForeign]++
		return false
	}
	r.Timeout -= age
	if !e.claim(now, r) {
		e.Replace(now, r) // what another one holds goes by what it has told
		return false
	}
	e.counters[KernelPublished]++
	return true
}
