package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/lib/peer"
	wire "saru/proto/transfer"
)

// differing is a digest that no empty bucket has.
func differing(bucket uint16) Digest { return Digest{Bucket: bucket, Count: 1, Sum: 1} }

// What a teacher says of digests decides neither how long an audit lasts nor what it takes.
func TestTeacherAudit(t *testing.T) {
	list := some(2)
	first := bucketOf(&list[0].Record)
	all := func(d []Digest) []Digest {
		for i := range d {
			d[i].Count, d[i].Sum = math.MaxUint32, d[i].Sum+1
		}
		return d
	}
	none := func(d []Digest) []Digest { return nil }
	only := func(d []Digest) (out []Digest) {
		for _, d := range d {
			if d.Bucket == first {
				out = append(out, differing(first))
			}
		}
		return out
	}
	reply := func(b []byte) func(*puppet) {
		return func(p *puppet) { p.start(0); p.get(); p.put(wire.TypeDiffer, b) }
	}
	const rounds = 2 * roundPause
	runTeachers(t, Audit, []hostileTeacher{
		{"everything differs always", func(p *puppet) {
			p.start(math.MaxUint64)
			pages, kind, want := p.answer(all)
			if pages == maxPages && kind == wire.TypeWant && len(want) == 2*wire.Buckets {
				p.finish(0)
			}
		}, nil, Finished, 0, rounds},
		{"nothing differs, and there is something", func(p *puppet) {
			p.start(5)
			p.answer(none)
			p.introduce(1)
			p.put(wire.TypeEntries, payload(list[0]))
		}, ErrBucket, Malformed, 0, 0},
		{"bucket not asked for among those that are", func(p *puppet) {
			p.start(5)
			p.answer(only)
			p.introduce(1)
			p.put(wire.TypeEntries, payload(list...))
		}, ErrBucket, Malformed, 1, rounds},
		{"skipped record of a bucket not asked for", func(p *puppet) {
			p.start(5)
			p.answer(only)
			p.introduce(1)
			e := list[1]
			e.Record.Timeout, e.Remaining = 0, 0
			p.put(wire.TypeEntries, payload(e))
		}, ErrBucket, Malformed, 0, rounds},
		{"silent instead of Differ", func(p *puppet) { p.start(0); p.get() }, ErrTimeout, Timeout, 0, frameTime},
		{"silent after Want", func(p *puppet) { p.start(0); p.answer(none) }, ErrTimeout, Timeout, 0, frameTime},
		{"a page each 4 s", func(p *puppet) {
			p.start(0)
			p.answer(func(d []Digest) []Digest { time.Sleep(4 * time.Second); return all(d) })
		}, ErrTimeout, Timeout, 0, maxPages*4*time.Second + rounds + frameTime},
		{"Entries instead of Differ", func(p *puppet) { p.start(0); p.get(); p.introduce(1) }, ErrUnexpected, Malformed, 0, 0},
		{"Finish instead of Differ", func(p *puppet) { p.start(0); p.get(); p.finish(0) }, ErrUnexpected, Malformed, 0, 0},
		{"malformed Differ", reply(make([]byte, 13)), wire.ErrPayload, Malformed, 0, 0},
		{"Differ of another page", reply(wire.AppendDigests(nil, []Digest{differing(wire.MaxPage)})), ErrBucket, Malformed, 0, 0},
		{"Differ of no bucket", reply(wire.AppendDigests(nil, []Digest{differing(wire.Buckets)})), wire.ErrPayload, Malformed, 0, 0},
		{"a bucket differs twice", reply(wire.AppendDigests(nil, []Digest{differing(3), differing(3)})), wire.ErrPayload, Malformed, 0, 0},
		{"what is equal differs", reply(wire.AppendDigests(nil, []Digest{{Bucket: 3}})), wire.ErrPayload, Malformed, 0, 0},
		{"endless Differ", func(p *puppet) {
			p.start(0)
			for {
				p.put(wire.TypeDiffer, wire.AppendDigests(nil, []Digest{differing(3)}))
			}
		}, ErrTimeout, Timeout, 0, frameTime}, // neither reads: over TCP the second one is of another page
	})
}

