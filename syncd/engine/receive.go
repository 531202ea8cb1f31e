package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// FromNetwork takes a datagram that came by a link, an index into Config.Links. Nothing of it is looked at before its tag has been
// verified, but for the place of the tag and of the key id.
func (e *Engine) FromNetwork(now time.Time, link int, src netip.AddrPort, b []byte) {
	e.now = now
	if why, drop := e.receive(now, link, src, b); drop {
		e.counters[why]++
		// Asked first, as the arguments are allocated: with two links every other datagram ends here.
		if why != DuplicateLink && why != RepairKnown && e.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
			e.cfg.Log.Debug("datagram dropped", "reason", why, "source", src, "interface", e.cfg.Links[link], "bytes", len(b))
		}
		return
	}
	e.counters[ReceivedDatagrams]++
	e.counters[ReceivedBytes] += uint64(len(b))
}

func (e *Engine) receive(now time.Time, link int, src netip.AddrPort, b []byte) (Counter, bool) {
	t, start, err := mirror.ParseTrailer(b)
	switch {
	case errors.Is(err, mirror.ErrNoTrailer):
		return e.stock(now, src, b)
	case errors.Is(err, mirror.ErrVersion):
		return DropVersion, true
	case err != nil:
		return DropTruncated, true
	}
	if t.KeyID == 0 {
		if e.cfg.Ring != nil && e.cfg.Auth == Enforce {
			return DropUnsigned, true
		}
	} else if e.cfg.Ring == nil {
		return DropUnknownKey, true
	} else if err := e.cfg.Ring.Verify(t.KeyID, b); errors.Is(err, seal.ErrUnknownKey) {
		return DropUnknownKey, true
	} else if err != nil {
		return DropForged, true
	}
	msg, err := ipvssync.Parse(b)
	if err != nil || msg.Version != 1 {
		return DropTruncated, true
	}
	if msg.SyncID != e.cfg.SyncID {
		return DropSyncID, true
	}
	if end, err := msg.End(); err != nil || end != start {
		return DropTruncated, true
	}
	why, drop := e.authentic(now, link, &t, msg)
	if !drop && t.KeyID == 0 && e.cfg.Ring != nil {
		e.counters[AcceptedUnsigned]++
	}
	return why, drop
}

// authentic handles a datagram whose sender is beyond doubt.
func (e *Engine) authentic(now time.Time, link int, t *mirror.Trailer, msg ipvssync.Message) (Counter, bool) {
	switch t.Kind {
	case mirror.KindHeartbeat:
		return e.heard(now, link, t)
	case mirror.KindRequest:
		return e.asked(now, link, t)
	}
	if !t.Kind.Stream() {
		return DropKind, true
	}
	repeated := t.Flags&mirror.FlagRepeat != 0
	_, v := e.peers.Stream(now, peer.ID(t.Sender), peer.Incarnation(t.Incarnation), t.Sequence, link, repeated)
	if v != peer.Accept {
		return verdicts[v], true
	}
	if repeated {
		e.counters[RepairRecovered]++
	}
	if t.Kind != mirror.KindRecords {
		return DropKind, true // a later version's; its number counts, so that nothing seems missing
	}
	if t.Origin != t.Sender || len(t.Body) != 0 {
		return DropTruncated, true
	}
	e.apply(now, t, msg)
	return 0, false
}

var verdicts = [...]Counter{
	peer.Repeated: DuplicateLink, peer.Replayed: DropReplayed, peer.WrongIncarnation: DropIncarnation, peer.Own: DropOwn,
	peer.Overflow: DropPeers, peer.Known: RepairKnown,
}

// apply enters the records of a stream datagram.
func (e *Engine) apply(now time.Time, t *mirror.Trailer, msg ipvssync.Message) {
	stamp, origin := table.Stamp{Grant: t.Grant, Clock: t.Clock}, peer.ID(t.Origin)
	e.follow(now, t.Clock, origin, "")
	age := e.waited(now, t.Clock)
	e.expect(msg)
	e.table.Fetch()
	r := msg.Reader()
	for {
		err := r.Next(&e.rec)
		if err != nil {
			if ipvssync.Skipped(err) {
				continue
			}
			return // the end: the sizes were checked by End
		}
		e.remote(now, &e.rec, origin, stamp, age)
	}
}

