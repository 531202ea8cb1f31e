package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"saru/lib/seal"
	wire "saru/proto/transfer"
)

// a hostile pupil, and what a server makes of it.
type hostilePupil struct {
	name    string
	script  func(*puppet)
	counter Counter
	took    time.Duration // until the server hung up, by the clock of the bubble
	proved  bool          // it got a session; else the table must not have been touched
}

// teachPuppet serves a puppet, and then an honest pupil.
func teachPuppet(t *testing.T, tt *hostilePupil, server, pupil Auth) {
	t.Helper()
	from := newReplica(teacher)
	from.fill(300)
	s := NewServer(from, server, quiet)
	l := newPipeListener()
	stop := start(t, s, l)
	a, b := net.Pipe()
	conn := &timed{Conn: b}
	begin := time.Now()
	l.conns <- conn
	p := play(a, wire.RoleClient, pupilN, pupil, tt.script)
	<-p.done
	synctest.Wait()
	if took := conn.closed.Sub(begin); took != tt.took {
		t.Errorf("took %v, want %v", took, tt.took)
	}
	counted(t, s.Counters(), tt.counter)
	if !tt.proved && (from.calls != 0 || from.digests != 0 || s.Counters().Get(Entries) != 0) {
		t.Errorf("%d buckets read and %d digested for nobody", from.calls, from.digests)
	}
	if n := s.Sessions(); n != 0 || len(s.halfOpen) != 0 {
		t.Errorf("%d sessions and %d connections are left", n, len(s.halfOpen))
	}
	honest(t, l.dial(), from, server)
	stop()
}

// timed is a connection that knows when it was closed here.
type timed struct {
	net.Conn
	closed time.Time
}

func (c *timed) Close() error {
	if c.closed.IsZero() {
		c.closed = time.Now()
	}
	return c.Conn.Close()
}

// honest pulls everything.
func honest(t testing.TB, conn net.Conn, from *replica, auth Auth) {
	t.Helper()
	r := newReplica("honest")
	if res, err := Pull(t.Context(), conn, r.config(auth), r.request(Join, from)); err != nil || !res.Complete {
		t.Errorf("an honest pupil gets %+v, error %v", res, err)
	}
	same(t, from, r)
}

func runPupils(t *testing.T, list []hostilePupil) {
	auth := signed(t, key1)
	for _, tt := range list {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { teachPuppet(t, &tt, auth, auth) })
		})
	}
}

