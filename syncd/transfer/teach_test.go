package transfer

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"saru/lib/peer"
	wire "saru/proto/transfer"
)

// A pull is complete only if the teacher was so from the beginning to the end.
func TestComplete(t *testing.T) {
	auth := signed(t, key1)
	for _, begin := range []bool{false, true} {
		for _, end := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				p := play(b, wire.RoleTeacher, teacher, auth, func(p *puppet) {
					p.meet()
					p.get()
					p.put(wire.TypeStart, wire.AppendSummary(nil, wire.Summary{Complete: begin}))
					p.put(wire.TypeFinish, wire.AppendSummary(nil, wire.Summary{Complete: end}))
				})
				r := newReplica(pupilN)
				if res, err := Pull(t.Context(), a, r.config(auth), r.request(Join, newReplica(teacher))); err != nil || res.Complete != (begin && end) {
					t.Errorf("complete %v and %v: %+v, error %v", begin, end, res, err)
				}
				<-p.done

				from := newReplica(teacher)
				from.state.Synced = begin
				dial, _ := serve(t, NewServer(from, auth, quiet))
				p = play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) {
					p.request(Audit)
					_, b := p.get()
					start, _ := wire.ParseSummary(b)
					from.mu.Lock()
					from.state.Synced = end
					from.mu.Unlock()
					p.put(wire.TypeWant, nil)
					_, b = p.get()
					if finish, err := wire.ParseSummary(b); err != nil || start.Complete != begin || finish.Complete != (begin && end) {
						t.Errorf("complete %v and %v: Start %+v, Finish %+v, error %v", begin, end, start, finish, err)
					}
				})
				<-p.done
			})
		}
	}
}

// source is a mill that does something of its own for each entry or bucket.
type source struct {
	mill
	bucket func(n uint16)
	change func(n uint16, i int, e *Entry)
}

func (s *source) Bucket(n uint16, fn func(*Entry) bool) {
	if s.bucket != nil {
		s.bucket(n)
	}
	i := 0
	s.mill.Bucket(n, func(e *Entry) bool {
		c := *e
		if s.change != nil {
			s.change(n, i, &c)
		}
		i++
		return fn(&c)
	})
}

// What is as good as expired, or has no stamp, is not sent; of more origins than there are numbers for, the entries of the rest are left out and counted.
func TestTeachesNot(t *testing.T) {
	auth := signed(t, key1)
	const each, over = 17, 17*wire.Buckets - wire.MaxOrigins
	for _, tt := range []struct {
		name          string
		change        func(n uint16, i int, e *Entry)
		sent, skipped uint64
	}{
		{"half a second left", func(_ uint16, i int, e *Entry) {
			if i == 0 {
				e.Remaining = time.Second - 1
			}
		}, (each - 1) * wire.Buckets, 0},
		{"no clock", func(_ uint16, i int, e *Entry) {
			if i < 2 {
				e.Stamp.Clock = 0
			}
		}, (each - 2) * wire.Buckets, 0},
		{"not to be encoded", func(_ uint16, i int, e *Entry) {
			if i == 3 {
				e.Record.PEData = []byte("of no engine")
			}
		}, (each - 1) * wire.Buckets, wire.Buckets},
		{"too many origins", func(n uint16, i int, e *Entry) { e.Origin = peer.ID(int(n)*each + i + 1) }, wire.MaxOrigins, over},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &source{mill: mill{state: newReplica(teacher).state, entry: conn4(1), each: each}, change: tt.change}
				s := NewServer(src, auth, quiet)
				dial, stop := serve(t, s)
				r := newReplica(pupilN)
				req := r.request(Join, newReplica(teacher))
				var learned uint64
				req.BucketOf, req.Learn = nil, func(e []Entry, _ map[peer.ID]string) { learned += uint64(len(e)) }
				res, err := Pull(t.Context(), dial(), r.config(auth), req)
				stop()
				if err != nil || learned != tt.sent || res.Entries != tt.sent || res.Skipped != 0 {
					t.Errorf("%d learned, %+v, error %v; want %d", learned, res, err, tt.sent)
				}
				if c := s.Counters(); c.Get(Entries) != tt.sent || c.Get(Skipped) != tt.skipped {
					t.Errorf("counted %d sent and %d skipped, want %d and %d", c.Get(Entries), c.Get(Skipped), tt.sent, tt.skipped)
				}
			})
		})
	}
}

// A table that takes its time costs no more than a session may last, also while there is nothing to send.
func TestTeachesSlowly(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		src := &source{mill: mill{state: newReplica(teacher).state}, bucket: func(uint16) { time.Sleep(time.Second) }}
		s := NewServer(src, auth, quiet)
		dial, stop := serve(t, s)
		begin := time.Now()
		p := play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) { p.request(Join); p.get() })
		<-p.done
		if took := time.Since(begin); took != lifetime {
			t.Errorf("took %v", took)
		}
		stop()
		counted(t, s.Counters(), Timeout)
	})
}