// lateTime is how long after a stall datagrams are read that had come meanwhile, with much to spare.
const lateTime = 3 * time.Second

// waited returns for how many seconds a datagram of this clock has waited to be read: none, unless this director was stalled.
func (e *Engine) waited(now time.Time, clock uint64) uint32 {
	if e.stalled == 0 || now.Sub(e.backAt) > lateTime {
		return 0
	}
	own := e.clock.Next(e.wall(now))
	return uint32(min(own-min(own, clock), uint64(e.stalled.Microseconds())) / 1e6)
}

// heard handles a heartbeat.
func (e *Engine) heard(now time.Time, link int, t *mirror.Trailer) (Counter, bool) {
	hb, err := mirror.ParseHeartbeat(t.Body)
	if err != nil {
		return DropTruncated, true
	}
	if sender := peer.ID(t.Sender); sender != e.self && sender != peer.IDOf(hb.Name) {
		return DropTruncated, true
	}
	h := peer.Heartbeat{
		Node: peer.ID(t.Sender), Incarnation: peer.Incarnation(t.Incarnation), Name: hb.Name, Control: t.Sequence, Stream: hb.Stream,
		Oldest: hb.Oldest, Teaches: hb.Teaches, Entries: hb.Entries, Confirm: t.Flags&mirror.FlagConfirm != 0,
		Uptime: time.Duration(hb.Uptime) * time.Millisecond, Synced: t.Flags&mirror.FlagSynced != 0, Link: link,
	}
	echoes := 0
	for echo := range hb.Echoes() {
		echoes++
		if peer.ID(echo.Node) == e.self && peer.Incarnation(echo.Incarnation) == e.cfg.Incarnation {
			h.Echo = peer.Echo{
				Node: e.self, Incarnation: e.cfg.Incarnation, Control: echo.Control, Stream: echo.Stream, Confirmed: echo.Confirmed,
				Age: time.Duration(echo.Age) * time.Millisecond, Counts: echo.Flags&mirror.EchoCounts != 0,
			}
		}
	}
	h.Paged = echoes == mirror.MaxEchoes
	before := e.missingBefore(&h)
	p, v, event := e.peers.Heartbeat(now, h)
	if v != peer.Own {
		e.join.stranger = now
		e.follow(now, t.Clock, peer.ID(t.Sender), hb.Name) // admitted or not: from now on this director's stamps compare with its
	}
	if event == peer.Admitted {
		e.admitted(now, p, &h, before)
	}
	e.happened(now, p, h, event)
	if v == peer.WrongIncarnation {
		e.join.knocking = now
	}
	if v != peer.Accept {
		return verdicts[v], true
	}
	pa := e.partner(p.ID)
	pa.heard = e.clock.Next(e.wall(now))
	if p.Confirm {
		e.waits(p)
	}
	return 0, false
}

// happened acts on what a heartbeat changed.
func (e *Engine) happened(now time.Time, p *peer.Peer, h peer.Heartbeat, event peer.Event) {
	switch event {
	case peer.Returned:
		e.returned(now, p)
	case peer.Namesake:
		e.counters[Namesakes]++
		up := now.Sub(e.started)
		if e.failure == nil && (up < h.Uptime || up == h.Uptime && e.cfg.Incarnation < h.Incarnation) {
			e.failure = fmt.Errorf("another director is named %q and runs longer than this one: give each its own --node", e.cfg.Node)
		} else if now.Sub(e.alarmed) > time.Minute {
			e.alarmed = now
			e.cfg.Log.Error("another director with this director's name has started", "node", e.cfg.Node, "interface", e.cfg.Links[h.Link])
		}
	case peer.Nothing, peer.Admitted:
	}
}