// Of entries there are at most a million more than twice what was announced, and they come by without being kept.
func TestTeacherEndless(t *testing.T) {
	auth := signed(t, key1)
	e := conn4(1)
	body := make([]Entry, 1400)
	for i := range body {
		body[i] = e
	}
	frame := append(wire.BeginFrame(nil, wire.TypeEntries), payload(body...)...)
	frame, err := wire.EndFrame(frame, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, announced := range []uint64{0, 1000} {
		t.Run(strconv.FormatUint(announced, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt := hostileTeacher{script: func(p *puppet) {
					p.start(announced)
					p.introduce(1)
					for {
						p.out.Seal(frame)
						p.raw(frame)
					}
				}, err: ErrExcess, counter: Excess, learned: excess + 2*int(announced)}
				n := allocated(func() { pullFrom(t, Join, &tt, auth, auth) })
				t.Logf("%d bytes allocated", n)
				if n > 1<<20 {
					t.Errorf("%d bytes allocated for what was not kept", n)
				}
			})
		})
	}
}

// 2^63 announced entries neither overflow nor lift the limit of time.
func TestTeacherAnnounces(t *testing.T) {
	e := some(1)[0]
	for _, announced := range []uint64{1 << 40, 1 << 63, math.MaxUint64} {
		t.Run(strconv.FormatUint(announced, 10), func(t *testing.T) {
			runTeachers(t, Join, []hostileTeacher{{"an entry each 3.5 s", func(p *puppet) {
				p.start(announced)
				p.introduce(1)
				for {
					p.put(wire.TypeEntries, payload(e))
					time.Sleep(3500 * time.Millisecond)
				}
			}, ErrTimeout, Timeout, 1 + int(lifetime/(3500*time.Millisecond)), lifetime}})
		})
	}
}

// The longest names of the most origins are some megabytes, and a large frame that never comes is one frame.
func TestTeacherMemory(t *testing.T) {
	auth := signed(t, key1)
	var names [][]byte
	for i := 0; i < wire.MaxOrigins; {
		var b []byte
		for ; i < wire.MaxOrigins && len(b) < wire.MaxPayload-100; i++ {
			name := strings.Repeat("x", wire.MaxName-6) + strconv.Itoa(100000+i)
			b = wire.AppendOrigin(b, &wire.Origin{Index: uint16(i), Node: uint64(peer.IDOf(name)), Name: name})
		}
		names = append(names, b)
	}
	synctest.Test(t, func(t *testing.T) {
		var before, during runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		pullFrom(t, Join, &hostileTeacher{script: func(p *puppet) {
			p.start(0)
			for _, b := range names {
				p.put(wire.TypeOrigins, b)
			}
			// The pupil waits for the rest of this one, with everything in its hands.
			p.raw(append(binary.BigEndian.AppendUint32(nil, wire.MaxPayload), byte(wire.TypeEntries), 0, 0, 0))
			runtime.GC()
			runtime.ReadMemStats(&during)
		}, err: ErrTimeout, counter: Timeout, took: frameTime}, auth, auth)
		n := int64(during.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%d bytes held", n)
		if during.HeapAlloc == 0 || n > 24<<20 {
			t.Errorf("%d bytes are held", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n := allocated(func() {
			pullFrom(t, Join, &hostileTeacher{script: func(p *puppet) {
				p.meet()
				p.swallow()
				p.raw([]byte{255, 255, 255, 255, byte(wire.TypeStart), 0, 0, 0})
			}, err: wire.ErrFrame, counter: Malformed}, auth, auth)
		})
		if n > 1<<20 {
			t.Errorf("%d bytes allocated for a frame that is refused", n)
		}
	})
}

// A pull ends when its context does, also while a kernel socket waits.
func TestPullCanceled(t *testing.T) {
	auth := signed(t, key1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, script := range []func(*puppet){func(p *puppet) { p.hear() }, func(p *puppet) { p.start(1) }} {
		a, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		p := play(b, wire.RoleTeacher, teacher, auth, func(p *puppet) {
			script(p)
			cancel()
			_, _ = io.Copy(io.Discard, p.conn)
		})
		r := newReplica(pupilN)
		cfg := r.config(auth)
		begin := time.Now()
		if _, err := Pull(ctx, a, cfg, r.request(Join, newReplica(teacher))); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begin); took > frameTime-time.Second {
			t.Errorf("took %v to be canceled", took)
		}
		<-p.done
		counted(t, cfg.Counters, Stopped)
	}
}
