package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"saru/lib/peer"
	wire "saru/proto/transfer"
)

// teaching is the server's side of a session.
type teaching struct {
	link
	server  *Server
	auth    Auth
	stopped chan struct{} // closed when interrupt is through
	proved  bool          // a session, not just a connection
	purpose Purpose
	client  peer.ID
	name    string // of the client

	small   []byte // frames other than entries
	builder wire.Builder
	start   int   // of the frame that is being built
	ends    []int // of the frames before it in the builder's buffer
	bucket  uint16
	add     func(*Entry) bool

	index   map[peer.ID]uint16
	unnamed []peer.ID // origins that have an index and are not announced yet
	newest  peer.ID   // origin of the last entry, with its index
	number  uint16

	entries, skipped uint64
}

func newTeaching(ctx context.Context, conn net.Conn, s *Server, auth Auth, begin time.Time) *teaching {
	t := &teaching{
		link:   link{ctx: ctx, conn: conn, end: begin.Add(handshakeTime), limit: wire.RequestLen},
		server: s, auth: auth, stopped: make(chan struct{}),
	}
	t.add = t.addEntry
	return t
}

// interrupt makes an end as the server stops: of reading at once; what is being written, and a word of farewell, have a moment.
func (t *teaching) interrupt() {
	defer close(t.stopped)
	// Of a connection that is closed already there is nothing to interrupt.
	_ = t.conn.SetReadDeadline(time.Now())
	_ = t.conn.SetWriteDeadline(time.Now().Add(stopTime))
}

func (t *teaching) run(begin time.Time) error {
	req, err := t.handshake()
	if err != nil {
		return err
	}
	if self := t.server.self; req.Node != uint64(self.Node) || req.Incarnation != uint64(self.Incarnation) {
		return t.refuse(wire.CodeRefused, ErrIncarnation)
	}
	if req.Purpose < Join || req.Purpose > Compare {
		return t.refuse(wire.CodeRefused, ErrRefused)
	}
	if err := t.server.prove(t.conn); errors.Is(err, ErrBusy) {
		return t.refuse(wire.CodeBusy, err)
	} else if err != nil {
		return err
	}
	t.proved, t.purpose, t.end, t.limit = true, req.Purpose, begin.Add(lifetime), wire.MaxClientPayload
	if t.name = t.server.src.OriginName(t.client); t.name == "" {
		t.name = t.client.String()
	}
	err = t.teach()
	if err != nil && t.ctx.Err() != nil {
		err = t.farewell()
	}
	return err
}

// handshake exchanges hellos and reads the first frame, which proves the client.
func (t *teaching) handshake() (wire.Request, error) {
	other, err := t.readHello()
	if err != nil {
		return wire.Request{}, err
	}
	own := newHello(wire.RoleTeacher, t.server.self.Node, t.server.self.Incarnation, &t.auth)
	// It goes out before anything is checked, so that a client with another key file can tell why.
	if err := t.sendHello(&own); err != nil {
		return wire.Request{}, err
	}
	if err := t.agree(&t.auth, &own, &other); err != nil {
		return wire.Request{}, err
	}
	t.client = peer.ID(other.Node)
	kind, b, err := t.read()
	if err != nil {
		return wire.Request{}, err
	}
	if kind != wire.TypeRequest {
		return wire.Request{}, ErrUnexpected
	}
	return wire.ParseRequest(b)
}

// refuse tells the client why the session ends, and returns err.
func (t *teaching) refuse(code wire.Code, err error) error {
	if e := t.send(wire.AppendError(wire.BeginFrame(t.small[:0], wire.TypeError), code)); e != nil {
		return fmt.Errorf("%w, and the client was not told: %w", err, e)
	}
	return err
}

// farewell tells the client that the server stops. The connection is closed when the client has closed it, or soon: closed with
// something unread, TCP would reset it and lose the farewell.
func (t *teaching) farewell() error {
	if t.torn {
		return ErrStopping
	}
	<-t.stopped // or else it would end what follows
	err := t.refuse(wire.CodeStopping, ErrStopping)
	if c, ok := t.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = t.conn.SetReadDeadline(time.Now().Add(stopTime))
		_, _ = io.CopyN(io.Discard, t.conn, wire.MaxFrame) // an error is the end that is waited for
	}
	return err
}

