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
	if why, drop := e.receive(now, link, src, b); drop {
		e.counters[why]++
		// Asked first, as the arguments are allocated: with two links every other datagram ends here.
		if why != DuplicateLink && e.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
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
	if t.Kind == mirror.KindHeartbeat {
		return e.heard(now, link, t)
	}
	if !t.Kind.Stream() {
		return DropKind, true
	}
	sender := peer.ID(t.Sender)
	p, v := e.peers.Stream(now, sender, peer.Incarnation(t.Incarnation), t.Sequence, link)
	if v != peer.Accept {
		return verdicts[v], true
	}
	switch t.Kind {
	case mirror.KindRecords:
		if t.Origin != t.Sender || len(t.Body) != 0 {
			return DropTruncated, true
		}
	case mirror.KindTable:
		if len(t.Body) != int(msg.Count)*mirror.TableItemLen {
			return DropTruncated, true
		}
		l := e.lesson(p.ID)
		if msg.Count == 0 {
			l.done, l.running, l.settled = now, false, l.missing
			return 0, false
		}
		if !l.running {
			l.running, l.missing = true, p.Missing()
		}
		e.progress = now
	default:
		return DropKind, true // a later version's; its number counts, so that nothing seems missing
	}
	e.apply(now, t, msg)
	return 0, false
}

var verdicts = [...]Counter{
	peer.Repeated: DuplicateLink, peer.Replayed: DropReplayed, peer.WrongIncarnation: DropIncarnation, peer.Own: DropOwn,
	peer.Overflow: DropPeers,
}

// reorderTime is how long after the end of a table its datagrams may still come, overtaken by it.
const reorderTime = time.Second

// lesson is what this director knows of a peer's teaching.
type lesson struct {
	done    time.Time // when the peer had sent all of its table; the zero time: not yet
	running bool
	missing uint64 // datagrams of its stream that were missing when the running table began
	settled uint64 // and when the latest complete one began: that table makes up for them
	suspect bool   // something was missing at the previous heartbeat
}

func (e *Engine) lesson(id peer.ID) *lesson {
	l := e.lessons[id]
	if l == nil {
		l = &lesson{}
		e.lessons[id] = l
	}
	return l
}

// apply enters the records of a stream datagram.
func (e *Engine) apply(now time.Time, t *mirror.Trailer, msg ipvssync.Message) {
	stamp, origin := table.Stamp{Grant: t.Grant, Clock: t.Clock}, peer.ID(t.Origin)
	e.clock.Seen(t.Clock, wall(now))
	r, age := msg.Reader(), uint32(0)
	// A peer whose table was complete here once cannot tell of connections that were taken over behind this director's back; what it tells then is
	// newer, also when this director was stalled and has old reports to publish.
	first := t.Kind == mirror.KindTable
	if l := e.lesson(peer.ID(t.Sender)); e.synced && !l.done.IsZero() && now.Sub(l.done) > reorderTime {
		first = false
	}
	for i := 0; ; i++ {
		err := r.Next(&e.rec)
		if err != nil {
			if ipvssync.Skipped(err) {
				continue
			}
			return // the end: the sizes were checked by End
		}
		if t.Kind == mirror.KindTable {
			it := mirror.TableItemAt(t.Body, i)
			stamp.Clock, age = t.Clock-min(it.ClockOffset, t.Clock), it.Age
		}
		e.remote(now, &e.rec, origin, stamp, age, first)
	}
}

// remote enters a record of another director and injects it if it is the newest that is known of its connection. first says that it
// comes with the first table that its sender teaches this director.
func (e *Engine) remote(now time.Time, r *ipvssync.Record, origin peer.ID, stamp table.Stamp, age uint32, first bool) {
	e.counters[RemoteRecords]++
	r.Normalize()
	if first && e.reclaim(now, r, stamp) {
		return
	}
	switch e.table.Put(now, r, origin, stamp, age) {
	case table.Inserted, table.Replaced:
		e.inject(r, age)
	default:
		e.counters[RemoteStale]++
	}
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
		Uptime: time.Duration(hb.Uptime) * time.Millisecond, Synced: t.Flags&mirror.FlagSynced != 0, Link: link,
	}
	for echo := range hb.Echoes() {
		if peer.ID(echo.Node) == e.self && peer.Incarnation(echo.Incarnation) == e.cfg.Incarnation {
			h.Echo = peer.Echo{
				Node: e.self, Incarnation: e.cfg.Incarnation, Control: echo.Control, Stream: echo.Stream,
				Age: time.Duration(echo.Age) * time.Millisecond, Counts: echo.Flags&mirror.EchoCounts != 0,
				Lacks: echo.Flags&mirror.EchoLacks != 0,
			}
		}
	}
	p, v, event := e.peers.Heartbeat(now, h)
	if v != peer.Own {
		e.stranger = now
	}
	e.happened(now, p, h, event)
	if v != peer.Accept {
		return verdicts[v], true
	}
	if echo := p.Echoed; echo.Incarnation == e.cfg.Incarnation && (!echo.Counts || echo.Lacks && now.Sub(e.told) > retellInterval) {
		e.wants[p.ID] = true // it does not count this director, or no longer, or lacks something: it is taught as soon as it counts
	}
	l := e.lesson(p.ID)
	lacks := p.Missing() > l.settled
	p.Lacks, l.suspect = lacks && l.suspect, lacks // two heartbeats in a row: not because of an overtaking
	return 0, false
}

// happened acts on what a heartbeat changed.
func (e *Engine) happened(now time.Time, p *peer.Peer, h peer.Heartbeat, event peer.Event) {
	switch event {
	case peer.Admitted:
		e.names[p.ID] = h.Name
		delete(e.lessons, p.ID)
		e.wants[p.ID] = true
		e.progress = now
		e.cfg.Log.Info("peer admitted", "peer", h.Name, "incarnation", p.Incarnation, "synced", h.Synced)
	case peer.Returned:
		e.wants[p.ID] = true
		e.cfg.Log.Info("peer is heard again", "peer", h.Name, "missing", p.Missing())
	case peer.Namesake:
		e.counters[Namesakes]++
		up := now.Sub(e.started)
		if e.failure == nil && (up < h.Uptime || up == h.Uptime && e.cfg.Incarnation < h.Incarnation) {
			e.failure = fmt.Errorf("another director is named %q and runs longer than this one: give each its own --node", e.cfg.Node)
		} else if now.Sub(e.alarmed) > time.Minute {
			e.alarmed = now
			e.cfg.Log.Error("another director with this director's name has started", "node", e.cfg.Node, "interface", e.cfg.Links[h.Link])
		}
	case peer.Nothing:
	}
}
