package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	wire "saru/proto/transfer"
)

// scripted is a connection whose other side has said all that it will say as soon as it has heard a hello.
type scripted struct {
	in     []byte // to be read
	out    bytes.Buffer
	answer func(hello []byte) []byte // nil: nothing more
	closed bool
}

func (c *scripted) Read(b []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *scripted) Write(b []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	c.out.Write(b)
	if c.answer != nil && c.out.Len() >= wire.HelloLen {
		c.in = append(c.in, c.answer(c.out.Bytes()[:wire.HelloLen])...)
		c.answer = nil
	}
	return len(b), nil
}

func (c *scripted) Close() error                     { c.closed = true; return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "scripted"} }
func (c *scripted) RemoteAddr() net.Addr             { return c.LocalAddr() }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// The way in which a fuzzer speaks: two bits for the purpose and these.
const (
	fuzzRaw      = 0x04 // the script is bytes, else frames, which are signed
	fuzzInsecure = 0x08 // there are no keys
	fuzzNoHello  = 0x10 // the script begins with the hello
)

// fuzzFrame is a frame in a script, or several.
func fuzzFrame(t wire.Type, payloads ...[]byte) (b []byte) {
	for _, p := range payloads {
		b = append(binary.BigEndian.AppendUint16(append(b, byte(t)), uint16(len(p))), p...)
	}
	return b
}

// frames makes signed frames of a script.
func (p *puppet) frames(script []byte) (b []byte) {
	for len(script) >= 3 {
		n := min(int(binary.BigEndian.Uint16(script[1:])), len(script)-3)
		b = append(b, p.sealed(wire.Type(script[0]), script[3:3+n])...)
		script = script[3+n:]
	}
	return b
}

// fuzzer returns the puppet that a fuzzer speaks through.
func fuzzer(role wire.Role, name string, auth Auth) *puppet {
	r := newReplicaState(name)
	return &puppet{auth: auth, own: newHello(role, r.Node, r.Incarnation, &auth)}
}

// says returns what the fuzzer says when it has heard the other side's hello.
func (p *puppet) says(hello []byte, mode byte, script []byte) []byte {
	if mode&fuzzRaw != 0 {
		return script
	}
	var err error
	if p.other, err = wire.ParseHello(hello); err == nil {
		err = p.agree(&p.auth, &p.own, &p.other)
	}
	if err != nil {
		return nil
	}
	return p.frames(script)
}

func newReplicaState(name string) State {
	return State{Node: peer.IDOf(name), Incarnation: peer.Incarnation(peer.IDOf(name)) + 1, Synced: true}
}

// FuzzPull pulls from a fuzzer, which may know the key: the pull ends, in one counted way, learns no more than was sent, nothing that it did not
// ask for, and nothing at all without signatures.
func FuzzPull(f *testing.F) {
	secure := signed(f, key1)
	list := some(6)
	origins := append(wire.AppendOrigin(nil, &wire.Origin{Index: 0, Node: 9}), wire.AppendOrigin(nil, &wire.Origin{Index: 1, Node: uint64(peer.IDOf("a")), Name: "a"})...)
	start := fuzzFrame(wire.TypeStart, finished(6))
	sent := slices.Concat(fuzzFrame(wire.TypeOrigins, origins), fuzzFrame(wire.TypeEntries, payload(list[:3]...), payload(list[3:]...)), fuzzFrame(wire.TypeFinish, finished(6)))
	f.Add(byte(0), slices.Concat(start, sent))
	f.Add(byte(0), slices.Concat(start, fuzzFrame(wire.TypeOrigins, origins), fuzzFrame(wire.TypeEntries, payload(conn4(0)), payload(conn6(77), conn6(154)))))
	f.Add(byte(0), fuzzFrame(wire.TypeError, wire.AppendError(nil, wire.CodeBusy)))
	// Each page differs in the buckets of the entries that belong to it.
	pages := make([][]byte, wire.Buckets/wire.MaxPage)
	for _, e := range list {
		n := bucketOf(&e.Record)
		pages[n/wire.MaxPage] = wire.AppendDigests(pages[n/wire.MaxPage], []Digest{differing(n)})
	}
	again := slices.Concat(pages...)
	differ := slices.Concat(fuzzFrame(wire.TypeDiffer, pages...), fuzzFrame(wire.TypeDiffer, again, again))
	f.Add(byte(1), slices.Concat(start, differ, sent))
	f.Add(byte(2), slices.Concat(start, fuzzFrame(wire.TypeDiffer, make([][]byte, len(pages))...), fuzzFrame(wire.TypeFinish, finished(0))))
	f.Add(byte(fuzzRaw), make([]byte, 100))
	f.Add(byte(fuzzRaw|fuzzNoHello), make([]byte, wire.HelloLen))
	whole := fuzzer(wire.RoleTeacher, teacher, insecure)
	f.Add(byte(fuzzRaw|fuzzInsecure), whole.frames(slices.Concat(start, sent)))
	f.Add(byte(fuzzRaw|fuzzInsecure|fuzzNoHello), append(whole.hello(), whole.frames(slices.Concat(start, sent))...))

	f.Fuzz(func(t *testing.T, mode byte, script []byte) {
		auth := secure
		if mode&fuzzInsecure != 0 {
			auth = insecure
		}
		purpose := Join + Purpose(mode&3)%3
		fn := func(t *testing.T) { fuzzPull(t, auth, purpose, mode, script) }
		if purpose == Join {
			fn(t)
		} else {
			synctest.Test(t, fn) // there are pauses between rounds
		}
	})
}

