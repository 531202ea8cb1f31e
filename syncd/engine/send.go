package engine

import (
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// openMessages is how many messages are filled at the same time. The records of a message share kind, origin and grant; after a few
// fail-overs connections of three or four different grants are mixed.
const openMessages = 6

// message is a datagram that is being filled.
type message struct {
	kind   mirror.Kind
	origin peer.ID
	grant  mirror.Grant
	clock  uint64 // KindRecords: of every record; KindTable: the latest
	b      ipvssync.Builder
	clocks []uint64 // KindTable: of each record
	ages   []uint32
	last   bool // the message without records that ends a table
	buf    [mirror.MaxDatagram]byte
}

// builders are the messages that are being filled, the one used longest ago first.
type builders struct {
	engine *Engine
	open   []*message
	idle   []*message
}

// get returns the message that a record of this kind, origin and grant goes into, with room for size more bytes of record.
func (bs *builders) get(now time.Time, kind mirror.Kind, origin peer.ID, grant mirror.Grant, size int) *message {
	for i, m := range bs.open {
		if m.kind == kind && m.origin == origin && m.grant == grant {
			if m.room(size) {
				return m
			}
			bs.finish(i)
			break
		}
	}
	if len(bs.open) == openMessages {
		bs.finish(0)
	}
	var m *message
	if n := len(bs.idle); n > 0 {
		m, bs.idle = bs.idle[n-1], bs.idle[:n-1]
	} else {
		m = &message{}
	}
	m.kind, m.origin, m.grant, m.clock = kind, origin, grant, 0
	m.clocks, m.ages, m.last = m.clocks[:0], m.ages[:0], false
	m.b.Reset(m.buf[:0], bs.engine.cfg.SyncID, 0)
	if kind == mirror.KindRecords {
		m.clock = bs.engine.clock.Next(wall(now))
	}
	bs.open = append(bs.open, m)
	return m
}

// room reports whether a record of size bytes fits, with its padding, its item in the body and the trailer.
func (m *message) room(size int) bool {
	body := 0
	if m.kind == mirror.KindTable {
		body = (m.b.Count() + 1) * mirror.TableItemLen
	}
	const padding = 3 + 3 // before the record and behind it
	return m.b.Len()+padding+size+mirror.Length(body) <= mirror.MaxDatagram && m.b.Count() < ipvssync.MaxRecords
}

// finish seals and sends message i of those that are open.
func (bs *builders) finish(i int) {
	m := bs.open[i]
	bs.open = append(bs.open[:i], bs.open[i+1:]...)
	bs.idle = append(bs.idle, m)
	if m.b.Count() == 0 && !m.last {
		return
	}
	e := bs.engine
	e.body = e.body[:0]
	for i, c := range m.clocks {
		e.body = mirror.AppendTableItem(e.body, mirror.TableItem{ClockOffset: m.clock - c, Age: m.ages[i]})
	}
	e.stream++
	e.send(m.b.Padded(), m.b.Count(), mirror.Trailer{
		Kind: m.kind, Sequence: e.stream, Origin: uint64(m.origin), Grant: m.grant, Clock: m.clock, Body: e.body,
	})
}

// flush sends what is open.
func (bs *builders) flush() {
	for len(bs.open) > 0 {
		bs.finish(0)
	}
}

// send completes a datagram with its trailer and sends it.
func (e *Engine) send(b []byte, count int, t mirror.Trailer) {
	t.Sender, t.Incarnation = uint64(e.self), uint64(e.cfg.Incarnation)
	if e.synced {
		t.Flags |= mirror.FlagSynced
	}
	sign := e.cfg.Ring != nil && e.cfg.Auth != ReceiveOnly
	if sign {
		t.KeyID = e.cfg.Ring.Signer()
	}
	b, err := mirror.AppendTrailer(b, &t)
	if err == nil {
		err = ipvssync.FinishV1(b, 0, count)
	}
	if err != nil { // a length that room() let through: a bug, but the others must not suffer
		e.cfg.Log.Error("datagram not sent", "kind", t.Kind, "error", err)
		return
	}
	if sign {
		e.cfg.Ring.Sign(b)
	}
	e.counters[SentDatagrams]++
	e.counters[SentBytes] += uint64(len(b))
	e.cfg.Output.Send(b)
}

// publish enters a record of this director's kernel, or one that it reclaims, under a grant, and sends it.
func (e *Engine) publish(now time.Time, r *ipvssync.Record, grant mirror.Grant) {
	size := ipvssync.RecordLen(r)
	m := e.builders.get(now, mirror.KindRecords, e.self, grant, size)
	stamp := table.Stamp{Grant: grant, Clock: m.clock}
	out := e.table.Put(now, r, e.self, stamp, 0)
	if out == table.Stale {
		// An earlier update of this connection is in the same message, or has a stamp that is ahead: the message's clock must be later.
		if _, newest, ok := e.table.Newest(r); ok {
			e.clock.Seen(newest.Clock, ^uint64(0)>>1)
		}
		e.builders.flush()
		m = e.builders.get(now, mirror.KindRecords, e.self, grant, size)
		stamp.Clock = m.clock
		out = e.table.Put(now, r, e.self, stamp, 0)
	}
	if out == table.Stale || out == table.Refused {
		e.counters[TapDamaged]++
		return
	}
	if err := m.b.Add(r); err != nil {
		e.counters[TapDamaged]++
		e.cfg.Log.Debug("record not sent", "client", r.Client, "virtual", r.Virtual, "error", err)
		return
	}
	e.counters[SentRecords]++
}

// heartbeat sends the next heartbeat.
func (e *Engine) heartbeat(now time.Time) {
	e.echoes = e.peers.Echoes(e.echoes[:0], now, mirror.MaxEchoes)
	e.wire = e.wire[:0]
	for i := range e.echoes {
		p := &e.echoes[i]
		echo := mirror.Echo{
			Node: uint64(p.Node), Incarnation: uint64(p.Incarnation), Control: p.Control, Stream: p.Stream,
			Age: uint32(min(p.Age.Milliseconds(), 1<<31)),
		}
		if p.Counts {
			echo.Flags |= mirror.EchoCounts
		}
		if p.Lacks {
			echo.Flags |= mirror.EchoLacks
		}
		e.wire = append(e.wire, echo)
	}
	body, err := mirror.AppendHeartbeat(e.body[:0], &mirror.Heartbeat{
		Uptime: uint64(now.Sub(e.started).Milliseconds()), Stream: e.stream, Name: e.cfg.Node,
	}, e.wire)
	e.body = body
	if err != nil {
		e.cfg.Log.Error("heartbeat not sent", "error", err)
		return
	}
	var buf [mirror.MaxDatagram]byte
	e.send(ipvssync.AppendHeaderV1(buf[:0], e.cfg.SyncID), 0, mirror.Trailer{
		Kind: mirror.KindHeartbeat, Sequence: e.peers.NextControl(), Body: body,
	})
}

// wall returns the wall clock in microseconds, the unit of stamps.
func wall(now time.Time) uint64 { return uint64(now.UnixMicro()) }
