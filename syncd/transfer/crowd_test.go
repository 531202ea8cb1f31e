package transfer

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	wire "saru/proto/transfer"
)

// However many connect and say nothing, eight are kept, for two seconds, and an honest pupil gets through.
func TestCrowd(t *testing.T) {
	const crowd = 2000
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		from := newReplica(teacher)
		from.fill(300)
		s := NewServer(from, auth, quiet)
		dial, stop := serve(t, s)
		var conns []net.Conn
		alloc := allocated(func() {
			for range crowd {
				conns = append(conns, dial())
			}
			synctest.Wait()
		})
		if len(s.halfOpen) != maxHalfOpen || s.Counters().Get(RefusedConnects) != crowd-maxHalfOpen {
			t.Errorf("%d kept, counted %v", len(s.halfOpen), outcomes(s.Counters()))
		}
		// Goroutines and pipes come and go, which is what a connection costs.
		if per := alloc / crowd; per > 16<<10 {
			t.Errorf("%d bytes allocated for each", per)
		}
		honest(t, dial(), from, auth) // the oldest of the eight makes room
		begin := time.Now()
		for _, c := range conns {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Fatal("a stranger was told something")
			}
			c.Close()
		}
		if took := time.Since(begin); took != handshakeTime {
			t.Errorf("the last one was kept for %v", took)
		}
		stop()
		if got := outcomes(s.Counters()); got[RefusedConnects] != crowd-maxHalfOpen+1 || got[Timeout] != maxHalfOpen-1 || got[Finished] != 1 {
			t.Errorf("counted %v", got)
		}
	})
}

// The same with sockets, while the crowd goes on connecting: the honest pupil gets through at one of its attempts.
func TestCrowdTCP(t *testing.T) {
	const crowd = 300
	auth := signed(t, key1)
	from := newReplica(teacher)
	from.fill(300)
	s := NewServer(from, auth, quiet)
	dial, stop := serveTCP(t, s)
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for i := range crowd {
		c := dial()
		conns = append(conns, c)
		if i%3 == 0 {
			_, _ = c.Write(make([]byte, 63)) // most of a hello
		}
		if i%50 == 49 {
			honest(t, dial(), from, auth)
		}
	}
	if n := runtime.NumGoroutine() - before; n > 100 {
		t.Errorf("%d goroutines for %d connections", n, maxHalfOpen)
	}
	for _, c := range conns[:crowd-maxHalfOpen] {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("a stranger was told something")
		}
	}
	stop() // does not wait for those that say nothing
	for _, c := range conns {
		c.Close()
	}
	got := outcomes(s.Counters())
	if got[Finished] != crowd/50 || got[RefusedConnects] < crowd-maxHalfOpen || got[RefusedConnects]+got[Stopped]+got[Timeout] != crowd {
		t.Errorf("counted %v", got)
	}
}

// Two pupils that know the key and do not read hold both places, for five seconds; a third one is told so, and nobody has waited for the table.
func TestHeld(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		from := newReplica(teacher)
		from.fill(2000)
		s := NewServer(from, auth, quiet)
		dial, _ := serve(t, s)
		var held []*puppet
		for range maxSessions {
			held = append(held, play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) { p.request(Join); p.get(); <-p.over }))
		}
		synctest.Wait()
		if n := s.Sessions(); n != maxSessions {
			t.Fatalf("%d sessions", n)
		}
		if from.locked.Load() {
			t.Error("the table is locked while a pupil does not read")
		}
		r := newReplica("third")
		cfg := r.config(auth)
		if _, err := Pull(t.Context(), dial(), cfg, r.request(Join, from)); !errors.Is(err, ErrBusy) {
			t.Errorf("a third pupil: error %v", err)
		}
		counted(t, cfg.Counters, RefusedBusy)
		time.Sleep(frameTime)
		synctest.Wait()
		if n := s.Sessions(); n != 0 {
			t.Errorf("%d sessions after %v", n, frameTime)
		}
		honest(t, dial(), from, auth)
		for _, p := range held {
			close(p.over)
			<-p.done
		}
		synctest.Wait()
		if got := outcomes(s.Counters()); got[Timeout] != maxSessions || got[RefusedBusy] != 1 || got[Finished] != 1 {
			t.Errorf("counted %v", got)
		}
	})
}

// Who reads a frame just in time, again and again, holds a place for ten minutes.
func TestSlow(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		m := &mill{state: newReplica(teacher).state, entry: conn4(1), each: 60} // 245,760 entries, some 200 frames
		s := NewServer(m, auth, quiet)
		dial, _ := serve(t, s)
		p := play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) {
			p.request(Join)
			for {
				p.get()
				time.Sleep(frameTime - 100*time.Millisecond)
			}
		})
		time.Sleep(lifetime - time.Second)
		synctest.Wait()
		if n := s.Sessions(); n != 1 {
			t.Errorf("%d sessions before its time was over", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := s.Sessions(); n != 0 {
			t.Errorf("%d sessions after its time was over", n)
		}
		<-p.done
		synctest.Wait()
		counted(t, s.Counters(), Timeout)
	})
}