func fuzzPull(t *testing.T, auth Auth, purpose Purpose, mode byte, script []byte) {
	p := fuzzer(wire.RoleTeacher, teacher, auth)
	var said int
	conn := &scripted{answer: func(hello []byte) []byte {
		var b []byte
		if mode&fuzzNoHello == 0 {
			b = p.hello()
		}
		b = append(b, p.says(hello, mode, script)...)
		said = len(b)
		return b
	}}
	pupil := newReplicaState(pupilN)
	cfg := Config{Node: pupil.Node, Incarnation: pupil.Incarnation, Auth: auth, Counters: new(Counters)}
	learned, named := 0, 0
	var buckets [wire.Buckets]bool
	res, err := Pull(t.Context(), conn, cfg, Request{
		Purpose: purpose, Expect: Teacher{peer.ID(p.own.Node), peer.Incarnation(p.own.Incarnation)}, BucketOf: bucketOf,
		Own: func(_ uint64, buckets []uint16, dst []Digest) []Digest {
			for _, n := range buckets {
				dst = append(dst, Digest{Bucket: n})
			}
			return dst
		},
		Cut: func() uint64 { return 1 },
		Learn: func(entries []Entry, names map[peer.ID]string) {
			if len(entries) == 0 || len(entries) > maxBatch {
				t.Errorf("%d entries at once", len(entries))
			}
			for i := range entries {
				e := &entries[i]
				if e.Stamp.Clock == 0 || e.Remaining <= 0 || e.Remaining > time.Duration(e.Record.Timeout)*time.Second {
					t.Errorf("learned %+v", *e)
				}
				buckets[bucketOf(&e.Record)] = true
			}
			learned += len(entries)
			named = len(names)
		},
	})
	if !conn.closed || p.over != nil {
		t.Error("the connection is open")
	}
	counted(t, cfg.Counters, outcome(err))
	if uint64(learned)+res.Skipped > res.Entries || int(res.Entries)*ipvssync.RecordLen4 > len(script) || named*11 > len(script) {
		t.Errorf("%d learned, %d names, of %d bytes: %+v", learned, named, len(script), res)
	}
	if res.Bytes > uint64(said) {
		t.Errorf("%d bytes received of %d", res.Bytes, said)
	}
	if auth.Ring != nil && mode&fuzzRaw != 0 && (learned > 0 || err == nil) {
		t.Errorf("%d learned without a signature, error %v", learned, err)
	}
	if err == nil && int(res.Entries) != learned+int(res.Skipped) {
		t.Errorf("%d learned: %+v", learned, res)
	}
	for n, ok := range buckets {
		if ok && purpose != Join && !slices.Contains(res.Buckets, uint16(n)) {
			t.Errorf("learned of bucket %d, which differs not", n)
		}
	}
	// What a pupil says is hello, request, pages and what it wants.
	if most := wire.HelloLen + maxPages*(wire.MaxClientPayload+wire.HeaderLen+wire.TagLen); conn.out.Len() > most {
		t.Errorf("%d bytes sent", conn.out.Len())
	}
}

// FuzzServe teaches a fuzzer, which may know the key: the session ends, in one counted way and within its limits, leaves nothing behind, and what the server
// says is a session in good order.
func FuzzServe(f *testing.F) {
	secure := signed(f, key1)
	from := newReplica(teacher)
	from.fill(60)
	to := from.teacher()
	request := func(p Purpose) []byte {
		return fuzzFrame(wire.TypeRequest, wire.AppendRequest(nil, &wire.Request{Purpose: p, Node: uint64(to.Node), Incarnation: uint64(to.Incarnation)}))
	}
	page := wire.AppendPage(nil, 1<<60, []Digest{differing(1), differing(2), differing(bucketOf(&some(1)[0].Record))})
	var all []uint16
	for n := range uint16(wire.Buckets) {
		all = append(all, n)
	}
	f.Add(byte(0), request(Join))
	f.Add(byte(1), slices.Concat(request(Audit), fuzzFrame(wire.TypeDigests, page, page), fuzzFrame(wire.TypeWant, wire.AppendWant(nil, all))))
	f.Add(byte(1), slices.Concat(request(Compare), fuzzFrame(wire.TypeDigests, page), fuzzFrame(wire.TypeWant, nil)))
	f.Add(byte(1), slices.Concat(request(Audit), fuzzFrame(wire.TypeDigests, slices.Repeat([][]byte{page}, maxPages+1)...)))
	f.Add(byte(0), request(9))
	f.Add(byte(fuzzRaw), make([]byte, 100))
	f.Add(byte(fuzzRaw|fuzzNoHello), make([]byte, wire.HelloLen))
	whole := fuzzer(wire.RoleClient, pupilN, insecure)
	f.Add(byte(fuzzRaw|fuzzInsecure), whole.frames(request(Join)))
	f.Add(byte(fuzzRaw|fuzzInsecure|fuzzNoHello), append(whole.hello(), whole.frames(request(Audit))...))

	f.Fuzz(func(t *testing.T, mode byte, script []byte) {
		auth := secure
		if mode&fuzzInsecure != 0 {
			auth = insecure
		}
		fuzzServe(t, from, auth, mode, script)
	})
}

