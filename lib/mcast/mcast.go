package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// DefaultTTL keeps datagrams on their segment, as the kernel's sync threads do.
	DefaultTTL = 1
	// DefaultReadBuffer is what one link may queue, in bytes as the kernel counts them (a datagram of 1,472 bytes costs
	// about 2.3 kB): 3,600 full datagrams, or 140,000 connections.
	DefaultReadBuffer = 8 << 20
	// DefaultWriteBuffer lets a burst wait for the wire, in bytes.
	DefaultWriteBuffer = 2 << 20
)

// Config says what to open.
type Config struct {
	// Interfaces are names of network interfaces, at least one, none twice. They must exist; they may be down.
	Interfaces []string
	// Group is the multicast address and the port. A zone is ignored: the interface is the zone.
	Group netip.AddrPort
	// TTL (IPv6: hop limit); 0 stands for DefaultTTL.
	TTL int
	// Loop delivers what is sent to this host's own sockets as well.
	Loop bool
	// ReadBuffer and WriteBuffer are per link, in bytes; 0 stands for the defaults. With CAP_NET_ADMIN they may exceed
	// the host's limits (SO_RCVBUFFORCE); else they are cut to net.core.rmem_max and wmem_max, see Link.ReadBuffer.
	ReadBuffer, WriteBuffer int
	// WriteWait is for how long WriteBatch waits while a link's buffer is full, so that a link that does not send holds up no other; 0: for as long as
	// it takes, or until SetWriteDeadline's.
	WriteWait time.Duration
}

// stuckWait is WriteWait on a link that has sent nothing for that long, until it sends again.
const stuckWait = time.Millisecond

func (c Config) check() (Config, error) {
	c.Group = netip.AddrPortFrom(c.Group.Addr().Unmap().WithZone(""), c.Group.Port())
	switch {
	case len(c.Interfaces) == 0:
		return c, errors.New("no interface given")
	case !c.Group.Addr().IsMulticast():
		return c, fmt.Errorf("group %v: not a multicast address", c.Group)
	case c.Group.Port() == 0:
		return c, fmt.Errorf("group %v: the port must not be 0", c.Group)
	case c.TTL < 0 || c.TTL > 255:
		return c, fmt.Errorf("TTL %d is not in 0..255", c.TTL)
	case c.ReadBuffer < 0 || c.WriteBuffer < 0 || c.ReadBuffer > maxBuffer || c.WriteBuffer > maxBuffer:
		return c, fmt.Errorf("buffer sizes %d and %d are not in 0..%d", c.ReadBuffer, c.WriteBuffer, maxBuffer)
	}
	for i, name := range c.Interfaces {
		if slices.Contains(c.Interfaces[:i], name) {
			return c, fmt.Errorf("interface %q is given twice", name)
		}
	}
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if c.ReadBuffer == 0 {
		c.ReadBuffer = DefaultReadBuffer
	}
	if c.WriteBuffer == 0 {
		c.WriteBuffer = DefaultWriteBuffer
	}
	return c, nil
}

// maxBuffer is the largest size that the kernel can double (net/core/sock.c, __sock_set_rcvbuf).
const maxBuffer = 1<<30 - 1

// Conn is a set of links.
type Conn struct {
	links []*Link
}

// Open opens a link on each interface. It works in the network namespace of the calling thread. On an error, which names
// the interface, nothing stays open.
func Open(cfg Config) (*Conn, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	c := &Conn{}
	for _, name := range cfg.Interfaces {
		l, err := openLink(cfg, name)
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		c.links = append(c.links, l)
	}
	return c, nil
}

// Links returns the links in the order of Config.Interfaces.
func (c *Conn) Links() []*Link { return slices.Clone(c.links) }

// SetReadDeadline sets the time at which reads on all links return os.ErrDeadlineExceeded. The zero time means never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.each(func(l *Link) error { return l.SetReadDeadline(t) })
}

// SetWriteDeadline sets the time at which writes that wait for room in a link's buffer return os.ErrDeadlineExceeded.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.each(func(l *Link) error { return l.SetWriteDeadline(t) })
}

// Close closes all links. Reads and writes that block return net.ErrClosed.
func (c *Conn) Close() error {
	return c.each((*Link).close)
}

func (c *Conn) each(fn func(*Link) error) error {
	var errs []error
	for _, l := range c.links {
		if err := fn(l); err != nil {
			errs = append(errs, fmt.Errorf("interface %q: %w", l.name, err))
		}
	}
	return errors.Join(errs...)
}
