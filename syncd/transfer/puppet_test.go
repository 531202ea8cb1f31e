package transfer

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"saru/lib/peer"
	wire "saru/proto/transfer"
)

// puppet is one end of a connection that a test plays by hand, in a goroutine of its own: when the other side hangs up, the goroutine ends.
type puppet struct {
	link
	auth       Auth
	own, other wire.Hello
	over       chan struct{} // closed when the other side is through
	done       chan struct{} // closed when this one is
	heard      int           // bytes that came meanwhile
}

// play plays one end of a connection. When the script is at its end, the puppet says nothing more and waits until the other side hangs up.
func play(conn net.Conn, role wire.Role, name string, auth Auth, script func(*puppet)) *puppet {
	r := newReplica(name)
	p := &puppet{
		link: link{ctx: context.Background(), conn: conn, end: time.Now().Add(24 * time.Hour), limit: wire.MaxPayload},
		auth: auth, own: newHello(role, r.state.Node, r.state.Incarnation, &auth),
		over: make(chan struct{}), done: make(chan struct{}),
	}
	go func() {
		defer close(p.done)
		defer conn.Close()
		script(p)
		_ = conn.SetDeadline(time.Time{})
		n, _ := io.Copy(io.Discard, conn)
		p.heard = int(n)
	}()
	return p
}

// raw writes bytes as they are.
func (p *puppet) raw(b []byte) {
	_ = p.conn.SetDeadline(time.Time{})
	if _, err := p.conn.Write(b); err != nil {
		runtime.Goexit()
	}
}

// trickle writes bytes, one a second.
func (p *puppet) trickle(b []byte) {
	for i := range b {
		p.raw(b[i : i+1])
		time.Sleep(time.Second)
	}
}

func (p *puppet) hello() []byte { return wire.AppendHello(nil, &p.own) }

func (p *puppet) hear() {
	var err error
	if p.other, err = p.readHello(); err != nil {
		runtime.Goexit()
	}
}

// meet exchanges hellos and derives the keys.
func (p *puppet) meet() {
	if p.own.Role == wire.RoleClient {
		p.raw(p.hello())
		p.hear()
	} else {
		p.hear()
		p.raw(p.hello())
	}
	p.derive(&p.own)
}

// derive derives the keys as they are when own is this side's hello.
func (p *puppet) derive(own *wire.Hello) {
	auth := p.auth
	auth.RequireSigned = false
	if err := p.agree(&auth, own, &p.other); err != nil {
		runtime.Goexit()
	}
}

// get reads a frame.
func (p *puppet) get() (wire.Type, []byte) {
	t, b, err := p.read()
	if err != nil {
		runtime.Goexit()
	}
	return t, b
}

// swallow reads the pupil's request, whatever its tag: a pipe holds nothing back.
func (p *puppet) swallow() {
	if _, err := io.CopyN(io.Discard, p.conn, wire.HeaderLen+wire.RequestLen+wire.TagLen); err != nil {
		runtime.Goexit()
	}
}

// sealed returns the next frame, signed.
func (p *puppet) sealed(t wire.Type, payload []byte) []byte {
	b, err := wire.EndFrame(append(wire.BeginFrame(nil, t), payload...), 0)
	if err == nil && p.out != nil {
		p.out.Seal(b)
	}
	return b
}

func (p *puppet) put(t wire.Type, payload []byte) { p.raw(p.sealed(t, payload)) }

// start plays a teacher up to its Start.
func (p *puppet) start(entries uint64) {
	p.meet()
	p.get()
	p.put(wire.TypeStart, wire.AppendSummary(nil, wire.Summary{Entries: entries, Complete: true}))
}

// introduce announces n origins.
func (p *puppet) introduce(n int) {
	for i := range n {
		p.put(wire.TypeOrigins, wire.AppendOrigin(nil, &wire.Origin{Index: uint16(i), Node: uint64(i + 1)}))
	}
}

func (p *puppet) finish(entries uint64) { p.put(wire.TypeFinish, finished(entries)) }

func finished(entries uint64) []byte {
	return wire.AppendSummary(nil, wire.Summary{Entries: entries, Complete: true})
}

// answer answers pages of digests until something else comes, and returns the number of pages and that.
func (p *puppet) answer(differ func([]Digest) []Digest) (pages int, t wire.Type, b []byte) {
	for {
		t, b := p.get()
		if t != wire.TypeDigests {
			return pages, t, b
		}
		_, list, err := wire.ParsePage(b, nil)
		if err != nil {
			runtime.Goexit()
		}
		p.put(wire.TypeDiffer, wire.AppendDigests(nil, differ(list)))
		pages++
	}
}

// request plays a client up to its request, to the teacher that its hello names.
func (p *puppet) request(purpose Purpose) {
	p.meet()
	p.put(wire.TypeRequest, p.asked(purpose))
}

func (p *puppet) asked(purpose Purpose) []byte {
	return wire.AppendRequest(nil, &wire.Request{Purpose: purpose, Node: p.other.Node, Incarnation: p.other.Incarnation})
}

// some returns entries in the order in which they are sent.
func some(n int) []Entry {
	var list []Entry
	for i := range n {
		list = append(list, conn4(i+1))
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return int(bucketOf(&a.Record)) - int(bucketOf(&b.Record)) })
	return list
}

// payload encodes entries, all of origin 0.
func payload(entries ...Entry) []byte {
	var w wire.Builder
	w.Reset(nil)
	for i := range entries {
		e := &entries[i]
		if err := w.Add(bucketOf(&e.Record), &wire.Item{Grant: e.Stamp.Grant, Clock: e.Stamp.Clock, Age: e.Age()}, &e.Record); err != nil {
			panic(err)
		}
	}
	return w.Bytes()
}

// outcomes returns which outcomes were counted, and how often.
func outcomes(c *Counters) map[Counter]uint64 {
	m := map[Counter]uint64{}
	for n := Finished; n <= Failed; n++ {
		if v := c.Get(n); v > 0 {
			m[n] = v
		}
	}
	return m
}

// counted fails the test unless one session was counted, in the right counter.
func counted(t testing.TB, c *Counters, want Counter) {
	t.Helper()
	if got := outcomes(c); !maps.Equal(got, map[Counter]uint64{want: 1}) {
		t.Errorf("counted %v, want one %s", got, want)
	}
}

// tape is a connection that remembers what was written to it, and what was read.
type tape struct {
	net.Conn
	written, read bytes.Buffer
}

func (c *tape) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Write(b[:n])
	return n, err
}

func (c *tape) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Write(b[:n])
	return n, err
}

// recorded holds an honest session and returns what both sides have said.
func recorded(t testing.TB, conn net.Conn, from *replica, auth Auth, purpose Purpose) (client, server []byte) {
	t.Helper()
	r := newReplica(pupilN)
	c := &tape{Conn: conn}
	if _, err := Pull(t.Context(), c, r.config(auth), r.request(purpose, from)); err != nil {
		t.Fatal(err)
	}
	same(t, from, r)
	return c.written.Bytes(), c.read.Bytes()
}

// allocated returns how many bytes fn has made the whole program allocate.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// nobody is a director of no name.
const nobody = peer.ID(0x4242)