// Who has not proved itself gets a hello, two seconds, and nothing else.
func TestPupilHello(t *testing.T) {
	change := func(at int, to byte) func(*puppet) {
		return func(p *puppet) { b := p.hello(); b[at] = to; p.raw(b) }
	}
	request := func(change func(p *puppet, frame []byte) []byte) func(*puppet) {
		return func(p *puppet) { p.meet(); p.raw(change(p, p.sealed(wire.TypeRequest, p.asked(Join)))) }
	}
	put := func(kind wire.Type, b []byte) func(*puppet) { return func(p *puppet) { p.meet(); p.put(kind, b) } }
	runPupils(t, []hostilePupil{
		{"says nothing", func(p *puppet) {}, Timeout, handshakeTime, false},
		{"reads nothing", func(p *puppet) { p.raw(p.hello()); time.Sleep(time.Minute) }, Timeout, handshakeTime, false},
		{"half a hello", func(p *puppet) { p.raw(p.hello()[:63]) }, Timeout, handshakeTime, false},
		{"half a hello and the end", func(p *puppet) { p.raw(p.hello()[:63]); p.conn.Close() }, Closed, 0, false},
		{"a byte a second", func(p *puppet) { p.trickle(p.hello()) }, Timeout, handshakeTime, false},
		{"a hello and no proof", func(p *puppet) { p.meet() }, Timeout, handshakeTime, false},
		{"half a proof", func(p *puppet) { p.meet(); p.raw(p.sealed(wire.TypeRequest, p.asked(Join))[:30]) }, Timeout, handshakeTime, false},
		{"proof, a byte a second", func(p *puppet) { p.meet(); p.trickle(p.sealed(wire.TypeRequest, p.asked(Join))) }, Timeout, handshakeTime, false},
		{"another protocol", func(p *puppet) {
			p.raw([]byte("GET / HTTP/1.1\r\nHost: director-1.example.com\r\nAccept: */*\r\n\r\n\r\n\r\n")[:wire.HelloLen])
		}, Malformed, 0, false},
		{"another version", change(4, 2), WrongVersion, 0, false},
		{"reserved byte", change(7, 1), Malformed, 0, false},
		{"incarnation 0", func(p *puppet) { p.own.Incarnation = 0; p.raw(p.hello()) }, Malformed, 0, false},
		// These get the server's hello first.
		{"a teacher", func(p *puppet) { p.own.Role = wire.RoleTeacher; p.raw(p.hello()); p.hear() }, Malformed, 0, false},
		{"unsigned", func(p *puppet) { p.own.KeyID = 0; p.raw(p.hello()); p.hear() }, Unsigned, 0, false},
		{"unknown key", func(p *puppet) { p.own.KeyID = 9; p.raw(p.hello()); p.hear() }, UnknownKey, 0, false},
		{"another group", func(p *puppet) { p.own.Group++; p.raw(p.hello()); p.hear() }, WrongGroup, 0, false},
		{"the server itself", func(p *puppet) {
			p.own.Node, p.own.Incarnation = uint64(newReplica(teacher).state.Node), uint64(newReplica(teacher).state.Incarnation)
			p.raw(p.hello())
			p.hear()
		}, Reflected, 0, false},
		{"unsigned request", request(func(_ *puppet, b []byte) []byte { clear(b[len(b)-wire.TagLen:]); return b }), Forged, 0, false},
		{"altered request", request(func(_ *puppet, b []byte) []byte { b[wire.HeaderLen] = byte(Audit); return b }), Forged, 0, false},
		{"request as the second frame", request(func(p *puppet, _ []byte) []byte { return p.sealed(wire.TypeRequest, p.asked(Join)) }), Forged, 0, false},
		{"request with the server's key of this connection", func(p *puppet) {
			p.meet()
			salt := append(bytes.Clone(p.own.Nonce[:]), p.other.Nonce[:]...)
			p.out, _ = direction(&p.auth, &p.other, &p.own, &p.other, salt)
			p.put(wire.TypeRequest, p.asked(Join))
		}, Forged, 0, false},
		{"hello changed on its way", func(p *puppet) {
			p.raw(p.hello())
			p.hear()
			p.own.Node++ // what the pupil had said
			p.derive(&p.own)
			p.put(wire.TypeRequest, p.asked(Join))
		}, Forged, 0, false},
		{"long request", request(func(*puppet, []byte) []byte {
			return []byte{0, 0, 0, wire.RequestLen + 1, byte(wire.TypeRequest), 0, 0, 0}
		}), Malformed, 0, false},
		{"request of 4 GiB", request(func(*puppet, []byte) []byte { return []byte{255, 255, 255, 255, byte(wire.TypeRequest), 0, 0, 0} }), Malformed, 0, false},
		{"Want instead of a request", put(wire.TypeWant, nil), Malformed, 0, false},
		{"malformed request", put(wire.TypeRequest, make([]byte, wire.RequestLen-1)), Malformed, 0, false},
		{"reserved byte of the request", put(wire.TypeRequest, []byte{0: 1, 1: 1, wire.RequestLen - 1: 0}), Malformed, 0, false},
		{"request of no purpose", func(p *puppet) { p.request(0); refused(p, wire.CodeRefused) }, Refused, 0, false},
		{"request of a purpose to come", func(p *puppet) { p.request(Compare + 1); refused(p, wire.CodeRefused) }, Refused, 0, false},
		{"meant for another node", func(p *puppet) {
			p.meet()
			p.other.Node++
			p.put(wire.TypeRequest, p.asked(Join))
			refused(p, wire.CodeRefused)
		}, RefusedIncarnation, 0, false},
		{"meant for another life", func(p *puppet) {
			p.meet()
			p.other.Incarnation--
			p.put(wire.TypeRequest, p.asked(Join))
			refused(p, wire.CodeRefused)
		}, RefusedIncarnation, 0, false},
	})
}

// refused waits a minute, which no test expects, unless the teacher says why it refuses.
func refused(p *puppet, want wire.Code) {
	kind, b := p.get()
	if code, err := wire.ParseError(b); kind != wire.TypeError || err != nil || code != want {
		time.Sleep(time.Minute)
	}
}

// Keys of another file, or of none, get a hello at most.
func TestPupilKeys(t *testing.T) {
	auth := signed(t, key1)
	send := func(p *puppet) { p.meet(); p.put(wire.TypeRequest, p.asked(Join)) }
	for _, tt := range []struct {
		name          string
		server, pupil Auth
		hostilePupil
	}{
		{"another secret", auth, signed(t, otherKey1), hostilePupil{script: send, counter: Forged}},
		{"key that was removed", auth, signed(t, "2 "+key1[2:]), hostilePupil{script: func(p *puppet) { p.raw(p.hello()); p.hear() }, counter: UnknownKey}},
		{"signed for who has no keys", insecure, auth, hostilePupil{script: func(p *puppet) { p.raw(p.hello()); p.hear() }, counter: UnknownKey}},
		{"tag where there is none", insecure, insecure, hostilePupil{script: func(p *puppet) {
			p.meet()
			b := p.sealed(wire.TypeRequest, p.asked(Join))
			b[len(b)-1] = 1
			p.raw(b)
		}, counter: Malformed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { teachPuppet(t, &tt.hostilePupil, tt.server, tt.pupil) })
		})
	}
}

