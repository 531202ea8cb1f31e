package inspect

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unicode/utf8"

	"saru/lib/control"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// Who sent a message.
const (
	senderKernel  = "kernel"
	senderSaru    = "saru"
	senderUnknown = "unknown" // what cannot be decoded
)

// What is known of a signature.
const (
	signatureUnsigned   = "unsigned"
	signatureUnchecked  = "unchecked" // nobody gave keys
	signatureGood       = "good"
	signatureForged     = "forged"
	signatureUnknownKey = "unknown_key"
)

// message is one datagram, decoded as far as possible. Its JSON is part of every line of saructl inspect --json.
type message struct {
	Time        time.Time      `json:"time"`
	Link        string         `json:"link"` // "" where the capture does not tell
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Sender      string         `json:"sender"` // kernel, saru or unknown
	Version     uint8          `json:"version"`
	SyncID      uint8          `json:"syncid"`
	Size        int            `json:"size"`  // of the datagram
	Count       uint8          `json:"count"` // of records, as the header says
	Trailer     *trailer       `json:"trailer,omitempty"`
	// TrailingBytes follow the records and are no trailer of this suite.
	TrailingBytes int    `json:"trailing_bytes,omitempty"`
	Error         string `json:"error,omitempty"`

	records []record
}

// trailer has the fields of mirror.Trailer. Ids are 16 hexadecimal digits, as JSON numbers lose bits.
type trailer struct {
	Kind        string `json:"kind"`
	KeyID       uint8  `json:"key_id"`
	Signature   string `json:"signature"`
	Synced      bool   `json:"synced"`
	Repeat      bool   `json:"repeat,omitempty"`  // sent again on request
	Confirm     bool   `json:"confirm,omitempty"` // the sender waits for the confirmation of its stream
	Sender      string `json:"sender"`
	Node        string `json:"node,omitempty"` // the sender's name, once a heartbeat has told it
	Incarnation string `json:"incarnation"`
	Sequence    uint64 `json:"sequence"`
	Origin      string `json:"origin"`
	Term        uint32 `json:"term"`
	TermVersion uint32 `json:"term_version"`
	ClockUS     uint64 `json:"clock_us"`

	BodyBytes int        `json:"body_bytes"`
	Heartbeat *heartbeat `json:"heartbeat,omitempty"`
	Request   *request   `json:"request,omitempty"`

	originName string
}

// heartbeat is the body of a heartbeat.
type heartbeat struct {
	Node     string `json:"node"`
	UptimeMS uint64 `json:"uptime_ms"`
	Stream   uint64 `json:"stream"`
	Oldest   uint64 `json:"oldest"`            // stream number that can be repeated
	Teaches  string `json:"teaches,omitempty"` // address and port
	Entries  uint32 `json:"entries"`           // of its table
	Echoes   []echo `json:"echoes"`
}

type echo struct {
	Node        string `json:"node"` // name where known, else id
	Incarnation string `json:"incarnation"`
	Control     uint64 `json:"control"`
	Stream      uint64 `json:"stream"`
	Confirmed   uint64 `json:"confirmed"`
	AgeMS       uint32 `json:"age_ms"`
	Counts      bool   `json:"counts"`
}

// request is the body of a request for datagrams of a node's stream.
type request struct {
	Node        string        `json:"node"` // name where known, else id
	Incarnation string        `json:"incarnation"`
	Ranges      []streamRange `json:"ranges"`
}

type streamRange struct {
	First uint64 `json:"first"`
	Count uint32 `json:"count"`
}

// record is one record of a message.
type record struct {
	control.Connection
	Index    int    `json:"record"` // from 0
	TimeoutS uint32 `json:"timeout_s"`
	Fwmark   uint32 `json:"fwmark"`
	Seq      *seq   `json:"seq,omitempty"`
	PE       *pe    `json:"pe,omitempty"`
	// Skipped says why a kernel leaves the record out.
	Skipped string `json:"skipped,omitempty"`
}

type seq struct {
	In  seqDirection `json:"in"`
	Out seqDirection `json:"out"`
}

type seqDirection struct {
	Init      uint32 `json:"init"`
	Delta     int32  `json:"delta"` // bytes that were added (or taken away)
	PrevDelta int32  `json:"prev_delta"`
}

// pe is the data of a persistence engine: text, or hexadecimal digits where it is none.
type pe struct {
	Name string `json:"name"`
	Data string `json:"data,omitempty"`
	Hex  string `json:"data_hex,omitempty"`
}

// decoder decodes datagrams and remembers the names of nodes.
type decoder struct {
	verify func(keyID uint8, datagram []byte) error
	names  map[uint64]string
}

// decode never fails: what is wrong is in Error.
func (d *decoder) decode(g datagram) *message {
	m := &message{
		Time: g.time, Link: g.link, Source: g.source, Destination: g.destination, Sender: senderUnknown,
		Size: len(g.payload), Error: g.defect,
	}
	if g.defect != "" {
		return m
	}
	parsed, err := ipvssync.Parse(g.payload)
	if err != nil {
		m.Error = err.Error()
		return m
	}
	m.Version, m.SyncID, m.Count, m.Sender = parsed.Version, parsed.SyncID, parsed.Count, senderKernel
	origin := g.source.Addr().String()
	start := len(g.payload)
	t, at, err := mirror.ParseTrailer(g.payload)
	switch {
	case parsed.Version != 1 || errors.Is(err, mirror.ErrNoTrailer):
	case err != nil:
		m.Sender, m.Error = senderSaru, err.Error()
	default:
		m.Sender, start = senderSaru, at
		m.Trailer = d.trailer(&t, g.payload)
		origin = d.name(t.Origin)
		if err := d.body(m, &t); err != nil {
			m.Error = err.Error()
		}
	}
	d.records(m, parsed, origin, start)
	return m
}