// teach does the session.
func (t *teaching) teach() error {
	state := t.server.src.State()
	t.small = wire.BeginFrame(t.small[:0], wire.TypeStart)
	t.small = wire.AppendSummary(t.small, wire.Summary{Entries: state.Entries, Complete: state.Synced})
	if err := t.send(t.small); err != nil {
		return err
	}
	t.index = map[peer.ID]uint16{}
	t.reset(nil)
	if t.purpose == Join {
		for n := range uint16(wire.Buckets) {
			if err := t.teachBucket(n); err != nil {
				return err
			}
		}
	} else {
		wanted, err := t.compare()
		if err != nil {
			return err
		}
		for _, n := range wanted {
			if err := t.teachBucket(n); err != nil {
				return err
			}
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	t.small = wire.BeginFrame(t.small[:0], wire.TypeFinish)
	t.small = wire.AppendSummary(t.small, wire.Summary{Entries: t.entries, Complete: state.Synced && t.server.src.State().Synced})
	return t.send(t.small)
}

// compare answers pages of digests until the client says which buckets it wants.
func (t *teaching) compare() ([]uint16, error) {
	var buckets []uint16
	var theirs, own []Digest
	for pages := 0; ; pages++ {
		kind, b, err := t.read()
		if err != nil {
			return nil, err
		}
		switch {
		case kind == wire.TypeWant:
			return wire.ParseWant(b, nil)
		case kind != wire.TypeDigests:
			return nil, fmt.Errorf("%s instead of digests: %w", kind, ErrUnexpected)
		case pages == maxPages:
			return nil, fmt.Errorf("pages of digests: %w", ErrExcess)
		}
		var cut uint64
		if cut, theirs, err = wire.ParsePage(b, theirs[:0]); err != nil {
			return nil, err
		}
		buckets = buckets[:0]
		for _, d := range theirs {
			buckets = append(buckets, d.Bucket)
		}
		own = t.server.src.Digests(cut, buckets, own[:0])
		differ := own[:0]
		for i, d := range own {
			if d != theirs[i] {
				differ = append(differ, d)
			}
		}
		t.small = wire.AppendDigests(wire.BeginFrame(t.small[:0], wire.TypeDiffer), differ)
		if err := t.send(t.small); err != nil {
			return nil, err
		}
	}
}

// teachBucket encodes the entries of a bucket, and then sends what there is if it is enough.
func (t *teaching) teachBucket(n uint16) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if !time.Now().Before(t.end) {
		return ErrTimeout
	}
	t.bucket = n
	t.server.src.Bucket(n, t.add)
	if len(t.builder.Bytes()) < flushAt {
		return nil
	}
	return t.flush()
}

// addEntry encodes an entry. The table is locked.
func (t *teaching) addEntry(e *Entry) bool {
	if e.Remaining < time.Second || e.Stamp.Clock == 0 {
		return true
	}
	if len(t.index) == 0 || e.Origin != t.newest {
		i, ok := t.index[e.Origin]
		if !ok {
			if len(t.index) == wire.MaxOrigins {
				t.skipped++
				return true
			}
			i = uint16(len(t.index))
			t.index[e.Origin] = i
			t.unnamed = append(t.unnamed, e.Origin)
		}
		t.newest, t.number = e.Origin, i
	}
	it := wire.Item{Origin: t.number, Grant: e.Stamp.Grant, Clock: e.Stamp.Clock, Age: e.Age()}
	err := t.builder.Add(t.bucket, &it, &e.Record)
	if errors.Is(err, wire.ErrFull) {
		t.cut()
		err = t.builder.Add(t.bucket, &it, &e.Record)
	}
	if err != nil {
		t.skipped++ // a record that no kernel would take
		return true
	}
	t.entries++
	return true
}

// reset begins the first frame of entries in b.
func (t *teaching) reset(b []byte) {
	if cap(b) > maxKept {
		b = nil
	}
	if b == nil {
		b = make([]byte, 0, 2*wire.MaxFrame)
	}
	t.start, t.ends = 0, t.ends[:0]
	t.builder.Reset(wire.BeginFrame(b[:0], wire.TypeEntries))
}

// cut completes the frame that is being built and begins another one behind it.
func (t *teaching) cut() {
	b, err := wire.EndFrame(t.builder.Bytes(), t.start)
	if err != nil {
		return // the builder keeps to the size
	}
	t.ends, t.start = append(t.ends, len(b)), len(b)
	t.builder.Reset(wire.BeginFrame(b, wire.TypeEntries))
}

// flush announces the origins that are new and sends the entries that have been encoded. The table is not locked.
func (t *teaching) flush() error {
	if err := t.announce(); err != nil {
		return err
	}
	if t.builder.Count() > 0 {
		t.cut()
	}
	b, from := t.builder.Bytes(), 0
	for _, end := range t.ends {
		if err := t.write(b[from:end]); err != nil {
			return err
		}
		from = end
	}
	t.reset(b)
	return nil
}

// announce sends the origins that have been met since the last time.
func (t *teaching) announce() error {
	first := len(t.index) - len(t.unnamed)
	t.small = wire.BeginFrame(t.small[:0], wire.TypeOrigins)
	for i, id := range t.unnamed {
		if len(t.small) > flushAt {
			if err := t.send(t.small); err != nil {
				return err
			}
			t.small = wire.BeginFrame(t.small[:0], wire.TypeOrigins)
		}
		t.small = wire.AppendOrigin(t.small, &wire.Origin{Index: uint16(first + i), Node: uint64(id), Name: t.server.src.OriginName(id)})
	}
	t.unnamed = t.unnamed[:0]
	if len(t.small) == wire.HeaderLen {
		return nil
	}
	return t.send(t.small)
}
