package transfer

import (
	"bytes"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	wire "saru/proto/transfer"
)

var (
	otherKey1 = "1 " + strings.Repeat("02", 32) + "\n"
	bothKeys  = key1 + "2 " + strings.Repeat("02", 32) + "\n"
)

// a hostile teacher, and what a pull from it comes to.
type hostileTeacher struct {
	name    string
	script  func(*puppet)
	err     error // nil: none
	counter Counter
	learned int           // entries
	took    time.Duration // by the clock of the bubble, which is exact
}

// pullFrom pulls from a puppet.
func pullFrom(t *testing.T, purpose Purpose, tt *hostileTeacher, pupil, teaches Auth) (Result, *puppet) {
	t.Helper()
	a, b := net.Pipe()
	p := play(b, wire.RoleTeacher, teacher, teaches, tt.script)
	r := newReplica(pupilN)
	cfg, req := r.config(pupil), r.request(purpose, newReplica(teacher))
	learned := 0
	req.Learn = func(entries []Entry, _ map[peer.ID]string) {
		learned += len(entries)
		for _, e := range entries {
			if e.Stamp.Clock == 0 || e.Remaining <= 0 || e.Origin == 0 {
				t.Errorf("learned %+v", e)
			}
		}
	}
	begin := time.Now()
	res, err := Pull(t.Context(), a, cfg, req)
	took := time.Since(begin)
	close(p.over)
	<-p.done
	if !errors.Is(err, tt.err) {
		t.Errorf("error %v, want %v", err, tt.err)
	}
	if learned != tt.learned || took != tt.took || res.Took != tt.took {
		t.Errorf("%d learned in %v, want %d in %v", learned, took, tt.learned, tt.took)
	}
	if err != nil && res.Complete {
		t.Error("complete, after an error")
	}
	counted(t, cfg.Counters, tt.counter)
	return res, p
}

func runTeachers(t *testing.T, purpose Purpose, list []hostileTeacher) {
	auth := signed(t, key1)
	for _, tt := range list {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { pullFrom(t, purpose, &tt, auth, auth) })
		})
	}
}

// Before its first authentic frame a teacher can do nothing but waste five seconds.
func TestTeacherHello(t *testing.T) {
	change := func(at int, to byte) func(*puppet) {
		return func(p *puppet) { p.hear(); b := p.hello(); b[at] = to; p.raw(b) }
	}
	runTeachers(t, Join, []hostileTeacher{
		{"reads nothing", func(p *puppet) { <-p.over }, ErrTimeout, Timeout, 0, frameTime},
		{"says nothing", func(p *puppet) { p.hear() }, ErrTimeout, Timeout, 0, frameTime},
		{"half a hello", func(p *puppet) { p.hear(); p.raw(p.hello()[:40]) }, ErrTimeout, Timeout, 0, frameTime},
		{"half a hello and the end", func(p *puppet) { p.hear(); p.raw(p.hello()[:40]); p.conn.Close() }, ErrClosed, Closed, 0, 0},
		{"a byte a second", func(p *puppet) { p.hear(); p.trickle(p.hello()) }, ErrTimeout, Timeout, 0, frameTime},
		{"another protocol", func(p *puppet) { p.hear(); p.raw(bytes.Repeat([]byte("HTTP/1.1 400 Bad Request\r\n"), 3)) }, wire.ErrMagic, Malformed, 0, 0},
		{"another version", change(4, 2), wire.ErrVersion, WrongVersion, 0, 0},
		{"a client", change(6, 1), wire.ErrHello, Malformed, 0, 0},
		{"reserved byte", change(7, 1), wire.ErrHello, Malformed, 0, 0},
		{"unsigned", change(5, 0), ErrUnsigned, Unsigned, 0, 0},
		{"unknown key", change(5, 9), seal.ErrUnknownKey, UnknownKey, 0, 0},
		{"another node", change(8, 0), ErrIncarnation, RefusedIncarnation, 0, 0},
		{"another incarnation", change(23, 0), ErrIncarnation, RefusedIncarnation, 0, 0},
		{"another group", change(24, 0), ErrGroup, WrongGroup, 0, 0},
		{"own hello", func(p *puppet) { p.hear(); p.raw(wire.AppendHello(nil, &p.other)) }, ErrReflected, Reflected, 0, 0},
		{"own hello with the teacher's role", func(p *puppet) {
			p.hear()
			p.other.Role = wire.RoleTeacher
			p.raw(wire.AppendHello(nil, &p.other))
		}, ErrReflected, Reflected, 0, 0},
		{"own nonce", func(p *puppet) { p.hear(); p.own.Nonce = p.other.Nonce; p.raw(p.hello()) }, ErrReflected, Reflected, 0, 0},
	})
}

