package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Server answers downloads on TCP and echoes on UDP, at the same port.
type Server struct {
	tcp  net.Listener
	udp  net.PacketConn
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]bool // nil: closed
	quit chan struct{}
}

// orderWait bounds how long a client may take to say what it wants.
const orderWait = 30 * time.Second

// Serve starts a server in host h on port, for every address of the host.
func Serve(h Host, port uint16) (*Server, error) {
	s := &Server{open: map[net.Conn]bool{}, quit: make(chan struct{})}
	err := h.Do(func() (err error) {
		var lc net.ListenConfig
		if s.tcp, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		if s.udp, err = lc.ListenPacket(context.Background(), "udp", fmt.Sprintf(":%d", port)); err != nil {
			return errors.Join(err, s.tcp.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	s.wg.Go(s.accept)
	s.wg.Go(s.echo)
	return s, nil
}

// Close ends the server and cuts its connections.
func (s *Server) Close() error {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	if open == nil {
		return nil
	}
	close(s.quit)
	err := errors.Join(s.tcp.Close(), s.udp.Close())
	for c := range open {
		c.Close()
	}
	s.wg.Wait()
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		if s.open == nil {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.open[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			s.send(c)
			c.Close()
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		})
	}
}

// send serves one order; the client judges the outcome.
func (s *Server) send(c net.Conn) {
	if err := c.SetReadDeadline(time.Now().Add(orderWait)); err != nil {
		return
	}
	o, err := readOrder(c)
	if err != nil {
		return
	}
	from := newContent(o.Seed)
	buf := make([]byte, o.Chunk)
	tick := time.NewTicker(max(o.Pace, time.Microsecond))
	defer tick.Stop()
	for left := o.Bytes; left > 0; {
		n := min(left, o.Chunk)
		from.Read(buf[:n]) //nolint:errcheck // never fails
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
		if left -= n; left > 0 && o.Pace > 0 {
			select {
			case <-tick.C:
			case <-s.quit:
				return
			}
		}
	}
}

func (s *Server) echo() {
	buf := make([]byte, 65536)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.udp.WriteTo(buf[:n], from) //nolint:errcheck // a lost datagram is the client's to notice
		}
	}
}

// Echo sends one datagram from host h and returns whether the same came back
// within limit.
func Echo(h Host, to netip.AddrPort, text string, limit time.Duration) (bool, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(context.Background(), "udp", to.String())
		return err
	})
	if err != nil {
		return false, fmt.Errorf("echo: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return false, fmt.Errorf("echo: %w", err)
	}
	if _, err := c.Write([]byte(text)); err != nil {
		return false, fmt.Errorf("echo: %w", err)
	}
	buf := make([]byte, len(text)+1)
	n, err := c.Read(buf)
	return err == nil && string(buf[:n]) == text, nil
}
