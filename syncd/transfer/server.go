package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// acceptPause is how long no connection is accepted after accepting failed, for want of file descriptors perhaps.
const acceptPause = 100 * time.Millisecond

// Server teaches: it answers pulls.
type Server struct {
	src      Source
	log      *slog.Logger
	counters Counters
	self     Teacher // set by Serve

	mu       sync.Mutex
	auth     Auth
	halfOpen []net.Conn // the oldest first
	sessions int
}

// NewServer returns a server that teaches from src.
func NewServer(src Source, auth Auth, log *slog.Logger) *Server {
	return &Server{src: src, auth: auth, log: log}
}

// SetAuth changes who is believed, from the next session on.
func (s *Server) SetAuth(auth Auth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.auth = auth
}

// Sessions returns how many clients are taught now.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions
}

// Counters returns the server's counters.
func (s *Server) Counters() *Counters { return &s.counters }

// Serve answers pulls until ctx ends, which is no error; it closes l. Sessions that run then are told so, and have ended when it returns.
// It may be called again then, with another listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	state := s.src.State()
	s.self = Teacher{state.Node, state.Incarnation} // hellos of strangers are answered without a look at the table
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var running sync.WaitGroup
	defer running.Wait()
	failing := false
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			failing = false
			s.enter(conn)
			running.Go(func() { s.handle(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept pulls: %w", err)
		default:
			if !failing {
				s.log.Warn("cannot accept pulls", "error", err)
			}
			failing = true
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// enter keeps account of a connection that has not proved itself. The oldest makes room: an honest client needs two round trips, so
// it is gone before a flood has pushed it out, unless the flood is faster than that.
func (s *Server) enter(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.halfOpen) == maxHalfOpen {
		s.halfOpen[0].Close()
		s.halfOpen = slices.Delete(s.halfOpen, 0, 1)
	}
	s.halfOpen = append(s.halfOpen, conn)
}

// prove makes a session of a connection. It fails with ErrBusy, or with errCrowded when the connection had to make room.
func (s *Server) prove(conn net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.halfOpen, conn)
	switch {
	case i < 0:
		return errCrowded
	case s.sessions == maxSessions:
		return ErrBusy
	}
	s.halfOpen = slices.Delete(s.halfOpen, i, i+1)
	s.sessions++
	return nil
}

// leave drops the account of a connection, a session's or another's, and reports whether it had had to make room.
func (s *Server) leave(conn net.Conn, proved bool) (crowded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if proved {
		s.sessions--
		return false
	}
	i := slices.Index(s.halfOpen, conn)
	if i < 0 {
		return true
	}
	s.halfOpen = slices.Delete(s.halfOpen, i, i+1)
	return false
}

// handle serves one connection.
func (s *Server) handle(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	auth := s.auth
	s.mu.Unlock()
	begin := time.Now()
	t := newTeaching(ctx, conn, s, auth, begin)
	defer context.AfterFunc(ctx, t.interrupt)()
	err := t.run(begin)
	if s.leave(conn, t.proved) {
		err = errCrowded
	}
	s.counters.add(outcome(err), 1)
	s.counters.add(Entries, t.entries)
	s.counters.add(Bytes, t.sent)
	s.counters.add(Skipped, t.skipped)
	s.report(t, err, time.Since(begin))
}

// report logs a session. What has not proved itself, and audits that found nothing, would fill the log.
func (s *Server) report(t *teaching, err error, took time.Duration) {
	level, text := slog.LevelInfo, "taught"
	args := []any{"purpose", t.purpose, "peer", t.name, "address", t.conn.RemoteAddr(), "entries", t.entries, "bytes", t.sent, "took", took.Round(time.Millisecond)}
	switch {
	case !t.proved:
		level, text, args = slog.LevelDebug, "connection refused", []any{"address", t.conn.RemoteAddr(), "error", err}
	case err != nil:
		text, args = "teaching ended early", append(args, "error", err)
	case t.purpose != Join && t.entries == 0:
		level = slog.LevelDebug
	}
	s.log.Log(context.WithoutCancel(t.ctx), level, text, args...)
}