// Nothing counts but what the teacher has signed for this connection, in this order.
func TestTeacherForges(t *testing.T) {
	auth := signed(t, key1)
	three := some(3)
	inOrder := func(change func(p *puppet, frames [][]byte) [][]byte) func(*puppet) {
		return func(p *puppet) {
			p.start(3)
			p.introduce(1)
			var frames [][]byte
			for _, e := range three {
				frames = append(frames, p.sealed(wire.TypeEntries, payload(e)))
			}
			for _, f := range change(p, append(frames, p.sealed(wire.TypeFinish, finished(3)))) {
				p.raw(f)
			}
		}
	}
	swap := func(i, j int) func(*puppet, [][]byte) [][]byte {
		return func(_ *puppet, f [][]byte) [][]byte { f[i], f[j] = f[j], f[i]; return f }
	}
	flip := func(frame, at int) func(*puppet, [][]byte) [][]byte {
		return func(_ *puppet, f [][]byte) [][]byte {
			f[frame][(len(f[frame])+at)%len(f[frame])] ^= 1
			return f
		}
	}
	// An honest server has taught this director before.
	honest := newReplica(teacher)
	honest.fill(50)
	dial, stop := serve(t, NewServer(honest, auth, quiet))
	_, earlier := recorded(t, dial(), honest, auth, Join)
	stop()

	runTeachers(t, Join, []hostileTeacher{
		{"the order that is right", inOrder(swap(0, 0)), nil, Finished, 3, 0},
		{"first entries altered", inOrder(flip(0, 60)), seal.ErrForged, Forged, 0, 0},
		{"second entries altered", inOrder(flip(1, 60)), seal.ErrForged, Forged, 1, 0},
		{"last byte of a tag altered", inOrder(flip(0, -1)), seal.ErrForged, Forged, 0, 0},
		{"finish altered", inOrder(flip(3, 9)), seal.ErrForged, Forged, 3, 0},
		{"another type", inOrder(func(_ *puppet, f [][]byte) [][]byte { f[0][4] = byte(wire.TypeFinish); return f }), seal.ErrForged, Forged, 0, 0},
		{"frames exchanged", inOrder(swap(0, 1)), seal.ErrForged, Forged, 0, 0},
		{"frame left out", inOrder(func(_ *puppet, f [][]byte) [][]byte { return f[1:] }), seal.ErrForged, Forged, 0, 0},
		{"frame twice", inOrder(func(_ *puppet, f [][]byte) [][]byte { return [][]byte{f[0], f[0], f[1]} }), seal.ErrForged, Forged, 1, 0},
		{"frames unsigned", inOrder(func(_ *puppet, f [][]byte) [][]byte { clear(f[0][len(f[0])-wire.TagLen:]); return f }), seal.ErrForged, Forged, 0, 0},
		{"unsigned from the start", func(p *puppet) { p.meet(); p.out = nil; p.get(); p.put(wire.TypeStart, finished(3)) }, seal.ErrForged, Forged, 0, 0},
		{"the pupil's own request", func(p *puppet) {
			p.meet()
			p.get()
			p.raw(p.buf[:wire.HeaderLen+wire.RequestLen+wire.TagLen])
		}, seal.ErrForged, Forged, 0, 0},
		{"with the pupil's key of this connection", func(p *puppet) {
			p.meet()
			p.get()
			salt := append(bytes.Clone(p.other.Nonce[:]), p.own.Nonce[:]...)
			p.out, _ = direction(&p.auth, &p.other, &p.other, &p.own, salt)
			p.put(wire.TypeStart, finished(3))
		}, seal.ErrForged, Forged, 0, 0},
		{"all of an earlier session", func(p *puppet) {
			p.hear()
			p.raw(earlier[:wire.HelloLen])
			p.swallow()
			p.raw(earlier[wire.HelloLen:])
		}, seal.ErrForged, Forged, 0, 0},
		{"frames of an earlier session", func(p *puppet) { p.meet(); p.swallow(); p.raw(earlier[wire.HelloLen:]) }, seal.ErrForged, Forged, 0, 0},
		{"frames of an earlier session behind a right one", func(p *puppet) { p.start(9); p.raw(earlier[wire.HelloLen:]) }, seal.ErrForged, Forged, 0, 0},
		{"hello of another life changed on its way", func(p *puppet) {
			p.hear()
			p.raw(p.hello())
			p.own.Incarnation++ // the teacher had said this
			p.derive(&p.own)
			p.swallow()
			p.put(wire.TypeStart, finished(3))
		}, seal.ErrForged, Forged, 0, 0},
		{"hello changed on its way", func(p *puppet) {
			p.hear()
			p.raw(p.hello())
			p.other.Incarnation++ // the teacher has heard this
			p.derive(&p.own)
			p.swallow()
			p.put(wire.TypeStart, finished(3))
		}, seal.ErrForged, Forged, 0, 0},
	})

	for _, tt := range []struct {
		name           string
		pupil, teaches Auth
		hostileTeacher
	}{
		{"another secret", auth, signed(t, otherKey1), hostileTeacher{script: func(p *puppet) { p.meet(); p.swallow(); p.put(wire.TypeStart, finished(0)) }, err: seal.ErrForged, counter: Forged}},
		{"another key named on the way", signed(t, bothKeys), auth, hostileTeacher{script: func(p *puppet) {
			p.hear()
			named := p.own
			named.KeyID = 2
			p.raw(wire.AppendHello(nil, &named))
			p.derive(&p.own)
			p.swallow()
			p.put(wire.TypeStart, finished(3))
		}, err: seal.ErrForged, counter: Forged}},
		{"signed for who has no keys", insecure, auth, hostileTeacher{script: func(p *puppet) { p.meet() }, err: seal.ErrUnknownKey, counter: UnknownKey}},
		{"tag where there is none", insecure, insecure, hostileTeacher{script: func(p *puppet) {
			p.meet()
			p.swallow()
			b := p.sealed(wire.TypeStart, finished(0))
			b[len(b)-1] = 1
			p.raw(b)
		}, err: wire.ErrFrame, counter: Malformed}},
		{"unsigned where that is allowed", Auth{Group: group, Ring: auth.Ring, Sign: true}, insecure, hostileTeacher{script: func(p *puppet) {
			p.hear()
			p.raw(p.hello())
			p.swallow()
			p.put(wire.TypeStart, finished(0))
			p.finish(0)
		}, counter: Finished}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { pullFrom(t, Join, &tt.hostileTeacher, tt.pupil, tt.teaches) })
		})
	}
}

