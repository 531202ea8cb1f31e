package engine

import (
	"errors"
	"net/netip"
	"time"

	"saru/lib/ipvs"
	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// stock handles a message without a trailer: that of a stock kernel's master thread. It has neither order nor incarnation, so the
// last one to arrive wins, as in a stock kernel's backup thread, and like there a closing record of another real server does not touch
// a connection (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn).
func (e *Engine) stock(now time.Time, src netip.AddrPort, b []byte) (Counter, bool) {
	msg, err := ipvssync.Parse(b)
	if err != nil {
		return DropTruncated, true
	}
	if e.cfg.Ring != nil && e.cfg.Auth == Enforce {
		return DropUnsigned, true
	}
	if msg.SyncID != e.cfg.SyncID {
		return DropSyncID, true
	}
	if _, err := msg.End(); err != nil {
		return DropStock, true
	}
	name := "kernel " + src.Addr().String()
	origin := peer.IDOf(name)
	e.call(origin, name)
	r := msg.Reader()
	for {
		err := r.Next(&e.rec)
		switch {
		case err == nil:
			e.stockRecord(now, &e.rec, origin)
		case ipvssync.Skipped(err):
		case errors.Is(err, ipvssync.ErrEnd):
			e.counters[AcceptedUnsigned]++
			return 0, false
		default:
			return DropStock, true
		}
	}
}

func (e *Engine) stockRecord(now time.Time, r *ipvssync.Record, origin peer.ID) {
	if r.Timeout == 0 {
		r.Timeout = defaultTimeout(r)
	}
	cur, known := e.table.Get(now, r)
	if known && r.Flags&ipvssync.FlagInactive != 0 && cur.Record.Real != r.Real {
		e.counters[RemoteRecords]++
		e.counters[RemoteStale]++
		return
	}
	grant := cur.Stamp.Grant
	e.remote(now, r, origin, table.Stamp{Grant: grant, Clock: e.clock.Next(e.wall(now))}, 0)
}

// defaultTimeout is what the kernel gives a record that brings no timeout, as none of version 0 does (ip_vs_sync.c, ip_vs_proc_conn).
func defaultTimeout(r *ipvssync.Record) uint32 {
	return ipvs.DefaultTimeout(r.Protocol, r.State, r.Template())
}