// records decodes the records, and looks at where they end: where the trailer starts, if there is one.
func (d *decoder) records(m *message, parsed ipvssync.Message, origin string, start int) {
	r := parsed.Reader()
	for i := 0; ; i++ {
		var rec ipvssync.Record
		err := r.Next(&rec)
		if errors.Is(err, ipvssync.ErrEnd) {
			break
		}
		if err != nil && !ipvssync.Skipped(err) {
			m.addError(fmt.Sprintf("record %d: %v", i, err))
			return
		}
		out := newRecord(&rec, origin)
		out.Index = i
		if err != nil {
			out.Skipped = err.Error()
		}
		m.records = append(m.records, out)
	}
	switch end := r.Offset(); {
	case m.Trailer != nil && end != start:
		m.addError("the trailer does not begin where the records end")
	case m.Trailer == nil && m.Sender == senderKernel:
		m.TrailingBytes = start - end
	}
}

func (m *message) addError(s string) {
	if m.Error != "" {
		s = m.Error + "; " + s
	}
	m.Error = s
}

// trailer checks the signature and translates the fields.
func (d *decoder) trailer(t *mirror.Trailer, b []byte) *trailer {
	out := &trailer{
		Kind: t.Kind.String(), KeyID: t.KeyID, Signature: signatureUnchecked, Synced: t.Flags&mirror.FlagSynced != 0,
		Repeat: t.Flags&mirror.FlagRepeat != 0, Confirm: t.Flags&mirror.FlagConfirm != 0,
		Sender: id(t.Sender), Incarnation: id(t.Incarnation), Sequence: t.Sequence,
		Origin: id(t.Origin), originName: d.name(t.Origin), Term: t.Grant.Term(), TermVersion: t.Grant.Version(), ClockUS: t.Clock, BodyBytes: len(t.Body),
	}
	switch {
	case t.KeyID == 0:
		out.Signature = signatureUnsigned
	case d.verify != nil:
		switch err := d.verify(t.KeyID, b); {
		case err == nil:
			out.Signature = signatureGood
		case errors.Is(err, seal.ErrUnknownKey):
			out.Signature = signatureUnknownKey
		default:
			out.Signature = signatureForged
		}
	}
	out.Node = d.names[t.Sender]
	return out
}

// body decodes the body of the kinds that have one.
func (d *decoder) body(m *message, t *mirror.Trailer) error {
	switch t.Kind {
	case mirror.KindHeartbeat:
		h, err := mirror.ParseHeartbeat(t.Body)
		if err != nil {
			return err
		}
		// A name that does not hash to the sender's id is somebody else's.
		if nodeID(h.Name) == t.Sender {
			d.names[t.Sender] = h.Name
			m.Trailer.Node = h.Name
		}
		hb := &heartbeat{Node: h.Name, UptimeMS: h.Uptime, Stream: h.Stream, Oldest: h.Oldest, Entries: h.Entries, Echoes: []echo{}}
		if h.Teaches.IsValid() {
			hb.Teaches = h.Teaches.String()
		}
		for e := range h.Echoes() {
			hb.Echoes = append(hb.Echoes, echo{
				Node: d.name(e.Node), Incarnation: id(e.Incarnation), Control: e.Control, Stream: e.Stream, Confirmed: e.Confirmed,
				AgeMS: e.Age, Counts: e.Flags&mirror.EchoCounts != 0,
			})
		}
		m.Trailer.Heartbeat = hb
	case mirror.KindRequest:
		r, err := mirror.ParseRequest(t.Body)
		if err != nil {
			return err
		}
		req := &request{Node: d.name(r.Node), Incarnation: id(r.Incarnation)}
		for g := range r.Ranges() {
			req.Ranges = append(req.Ranges, streamRange{First: g.First, Count: g.Count})
		}
		m.Trailer.Request = req
	}
	return nil
}

// name returns the name of a node where a heartbeat has told it, else its id.
func (d *decoder) name(node uint64) string {
	if name, ok := d.names[node]; ok {
		return name
	}
	return id(node)
}

// id formats node ids and incarnations.
func id(v uint64) string { return fmt.Sprintf("%016x", v) }

// nodeID is the id under which a node's messages go: see package mirror.
func nodeID(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])
}

// newRecord translates a record; its timeout counts as the time until it ends.
func newRecord(r *ipvssync.Record, origin string) record {
	out := record{
		Connection: control.NewConnection(r, origin, int64(r.Timeout)),
		TimeoutS:   r.Timeout, Fwmark: r.Fwmark,
	}
	if r.HasSeq {
		out.Seq = &seq{In: direction(r.In), Out: direction(r.Out)}
	}
	if len(r.PEName)+len(r.PEData) > 0 {
		out.PE = &pe{Name: string(r.PEName)}
		if utf8.Valid(r.PEData) {
			out.PE.Data = string(r.PEData)
		} else {
			out.PE.Hex = hex.EncodeToString(r.PEData)
		}
	}
	return out
}

func direction(s ipvssync.Seq) seqDirection {
	return seqDirection{Init: s.Init, Delta: int32(s.Delta), PrevDelta: int32(s.PrevDelta)}
}
