package engine

import (
	"time"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// openMessages is how many messages are filled at the same time. The records of a message share their grant; after a few fail-overs
// connections of three or four different grants are mixed. At a start without teachers they have one grant and are stamped back by up to 18 steps, below
// the 15 minutes that a connection lives (stampedBack).
const openMessages = 18

// message is a datagram that is being filled.
type message struct {
	grant mirror.Grant
	back  uint64 // by how much its clock is behind, in microseconds
	clock uint64 // of every record
	b     ipvssync.Builder
	buf   [mirror.MaxDatagram]byte
}

// builders are the messages that are being filled, the one used longest ago first.
type builders struct {
	engine *Engine
	open   []*message
	idle   []*message
}

// get returns the message that a record of this grant goes into, with room for size more bytes of record. Its clock is back microseconds
// behind.
func (bs *builders) get(now time.Time, grant mirror.Grant, back uint64, size int) *message {
	for i, m := range bs.open {
		if m.grant == grant && m.back == back {
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
	m.grant, m.back, m.clock = grant, back, bs.engine.clock.Next(bs.engine.wall(now))-back
	m.b.Reset(m.buf[:0], bs.engine.cfg.SyncID, 0)
	bs.open = append(bs.open, m)
	return m
}

// room reports whether a record of size bytes fits, with its padding and the trailer.
func (m *message) room(size int) bool {
	const padding = 3 + 3 // before the record and behind it
	return m.b.Len()+padding+size+mirror.Length(0) <= mirror.MaxDatagram && m.b.Count() < ipvssync.MaxRecords
}

// finish seals, keeps and sends message i of those that are open.
func (bs *builders) finish(i int) {
	m := bs.open[i]
	bs.open = append(bs.open[:i], bs.open[i+1:]...)
	bs.idle = append(bs.idle, m)
	if m.b.Count() == 0 {
		return
	}
	e := bs.engine
	e.stream++
	b := e.seal(m.b.Padded(), m.b.Count(), mirror.Trailer{
		Kind: mirror.KindRecords, Sequence: e.stream, Origin: uint64(e.self), Grant: m.grant, Clock: m.clock,
	})
	if b != nil {
		e.backlog.add(e.now, e.stream, b)
		e.emit(b)
	}
}

// flush sends what is open.
func (bs *builders) flush() {
	for len(bs.open) > 0 {
		bs.finish(0)
	}
}

// seal completes a datagram with its trailer and signs it.
func (e *Engine) seal(b []byte, count int, t mirror.Trailer) []byte {
	t.Sender, t.Incarnation = uint64(e.self), uint64(e.cfg.Incarnation)
	if e.Synced() {
		t.Flags |= mirror.FlagSynced
	}
	sign := e.signs()
	if sign {
		t.KeyID = e.cfg.Ring.Signer()
	}
	b, err := mirror.AppendTrailer(b, &t)
	if err == nil {
		err = ipvssync.FinishV1(b, 0, count)
	}
	if err != nil { // a length that room() let through: a bug, but the others must not suffer
		e.cfg.Log.Error("datagram not sent", "kind", t.Kind, "error", err)
		return nil
	}
	if sign {
		e.cfg.Ring.Sign(b)
	}
	return b
}

// signs reports whether what this director sends is signed.
func (e *Engine) signs() bool { return e.cfg.Ring != nil && e.cfg.Auth != ReceiveOnly }

// emit sends a sealed datagram.
func (e *Engine) emit(b []byte) {
	e.counters[SentDatagrams]++
	e.counters[SentBytes] += uint64(len(b))
	e.cfg.Output.Send(b)
}

// control seals and sends a datagram without records.
func (e *Engine) control(kind mirror.Kind, flags uint8, body []byte) {
	var buf [mirror.MaxDatagram]byte
	b := e.seal(ipvssync.AppendHeaderV1(buf[:0], e.cfg.SyncID), 0, mirror.Trailer{
		Kind: kind, Flags: flags, Sequence: e.peers.NextControl(), Clock: e.clock.Next(e.wall(e.now)), Body: body,
	})
	if b != nil {
		e.emit(b)
	}
}

// publish enters a record of this director's kernel, or one that it reclaims, at its slot of the replica under a grant, and sends it.
func (e *Engine) publish(now time.Time, slot table.Slot, r *ipvssync.Record, grant mirror.Grant) table.Outcome {
	out := e.publishAt(now, slot, r, grant, 0)
	if out == table.Stale {
		// An earlier update of this connection is in the same message, or has a stamp that is ahead: the message's clock must be later.
		if _, newest, ok := e.table.NewestAt(slot, r); ok {
			e.clock.Seen(newest.Clock, ^uint64(0)>>1)
		}
		e.builders.flush()
		out = e.publishAt(now, slot, r, grant, 0)
	}
	return out
}

// publishAt enters a record with a clock that is back microseconds behind, and sends it, unless the replica has anything later.
func (e *Engine) publishAt(now time.Time, slot table.Slot, r *ipvssync.Record, grant mirror.Grant, back uint64) table.Outcome {
	m := e.builders.get(now, grant, back, ipvssync.RecordLen(r))
	out := e.table.PutAt(slot, now, r, e.self, table.Stamp{Grant: grant, Clock: m.clock}, 0)
	if out == table.Stale || out == table.Refused {
		return out
	}
	if err := m.b.Add(r); err != nil {
		e.counters[TapDamaged]++
		e.cfg.Log.Debug("record not sent", "client", r.Client, "virtual", r.Virtual, "error", err)
		return out
	}
	e.counters[SentRecords]++
	return out
}

// heartbeat sends the next heartbeat, which asks for confirmation if this director waits for it.
func (e *Engine) heartbeat() {
	if e.awaits() {
		e.beat(mirror.FlagConfirm)
	} else {
		e.beat(0)
	}
}

// beat sends the next heartbeat with flags.
func (e *Engine) beat(flags uint8) {
	e.echoes = e.peers.Echoes(e.echoes[:0], e.now, mirror.MaxEchoes)
	e.wire = e.wire[:0]
	for i := range e.echoes {
		p := &e.echoes[i]
		echo := mirror.Echo{
			Node: uint64(p.Node), Incarnation: uint64(p.Incarnation), Control: p.Control, Stream: p.Stream, Confirmed: p.Confirmed,
			Age: uint32(min(p.Age.Milliseconds(), 1<<31)),
		}
		if p.Counts {
			echo.Flags |= mirror.EchoCounts
			e.partner(p.Node).told = p.Confirmed
		}
		e.wire = append(e.wire, echo)
	}
	body, err := mirror.AppendHeartbeat(e.body[:0], &mirror.Heartbeat{
		Uptime: uint64(e.now.Sub(e.started).Milliseconds()), Stream: e.stream, Oldest: e.backlog.oldest(e.stream),
		Teaches: e.cfg.Teaches, Entries: uint32(e.table.Len()), Name: e.cfg.Node,
	}, e.wire)
	e.body = body
	if err != nil {
		e.cfg.Log.Error("heartbeat not sent", "error", err)
		return
	}
	e.control(mirror.KindHeartbeat, flags, body)
}
