package ipvs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	familyName = "IPVS" // include/uapi/linux/ip_vs.h: IPVS_GENL_NAME

	// answerTimeout bounds the waiting for an answer. The kernel works in the caller's send: when that returns, the answer
	// is there, or there will be none.
	answerTimeout = 2 * time.Second
	// stopTimeout is shorter, because there may be none in good order, see daemons.Stop.
	stopTimeout = 250 * time.Millisecond
	// writeTimeout bounds moby's calls, which send and receive.
	writeTimeout = 5 * time.Second
)

// Commands (enum of IPVS_CMD_*) and the attributes of the first level (IPVS_CMD_ATTR_*).
const (
	cmdGetService = 4
	cmdGetDest    = 8
	cmdNewDaemon  = 9
	cmdDelDaemon  = 10
	cmdGetDaemon  = 11

	attrService = 1
	attrDest    = 2
	attrDaemon  = 3
)

// conn is the part of genetlink.Conn that is used.
type conn interface {
	GetFamily(name string) (genetlink.Family, error)
	Send(m genetlink.Message, family uint16, flags netlink.HeaderFlags) (netlink.Message, error)
	Receive() ([]genetlink.Message, []netlink.Message, error)
	SetDeadline(t time.Time) error
	Close() error
}

// genl is a connection to the kernel's family that is replaced after a timeout: an answer that comes too late would be
// taken for the next request's.
type genl struct {
	dial func() (conn, error)

	mu     sync.Mutex
	conn   conn
	family genetlink.Family
	closed bool
}

// openGenl connects and finds the family; ErrNotAvailable when it is missing.
func openGenl(dial func() (conn, error)) (*genl, error) {
	g := &genl{dial: dial}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.connect(); err != nil {
		return nil, err
	}
	return g, nil
}

// dialKernel connects to the kernel, in the network namespace of the calling thread.
func dialKernel() (conn, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Probe says whether the kernel has IPVS: nil or an error that wraps ErrNotAvailable. It loads the module if need be.
func Probe() error {
	g, err := openKernel()
	if err != nil {
		return err
	}
	return g.Close()
}

// openKernel is openGenl after an attempt to load the module. The kernel does not load it by itself: IPVS has no alias for
// its netlink family.
func openKernel() (*genl, error) {
	g, err := openGenl(dialKernel)
	if !errors.Is(err, ErrNotAvailable) {
		return g, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if merr := exec.CommandContext(ctx, "modprobe", "-q", "ip_vs").Run(); merr != nil {
		return nil, err
	}
	return openGenl(dialKernel)
}

func (g *genl) connect() error {
	c, err := g.dial()
	if err != nil {
		return fmt.Errorf("open generic netlink: %w", err)
	}
	if err = c.SetDeadline(time.Now().Add(answerTimeout)); err == nil {
		g.family, err = c.GetFamily(familyName)
	}
	if errors.Is(err, os.ErrNotExist) {
		err = ErrNotAvailable
	} else if err != nil {
		err = fmt.Errorf("look up netlink family %s: %w", familyName, err)
	}
	if err != nil {
		_ = c.Close()
		return err
	}
	g.conn = c
	return nil
}

// Kinds of requests.
const (
	change = netlink.Request | netlink.Acknowledge
	list   = netlink.Request | netlink.Dump
	// get has one reply. With Acknowledge a second one would stay in the socket and be taken for the next request's.
	get = netlink.Request
)

// execute sends a request and returns its replies.
func (g *genl) execute(cmd uint8, flags netlink.HeaderFlags, data []byte) ([]genetlink.Message, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, os.ErrClosed
	}
	if g.conn == nil {
		if err := g.connect(); err != nil {
			return nil, err
		}
	}
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: g.family.Version}, Data: data}
	timeout := answerTimeout
	if cmd == cmdDelDaemon {
		timeout = stopTimeout
	}
	replies, err := exchange(g.conn, m, g.family.ID, flags, timeout)
	if err != nil && !isErrno(err) {
		_ = g.conn.Close()
		g.conn = nil
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (it needs root)", err)
	}
	return replies, err
}

// exchange is genetlink.Conn.Execute with a deadline that begins when the request has been sent.
func exchange(c conn, m genetlink.Message, family uint16, flags netlink.HeaderFlags, timeout time.Duration) ([]genetlink.Message, error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	request, err := c.Send(m, family, flags)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	replies, raw, err := c.Receive()
	if err != nil {
		return nil, err
	}
	return replies, netlink.Validate(request, raw)
}

// isErrno says whether the kernel has answered.
func isErrno(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// Close ends the connection.
func (g *genl) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return os.ErrClosed
	}
	g.closed = true
	if g.conn == nil {
		return nil
	}
	return g.conn.Close()
}
