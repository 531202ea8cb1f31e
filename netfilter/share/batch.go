package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket sends transactions to nftables. google/nftables encodes them, but does not send them, because
//   - a table with an owner belongs to one socket, and v0.3.0 cannot give a table flags;
//   - a failed renewal must tell which of its messages failed: the deletion of the fence or that of the lease;
//   - it asks for an acknowledgement of each message, and hundreds of them overflow the receive buffer (google/nftables #103, #350).
//
// The kernel works on a transaction within the system call that sends it: when that returns, all answers are there.
type socket struct {
	fd  int
	pid uint32 // the kernel's name of the socket
	seq uint32
	buf []byte
}

// openSocket opens a socket in the network namespace of the calling thread.
func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, 1<<16)}
	// 65536 buckets in one transaction have 1.4 MB. Without the right to exceed the host's limit the default has to do: it suffices for 4096.
	const size = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1) // answers do not repeat the message
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(fd); err == nil {
			if nl, ok := sa.(*unix.SockaddrNetlink); ok {
				s.pid = nl.Pid
			}
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return s, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// batchError says which message of a transaction was refused first, and why. Nothing of the transaction has been done.
type batchError struct {
	index int
	errno unix.Errno
}

func (e *batchError) Error() string { return fmt.Sprintf("message %d: %v", e.index, e.errno) }
func (e *batchError) Unwrap() error { return e.errno }

// refusedAt says whether the first message that was refused is the one with this index, for this reason.
func refusedAt(err error, index int, errno unix.Errno) bool {
	var b *batchError
	return errors.As(err, &b) && b.index == index && b.errno == errno
}

// errUnconfirmed is the error of a transaction of which it is not known whether it was done.
var errUnconfirmed = errors.New("the kernel's answer is missing")

// commit sends a transaction. All of it is done, or, with a batchError, nothing.
func (s *socket) commit(msgs []netlink.Message) error {
	first := s.seq + 1
	out := s.marshal(nil, unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	for i, m := range msgs {
		// Errors are reported in any case. One acknowledgement, of the last message, says that all is done: it is sent after the commit.
		flags := m.Header.Flags &^ (netlink.Acknowledge | netlink.Echo)
		if i == len(msgs)-1 {
			flags |= netlink.Acknowledge
		}
		out = s.marshal(out, uint16(m.Header.Type), flags, m.Data)
	}
	out = s.marshal(out, unix.NFNL_MSG_BATCH_END, netlink.Request, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	last := first + uint32(len(msgs))
	s.drain()
	if err := s.send(out); err != nil {
		return fmt.Errorf("send to nftables: %w", err)
	}
	return s.answers(first, last)
}

// marshal appends a netlink message in the machine's byte order (RFC 3549 section 2.3.2).
func (s *socket) marshal(b []byte, kind uint16, flags netlink.HeaderFlags, data []byte) []byte {
	s.seq++
	const header = unix.NLMSG_HDRLEN
	b = binary.NativeEndian.AppendUint32(b, uint32(header+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, uint16(flags))
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, s.pid)
	b = append(b, data...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func (s *socket) send(b []byte) error {
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// drain throws away what was left in the socket.
func (s *socket) drain() {
	for {
		if _, err := s.receive(); err != nil {
			return
		}
	}
}

func (s *socket) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return s.buf[:max(n, 0)], err
		}
	}
}

// answers reads the answers to the messages with the numbers from first (the beginning of the batch) to last.
func (s *socket) answers(first, last uint32) error {
	var refused error
	acknowledged := false
	for {
		b, err := s.receive()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil { // ENOBUFS: there were more errors than the buffer holds, or the acknowledgement is lost
			return errors.Join(refused, errUnconfirmed, err)
		}
		for len(b) >= unix.NLMSG_HDRLEN {
			length, kind, seq := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
			if length < unix.NLMSG_HDRLEN || int(length) > len(b) {
				break
			}
			if kind == unix.NLMSG_ERROR && length >= unix.NLMSG_HDRLEN+4 {
				errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])))
				acknowledged = acknowledged || seq == last && errno == 0
				if errno != 0 && refused == nil {
					refused = &batchError{index: int(seq-first) - 1, errno: errno}
				}
			}
			b = b[min(int(length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
	if refused == nil && !acknowledged {
		return errUnconfirmed
	}
	return refused
}

// encode returns the messages of what fill asks of google/nftables.
func encode(fill func(c *nftables.Conn) error) ([]netlink.Message, error) {
	var msgs []netlink.Message
	taken := errors.New("taken")
	c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		if len(req) > 2 {
			msgs = req[1 : len(req)-1] // without the batch's own beginning and end
		}
		return nil, taken
	}))
	if err == nil {
		err = fill(c)
	}
	if err == nil {
		if err = c.Flush(); errors.Is(err, taken) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("encode nftables messages: %w", err)
	}
	return msgs, nil
}

// reader returns a connection for listings in a network namespace. Each exchange opens a socket of its own, with a deadline.
func reader(namespace int) (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(namespace), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(timeout))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

// timeout bounds each listing.
const timeout = 5 * time.Second

// ownNamespace opens the network namespace of the calling thread.
func ownNamespace() (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace: %w", err)
	}
	return fd, nil
}