// A pupil that knows the key is held to the format, to so many pages, and to its time.
func TestPupilSession(t *testing.T) {
	session := func(purpose Purpose, script func(*puppet)) func(*puppet) {
		return func(p *puppet) { p.request(purpose); p.get(); script(p) }
	}
	put := func(kind wire.Type, b []byte) func(*puppet) {
		return session(Audit, func(p *puppet) { p.put(kind, b) })
	}
	list := wire.AppendPage(nil, 1, []Digest{differing(1), differing(9)})
	long := slices.Concat(list, make([]byte, 14*wire.MaxPage))
	header := func(n uint32) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), byte(wire.TypeWant), 0, 0, 0)
	}
	runPupils(t, []hostilePupil{
		{"never reads", func(p *puppet) { p.request(Join); time.Sleep(time.Minute) }, Timeout, frameTime, true},
		{"reads the start only", session(Join, func(p *puppet) { time.Sleep(time.Minute) }), Timeout, frameTime, true},
		{"reads a byte a second", func(p *puppet) {
			p.request(Join)
			var b [1]byte
			_ = p.conn.SetDeadline(time.Time{})
			for {
				if _, err := p.conn.Read(b[:]); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, Timeout, frameTime, true},
		{"hangs up", session(Join, func(p *puppet) { p.conn.Close() }), Closed, 0, true},
		{"asks for nothing", session(Audit, func(p *puppet) {}), Timeout, frameTime, true},
		{"half a frame", session(Audit, func(p *puppet) { p.raw(p.sealed(wire.TypeDigests, list)[:30]) }), Timeout, frameTime, true},
		{"a byte a second", session(Audit, func(p *puppet) { p.trickle(p.sealed(wire.TypeDigests, list)) }), Timeout, frameTime, true},
		{"asks and does not read", session(Audit, func(p *puppet) { p.put(wire.TypeDigests, list); time.Sleep(time.Minute) }), Timeout, frameTime, true},
		{"endless pages", session(Compare, func(p *puppet) {
			for {
				p.put(wire.TypeDigests, list)
				p.get()
			}
		}), Excess, 0, true},
		{"endless pages, one each 4 s", session(Compare, func(p *puppet) {
			for {
				p.put(wire.TypeDigests, list)
				p.get()
				time.Sleep(4 * time.Second)
			}
		}), Excess, maxPages * 4 * time.Second, true},
		{"frame of 8,193 bytes", session(Audit, func(p *puppet) { p.raw(header(wire.MaxClientPayload + 1)) }), Malformed, 0, true},
		{"frame of 4 GiB", session(Audit, func(p *puppet) { p.raw(header(1<<32 - 1)) }), Malformed, 0, true},
		{"a page of nothing", put(wire.TypeDigests, list[:8]), Malformed, 0, true},
		{"a page too long", put(wire.TypeDigests, long), Malformed, 0, true},
		{"half a digest", put(wire.TypeDigests, list[:len(list)-1]), Malformed, 0, true},
		{"digest of no bucket", put(wire.TypeDigests, wire.AppendPage(nil, 1, []Digest{differing(wire.Buckets)})), Malformed, 0, true},
		{"digests descending", put(wire.TypeDigests, wire.AppendPage(nil, 1, []Digest{differing(2), differing(1)})), Malformed, 0, true},
		{"wants no bucket there is", put(wire.TypeWant, wire.AppendWant(nil, []uint16{wire.Buckets})), Malformed, 0, true},
		{"wants bucket 65,535", put(wire.TypeWant, []byte{255, 255}), Malformed, 0, true},
		{"wants a bucket twice", put(wire.TypeWant, wire.AppendWant(nil, []uint16{7, 7})), Malformed, 0, true},
		{"wants half a bucket", put(wire.TypeWant, []byte{0}), Malformed, 0, true},
		{"request again", session(Audit, func(p *puppet) { p.put(wire.TypeRequest, p.asked(Audit)) }), Malformed, 0, true},
		{"a teacher's frame", put(wire.TypeDiffer, list), Malformed, 0, true},
		{"frame of no type", put(200, nil), Malformed, 0, true},
		{"altered page", session(Audit, func(p *puppet) {
			b := p.sealed(wire.TypeDigests, list)
			b[wire.HeaderLen]++
			p.raw(b)
		}), Forged, 0, true},
		{"the same page again", session(Audit, func(p *puppet) {
			b := p.sealed(wire.TypeDigests, list)
			p.raw(b)
			p.get()
			p.raw(b)
		}), Forged, 0, true},
		{"the server's own Start", session(Audit, func(p *puppet) { p.raw(bytes.Clone(p.buf[:wire.HeaderLen+12+wire.TagLen])) }), Forged, 0, true},
		{"wants nothing", put(wire.TypeWant, nil), Finished, 0, true},
	})
}

// A session that was recorded is good for nothing, in the same life of the server or in another one, over whatever carries it.
func TestPupilReplays(t *testing.T) {
	auth := signed(t, key1)
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			from := newReplica(teacher)
			from.fill(300)
			dial, stop := tr.serve(t, NewServer(from, auth, quiet))
			client, server := recorded(t, dial(), from, auth, Join)
			stop()
			again := newReplica(teacher)
			again.fill(300)
			again.state.Incarnation++
			for _, tt := range []struct {
				name   string
				from   *replica
				script func(*puppet)
				want   Counter
			}{
				{"the pupil's bytes", from, func(p *puppet) { p.raw(client[:wire.HelloLen]); p.hear(); p.raw(client[wire.HelloLen:]) }, Forged},
				{"the pupil's bytes, in another life", again, func(p *puppet) { p.raw(client[:wire.HelloLen]); p.hear(); p.raw(client[wire.HelloLen:]) }, Forged},
				{"the pupil's frames behind a new hello", from, func(p *puppet) { p.meet(); p.raw(client[wire.HelloLen:]) }, Forged},
				{"the server's bytes", from, func(p *puppet) { p.raw(server[:wire.HelloLen]); p.hear(); p.raw(server[wire.HelloLen:]) }, Reflected},
				{"the server's bytes, in another life", again, func(p *puppet) { p.raw(server[:wire.HelloLen]); p.hear(); p.raw(server[wire.HelloLen:]) }, Malformed},
				{"the server's frames as a pupil's", from, func(p *puppet) { p.meet(); p.raw(server[wire.HelloLen:]) }, Forged},
			} {
				t.Run(tt.name, func(t *testing.T) {
					s := NewServer(tt.from, auth, quiet)
					dial, stop := tr.serve(t, s)
					calls, digests := tt.from.calls, tt.from.digests
					p := play(dial(), wire.RoleClient, pupilN, auth, tt.script)
					<-p.done
					if p.heard != 0 {
						t.Errorf("%d bytes came behind the hello", p.heard)
					}
					honest(t, dial(), tt.from, auth)
					stop()
					if got := outcomes(s.Counters()); len(got) != 2 || got[tt.want] != 1 || got[Finished] != 1 {
						t.Errorf("counted %v, want one %s and one finished", got, tt.want)
					}
					if n := tt.from.calls - calls; n != wire.Buckets || tt.from.digests != digests {
						t.Errorf("%d buckets read, %d digested; the honest one needs %d", n, tt.from.digests-digests, wire.Buckets)
					}
				})
			}
		})
	}
}

