package engine

import (
	"errors"
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// maxNames bounds the names that are kept for status: whoever may send unsigned messages can invent sources.
const maxNames = 1024

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
	if len(e.names) < maxNames {
		e.names[origin] = name
	}
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
	e.remote(now, r, origin, table.Stamp{Grant: grant, Clock: e.clock.Next(wall(now))}, 0, false)
}

// tcpTimeouts are the kernel's for each state, in seconds (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts).
var tcpTimeouts = [...]uint32{2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120}

// defaultTimeout is what the kernel gives a record that brings no timeout, as none of version 0 does (ip_vs_sync.c, ip_vs_proc_conn:
// the table's for the state, otherwise three minutes).
func defaultTimeout(r *ipvssync.Record) uint32 {
	switch {
	case r.Template():
	case r.Protocol == 6 && int(r.State) < len(tcpTimeouts):
		return tcpTimeouts[r.State]
	case r.Protocol == 17:
		return 300 // ip_vs_proto_udp.c, udp_timeouts
	}
	return 180
}