func fuzzServe(t *testing.T, from *replica, auth Auth, mode byte, script []byte) {
	p := fuzzer(wire.RoleClient, pupilN, auth)
	conn := &scripted{in: p.hello(), answer: func(hello []byte) []byte { return p.says(hello, mode, script) }}
	if mode&fuzzNoHello != 0 {
		conn.in, conn.answer = slices.Clone(script), nil
	}
	s := NewServer(from, auth, quiet)
	s.self = from.teacher()
	calls, digests := from.calls, from.digests
	s.enter(conn)
	s.handle(t.Context(), conn)

	if !conn.closed || s.Sessions() != 0 || len(s.halfOpen) != 0 {
		t.Errorf("closed: %v, %d sessions, %d connections", conn.closed, s.Sessions(), len(s.halfOpen))
	}
	got := outcomes(s.Counters())
	if len(got) != 1 {
		t.Errorf("counted %v", got)
	}
	calls, digests = from.calls-calls, from.digests-digests
	if calls > wire.Buckets || digests > maxPages*wire.MaxPage {
		t.Errorf("%d buckets read, %d digested", calls, digests)
	}
	entries, bytes := s.Counters().Get(Entries), s.Counters().Get(Bytes)
	most := uint64(wire.HelloLen + (maxPages+5)*(wire.MaxPage*14+wire.HeaderLen+wire.TagLen) + 1000*len(from.names) + 500*int(from.state.Entries))
	if entries > from.state.Entries || bytes > most || int(bytes) != conn.out.Len() {
		t.Errorf("%d entries and %d bytes sent, %d written", entries, bytes, conn.out.Len())
	}
	if auth.Ring != nil && mode&(fuzzRaw|fuzzNoHello) != 0 && (conn.out.Len() > wire.HelloLen || calls+digests > 0) {
		t.Errorf("%d bytes for a stranger, %d buckets read, %d digested", conn.out.Len(), calls, digests)
	}
	if mode&(fuzzRaw|fuzzNoHello) == 0 {
		p.check(t, conn.out.Bytes(), got[Finished] > 0)
	}
}

// check reads what a server has said, and fails the test unless it is in order.
func (p *puppet) check(t *testing.T, b []byte, whole bool) {
	t.Helper()
	p.link.ctx, p.link.conn, p.link.limit, p.link.end = t.Context(), &scripted{in: b[wire.HelloLen:]}, wire.MaxPayload, time.Now().Add(time.Hour)
	stage, entries := wire.TypeRequest, uint64(0)
	for {
		kind, b, err := p.read()
		if errors.Is(err, ErrClosed) && (!whole || stage == wire.TypeFinish) {
			return
		}
		if err != nil || stage >= wire.TypeFinish {
			t.Fatalf("%s behind %s, error %v", kind, stage, err)
		}
		ok := false
		switch kind {
		case wire.TypeStart:
			_, err = wire.ParseSummary(b)
			ok = stage == wire.TypeRequest
		case wire.TypeDiffer:
			_, err = wire.ParseDigests(b, nil)
			ok = stage == wire.TypeStart || stage == wire.TypeDiffer
		case wire.TypeOrigins:
			ok = stage >= wire.TypeStart
		case wire.TypeEntries:
			ok = stage >= wire.TypeStart
			r := wire.NewReader(b)
			var it wire.Item
			var rec ipvssync.Record
			for err = r.Next(&it, &rec); err == nil; err = r.Next(&it, &rec) {
				entries++
			}
			if errors.Is(err, wire.ErrEnd) {
				err = nil
			}
		case wire.TypeFinish:
			var s wire.Summary
			s, err = wire.ParseSummary(b)
			ok = stage >= wire.TypeStart && s.Entries == entries
		case wire.TypeError:
			_, err = wire.ParseError(b)
			ok = true
		}
		if !ok || err != nil {
			t.Fatalf("%s behind %s, error %v", kind, stage, err)
		}
		stage = kind
	}
}