// What a pupil hears of why it is refused.
func TestPupilIsTold(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		from := newReplica(teacher)
		dial, _ := serve(t, NewServer(from, auth, quiet))
		for _, tt := range []struct {
			name   string
			change func(*Config, *Request)
			want   error
		}{
			{"node", func(_ *Config, r *Request) { r.Expect.Node++ }, ErrIncarnation},
			{"incarnation", func(_ *Config, r *Request) { r.Expect.Incarnation++ }, ErrIncarnation},
			{"purpose", func(_ *Config, r *Request) { r.Purpose = 9 }, ErrRefused},
			{"secret", func(c *Config, _ *Request) { c.Auth = signed(t, otherKey1) }, ErrClosed},
			{"key", func(c *Config, _ *Request) { c.Auth = signed(t, "7 "+key1[2:]) }, seal.ErrUnknownKey},
			{"no keys", func(c *Config, _ *Request) { c.Auth = insecure }, seal.ErrUnknownKey},
			{"group", func(c *Config, _ *Request) { c.Auth.Group = "224.0.0.82:8848" }, ErrGroup},
			{"itself", func(c *Config, _ *Request) { c.Node, c.Incarnation = from.state.Node, from.state.Incarnation }, ErrReflected},
		} {
			r := newReplica(pupilN)
			cfg, req := r.config(auth), r.request(Join, from)
			tt.change(&cfg, &req)
			if _, err := Pull(t.Context(), dial(), cfg, req); !errors.Is(err, tt.want) {
				t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
			}
			counted(t, cfg.Counters, outcome(tt.want))
		}
	})
}