// A server that stops waits for nobody: for strangers not at all, for who does not read half a second.
func TestStopsAgainst(t *testing.T) {
	auth := signed(t, key1)
	for _, tt := range []struct {
		name   string
		script func(*puppet)
		want   Counter
		took   time.Duration
	}{
		{"says nothing", func(p *puppet) {}, Stopped, 0},
		{"half a hello", func(p *puppet) { p.raw(p.hello()[:9]) }, Stopped, 0},
		{"a hello and no proof", func(p *puppet) { p.meet() }, Stopped, 0},
		{"hello and reads nothing", func(p *puppet) { p.raw(p.hello()); <-p.over }, Stopped, stopTime},
		{"session without a page", func(p *puppet) { p.request(Audit); p.get() }, Stopped, 0},
		{"session that is not read", func(p *puppet) { p.request(Join); p.get(); <-p.over }, Stopped, stopTime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newReplica(teacher)
				from.fill(2000)
				s := NewServer(from, auth, quiet)
				dial, stop := serve(t, s)
				p := play(dial(), wire.RoleClient, pupilN, auth, tt.script)
				synctest.Wait()
				begin := time.Now()
				stop()
				if took := time.Since(begin); took != tt.took {
					t.Errorf("took %v to stop, want %v", took, tt.took)
				}
				close(p.over)
				<-p.done
				counted(t, s.Counters(), tt.want)
			})
		})
	}
}

// A word of farewell in the middle of a frame would be taken for the rest of it, and the teacher for a forger.
func TestStopsInFrame(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		from := newReplica(teacher)
		from.fill(2000)
		s := NewServer(from, auth, quiet)
		dial, stop := serve(t, s)
		p := play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) {
			p.request(Join)
			p.get()
			if _, err := io.ReadFull(p.conn, make([]byte, 100)); err != nil {
				t.Error(err)
			}
			time.Sleep(stopTime + time.Millisecond)
		})
		synctest.Wait()
		stop()
		<-p.done
		if p.heard != 0 {
			t.Errorf("%d bytes behind half a frame", p.heard)
		}
		counted(t, s.Counters(), Stopped)
	})
}

// A pupil that resets its connection, at whatever point, is one that was lost.
func TestReset(t *testing.T) {
	auth := signed(t, key1)
	from := newReplica(teacher)
	from.fill(5000)
	s := NewServer(from, auth, quiet)
	dial, stop := serveTCP(t, s)
	scripts := []func(*puppet){
		func(p *puppet) {},
		func(p *puppet) { p.raw(p.hello()) },
		func(p *puppet) { p.meet() },
		func(p *puppet) { p.request(Join) },
		func(p *puppet) { p.request(Join); p.get(); p.get() },
		func(p *puppet) { p.request(Audit); p.get() },
	}
	total := func(s *Server) (n int) {
		for _, c := range outcomes(s.Counters()) {
			n += int(c)
		}
		return n
	}
	for i, script := range scripts {
		p := play(dial(), wire.RoleClient, pupilN, auth, func(p *puppet) {
			script(p)
			_ = p.conn.(*net.TCPConn).SetLinger(0)
			p.conn.Close()
		})
		<-p.done
		// The next one would be told that as many are taught already, while the teacher has not met with this one's end.
		for begin := time.Now(); total(s) != i+1; time.Sleep(time.Millisecond) {
			if time.Since(begin) > 10*time.Second {
				t.Fatal("a session outlives its connection")
			}
		}
	}
	honest(t, dial(), from, auth)
	stop()
	got := outcomes(s.Counters())
	// What was sent before the reset may all have gone out.
	if got[Closed]+got[Finished] != uint64(len(scripts))+1 || got[Closed] < 4 {
		t.Errorf("counted %v", got)
	}
}

// A server that accepts nothing more, for want of descriptors say, tries again, and ends when it is to.
func TestAcceptFails(t *testing.T) {
	auth := signed(t, key1)
	synctest.Test(t, func(t *testing.T) {
		from := newReplica(teacher)
		from.fill(10)
		l := &failing{pipeListener: newPipeListener(), fails: 3}
		s := NewServer(from, auth, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		begin := time.Now()
		go func() { done <- s.Serve(ctx, l) }()
		honest(t, l.dial(), from, auth)
		if took := time.Since(begin); took != 3*acceptPause {
			t.Errorf("served after %v", took)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// A listener that somebody else has closed is another matter.
		l = &failing{pipeListener: newPipeListener()}
		l.Close()
		if err := s.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: error %v", err)
		}
	})
}

// failing is a listener that fails some times.
type failing struct {
	*pipeListener
	fails int
}

func (l *failing) Accept() (net.Conn, error) {
	if l.fails > 0 {
		l.fails--
		return nil, io.ErrNoProgress
	}
	return l.pipeListener.Accept()
}