// A teacher that knows the key is held to the format, to what it announced and to its time.
func TestTeacherJoin(t *testing.T) {
	three := some(3)
	after := func(script func(*puppet)) func(*puppet) {
		return func(p *puppet) { p.start(3); p.introduce(1); script(p) }
	}
	put := func(kind wire.Type, b []byte) func(*puppet) { return after(func(p *puppet) { p.put(kind, b) }) }
	told := func(code wire.Code) func(*puppet) { return put(wire.TypeError, wire.AppendError(nil, code)) }
	damaged := payload(three...)
	damaged[len(damaged)-ipvssync.RecordLen4] = 2 // type of the last record
	foreign := wire.Builder{}
	foreign.Reset(nil)
	if err := foreign.Add(bucketOf(&three[0].Record)+1, &wire.Item{Clock: 1}, &three[0].Record); err != nil {
		t.Fatal(err)
	}
	strange := wire.Builder{}
	strange.Reset(nil)
	if err := strange.Add(bucketOf(&three[0].Record), &wire.Item{Origin: 1, Clock: 1}, &three[0].Record); err != nil {
		t.Fatal(err)
	}
	origin := func(index uint16, name string) []byte {
		return wire.AppendOrigin(nil, &wire.Origin{Index: index, Node: uint64(nobody), Name: name})
	}
	runTeachers(t, Join, []hostileTeacher{
		{"silent after the hello", func(p *puppet) { p.meet() }, ErrTimeout, Timeout, 0, frameTime},
		{"silent after Start", func(p *puppet) { p.start(3) }, ErrTimeout, Timeout, 0, frameTime},
		{"hangs up", after(func(p *puppet) { p.conn.Close() }), ErrClosed, Closed, 0, 0},
		{"half a frame", after(func(p *puppet) { p.raw(p.sealed(wire.TypeEntries, payload(three...))[:50]) }), ErrTimeout, Timeout, 0, frameTime},
		{"a byte a second", after(func(p *puppet) { p.trickle(p.sealed(wire.TypeEntries, payload(three...))) }), ErrTimeout, Timeout, 0, frameTime},
		{"an entry each 4.5 s for ever", after(func(p *puppet) {
			for {
				p.put(wire.TypeEntries, payload(three[0]))
				time.Sleep(4500 * time.Millisecond)
			}
		}), ErrTimeout, Timeout, 1 + int(lifetime/(4500*time.Millisecond)), lifetime},
		{"an origin each 3.5 s for ever", after(func(p *puppet) {
			for i := uint16(1); ; i++ {
				p.put(wire.TypeOrigins, origin(i, ""))
				time.Sleep(3500 * time.Millisecond)
			}
		}), ErrTimeout, Timeout, 0, lifetime},
		{"endless origins", after(func(p *puppet) {
			for i := uint16(1); ; i++ {
				p.put(wire.TypeOrigins, origin(i, ""))
			}
		}), ErrOrigin, Malformed, 0, 0},
		{"frame of 65,537 bytes", after(func(p *puppet) { p.raw([]byte{0, 1, 0, 1, byte(wire.TypeEntries), 0, 0, 0}) }), wire.ErrFrame, Malformed, 0, 0},
		{"frame of 4 GiB", after(func(p *puppet) { p.raw([]byte{255, 255, 255, 255, byte(wire.TypeEntries), 0, 0, 0}) }), wire.ErrFrame, Malformed, 0, 0},
		{"frame with a reserved byte", after(func(p *puppet) { p.raw([]byte{0, 0, 0, 9, byte(wire.TypeEntries), 1, 0, 0}) }), wire.ErrFrame, Malformed, 0, 0},
		{"Entries instead of Start", func(p *puppet) { p.meet(); p.get(); p.put(wire.TypeEntries, payload(three...)) }, ErrUnexpected, Malformed, 0, 0},
		{"Finish instead of Start", func(p *puppet) { p.meet(); p.get(); p.finish(0) }, ErrUnexpected, Malformed, 0, 0},
		{"Start twice", put(wire.TypeStart, finished(3)), ErrUnexpected, Malformed, 0, 0},
		{"malformed Start", func(p *puppet) { p.meet(); p.get(); p.put(wire.TypeStart, finished(3)[:11]) }, wire.ErrPayload, Malformed, 0, 0},
		{"Differ in a join", put(wire.TypeDiffer, nil), ErrUnexpected, Malformed, 0, 0},
		{"a client's frame", put(wire.TypeRequest, make([]byte, wire.RequestLen)), ErrUnexpected, Malformed, 0, 0},
		{"frame of no type", put(99, nil), ErrUnexpected, Malformed, 0, 0},
		{"endless frames of no type", after(func(p *puppet) {
			for {
				p.put(77, nil)
			}
		}), ErrUnexpected, Malformed, 0, 0},
		{"Entries of nothing", put(wire.TypeEntries, nil), wire.ErrPayload, Malformed, 0, 0},
		{"Entries without sections", put(wire.TypeEntries, make([]byte, 8)), wire.ErrPayload, Malformed, 0, 0},
		{"Origins of nothing", put(wire.TypeOrigins, nil), wire.ErrPayload, Malformed, 0, 0},
		{"Origins cut off", put(wire.TypeOrigins, origin(1, "name")[:12]), wire.ErrPayload, Malformed, 0, 0},
		{"origin out of turn", put(wire.TypeOrigins, origin(2, "")), ErrOrigin, Malformed, 0, 0},
		{"origin again", put(wire.TypeOrigins, origin(0, "")), ErrOrigin, Malformed, 0, 0},
		{"origin not announced", put(wire.TypeEntries, strange.Bytes()), ErrOrigin, Malformed, 0, 0},
		{"entry in another's bucket", put(wire.TypeEntries, foreign.Bytes()), ErrBucket, Malformed, 0, 0},
		{"a bucket again", after(func(p *puppet) {
			p.put(wire.TypeEntries, payload(three[1], three[2]))
			p.put(wire.TypeEntries, payload(three[0]))
		}), ErrBucket, Malformed, 2, 0},
		// Whatever is good in front of a damaged record counts, as in a datagram.
		{"damaged record", put(wire.TypeEntries, damaged), ErrRecord, Malformed, 2, 0},
		{"entries cut off", put(wire.TypeEntries, payload(three...)[:len(payload(three...))-1]), ErrRecord, Malformed, 2, 0},
		{"fewer than announced by Finish", after(func(p *puppet) { p.put(wire.TypeEntries, payload(three...)); p.finish(4) }), ErrCount, Malformed, 3, 0},
		{"more than announced by Finish", after(func(p *puppet) { p.put(wire.TypeEntries, payload(three...)); p.finish(2) }), ErrCount, Malformed, 3, 0},
		{"2^64 - 1 announced by Finish", after(func(p *puppet) { p.put(wire.TypeFinish, finished(math.MaxUint64)) }), ErrCount, Malformed, 0, 0},
		{"malformed Finish", put(wire.TypeFinish, append(finished(0), 0)), wire.ErrPayload, Malformed, 0, 0},
		{"malformed Error", put(wire.TypeError, []byte{0}), wire.ErrPayload, Malformed, 0, 0},
		{"busy", told(wire.CodeBusy), ErrBusy, RefusedBusy, 0, 0},
		{"refused", told(wire.CodeRefused), ErrRefused, Refused, 0, 0},
		{"stops", told(wire.CodeStopping), ErrStopping, Stopped, 0, 0},
		{"code to come", told(4711), ErrRefused, Refused, 0, 0},
		{"Finish and more", after(func(p *puppet) {
			p.put(wire.TypeEntries, payload(three[0]))
			p.finish(1)
			p.put(wire.TypeEntries, payload(three[1]))
		}), nil, Finished, 1, 0},
		{"Finish twice", after(func(p *puppet) { p.finish(0); p.finish(0) }), nil, Finished, 0, 0},
	})
}

