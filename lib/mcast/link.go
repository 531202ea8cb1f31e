package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Message is one received datagram.
type Message struct {
	// Buf is the room for it, given by the caller.
	Buf []byte
	// N is the number of bytes in Buf.
	N int
	// Src is the sender. An IPv6 link-local address has no zone: the link is its zone.
	Src netip.AddrPort
	// Truncated says that the datagram was longer than Buf.
	Truncated bool
}

// Link is one interface. One goroutine may read while another writes; several that do the same wait for each other.
type Link struct {
	name string
	cfg  Config

	rmu  sync.Mutex // guards recv: held while reading
	recv receiver

	wmu   sync.Mutex // guards send and stuck: held while writing
	send  outgoing
	stuck bool
	dst   *net.UDPAddr

	mu            sync.Mutex // guards what follows; never held while blocking
	rx            *rxSocket
	tx            *txSocket
	lost          uint64 // Dropped of sockets that are closed
	readDeadline  time.Time
	writeDeadline time.Time
	closed        bool
}

func openLink(cfg Config, name string) (*Link, error) {
	l := &Link{name: name, cfg: cfg, dst: net.UDPAddrFromAddrPort(cfg.Group)}
	l.recv.init()
	at, err := lookUp(name, cfg.Group.Addr())
	if err != nil {
		return nil, err
	}
	if l.rx, err = openRx(cfg, at); err != nil {
		return nil, err
	}
	if l.tx, err = openTx(cfg, at); err != nil {
		_ = l.rx.conn.Close()
		return nil, err
	}
	return l, nil
}

// Interface returns the interface's name.
func (l *Link) Interface() string { return l.name }

// Index returns the index of the interface that the link is bound to. It changes when the interface was deleted, created
// again and then rejoined.
func (l *Link) Index() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rx.at.index
}

// Local returns the address that datagrams are sent from. It is invalid when the interface had none when it was opened;
// then the kernel chooses one for each datagram.
func (l *Link) Local() netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tx.at.local
}

// ReadBuffer returns the size of the receive buffer that the kernel granted, in bytes.
func (l *Link) ReadBuffer() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rx.buffer
}

// Dropped returns the number of datagrams that the kernel has dropped since Open because the link was not read
// fast enough (or because their checksum was wrong).
func (l *Link) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost + l.rx.dropped()
}

// ReadBatch waits for a datagram and then takes what is there, at most len(msgs). It returns how many elements of msgs it
// has filled in. It returns net.ErrClosed after Close, os.ErrDeadlineExceeded past the deadline, and goes on by
// itself on the new socket after Rejoin.
func (l *Link) ReadBatch(msgs []Message) (int, error) {
	l.rmu.Lock()
	defer l.rmu.Unlock()
	for {
		l.mu.Lock()
		rx := l.rx
		l.mu.Unlock()
		n, err := l.recv.recvmmsg(rx.raw, msgs)
		if err == nil {
			return n, nil
		}
		if errors.Is(err, net.ErrClosed) {
			if l.replaced(func() bool { return l.rx != rx }) {
				continue
			}
			return 0, net.ErrClosed
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, os.ErrDeadlineExceeded
		}
		return 0, fmt.Errorf("receive on %q: %w", l.name, err)
	}
}

// replaced says whether a socket was closed because Rejoin has made another.
func (l *Link) replaced(differs func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && differs()
}

// WriteBatch sends each of bufs as one datagram to the group and returns how many were sent. It waits while the socket's
// buffer is full, for Config.WriteWait; then it returns os.ErrDeadlineExceeded. On an error the datagram after those that
// were sent has been refused; the caller decides whether to go on behind it. ENETUNREACH and ENETDOWN mean that the
// interface is down.
func (l *Link) WriteBatch(bufs [][]byte) (int, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if wait := l.cfg.WriteWait; wait > 0 {
		if l.stuck {
			wait = min(wait, stuckWait)
		}
		_ = l.SetWriteDeadline(time.Now().Add(wait)) // fails when the link is closed, as writing then does
	}
	for sent := 0; ; {
		if sent == len(bufs) {
			return sent, nil
		}
		l.mu.Lock()
		tx := l.tx
		l.mu.Unlock()
		n, err := l.write(tx, bufs[sent:])
		sent += n
		l.stuck = errors.Is(err, os.ErrDeadlineExceeded) && sent == 0
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			if !l.replaced(func() bool { return l.tx != tx }) {
				return sent, net.ErrClosed
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return sent, os.ErrDeadlineExceeded
		default:
			return sent, fmt.Errorf("send on %q: %w", l.name, err)
		}
	}
}

// write sends datagrams by one socket and returns how many were sent.
func (l *Link) write(tx *txSocket, bufs [][]byte) (sent int, err error) {
	l.send.prepare(l, bufs, tx.whole)
	for left := l.send.messages; len(left) > 0; {
		n, err := tx.batch.WriteBatch(left, 0)
		for _, m := range left[:max(n, 0)] {
			sent += len(m.Buffers)
		}
		left = left[max(n, 0):]
		if err != nil && len(left) > 0 && len(left[0].Buffers) > 1 && cannotSplit(err) {
			tx.whole = true
			return sent, nil // the rest is the caller's next round
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// SetReadDeadline is Conn.SetReadDeadline for one link.
func (l *Link) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readDeadline = t
	return l.rx.conn.SetReadDeadline(t)
}

// SetWriteDeadline is Conn.SetWriteDeadline for one link.
func (l *Link) SetWriteDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeDeadline = t
	return l.tx.conn.SetWriteDeadline(t)
}

// Stale says whether Rejoin has something to do: the interface has another index or another address than the sockets.
// An interface that does not exist is an error. It is cheap enough to be asked every second.
func (l *Link) Stale() (bool, error) {
	at, err := lookUp(l.name, l.cfg.Group.Addr())
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return at.index != l.rx.at.index || at != l.tx.at, nil
}

// Rejoin brings the link up to date after the interface was deleted and created again, was moved, or has changed its
// address. Where the interface is still the same, it leaves the group and joins it again, so that switches hear
// a new report: datagrams may be missed for a moment. An interface that is only set down and up does not need it. On
// an error the link stays as it was, and Rejoin may be tried again later.
func (l *Link) Rejoin() error {
	at, err := lookUp(l.name, l.cfg.Group.Addr())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	if at.index == l.rx.at.index {
		if err := l.rx.rejoin(l.cfg.Group.Addr()); err != nil {
			return err
		}
	} else {
		rx, err := openRx(l.cfg, at)
		if err != nil {
			return err
		}
		l.lost += l.rx.dropped()
		_ = rx.conn.SetReadDeadline(l.readDeadline)
		_ = l.rx.conn.Close()
		l.rx = rx
	}
	if at != l.tx.at {
		tx, err := openTx(l.cfg, at)
		if err != nil {
			return err
		}
		_ = tx.conn.SetWriteDeadline(l.writeDeadline)
		_ = l.tx.conn.Close()
		l.tx = tx
	}
	return nil
}

func (l *Link) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	l.lost += l.rx.dropped()
	return errors.Join(l.rx.conn.Close(), l.tx.conn.Close())
}