// Entries that mean nothing are counted and left out; names that are not their node's, too.
func TestTeacherNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := signed(t, key1)
		list := some(4)
		list[0].Stamp.Clock = 0
		list[1].Record.Timeout, list[1].Remaining = 0, 0
		list[2].Remaining = 0
		a, b := net.Pipe()
		p := play(b, wire.RoleTeacher, teacher, auth, func(p *puppet) {
			p.start(4)
			names := wire.AppendOrigin(nil, &wire.Origin{Index: 0, Node: uint64(peer.IDOf("a")), Name: "a"})
			names = wire.AppendOrigin(names, &wire.Origin{Index: 1, Node: uint64(nobody), Name: "b"})
			p.put(wire.TypeOrigins, names)
			p.put(wire.TypeEntries, payload(list...))
			p.finish(4)
		})
		r := newReplica(pupilN)
		res, err := Pull(t.Context(), a, r.config(auth), r.request(Join, newReplica(teacher)))
		<-p.done
		if err != nil || res.Entries != 4 || res.Skipped != 3 || !res.Complete || len(r.all()) != 1 {
			t.Errorf("%+v, %d entered, error %v", res, len(r.all()), err)
		}
		if len(r.names) != 1 || r.names[peer.IDOf("a")] != "a" {
			t.Errorf("names %v", r.names)
		}
	})
}
