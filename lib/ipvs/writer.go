package ipvs

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	moby "github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
)

// handle is the part of moby.Handle that is used.
type handle interface {
	NewService(*moby.Service) error
	DelService(*moby.Service) error
	NewDestination(*moby.Service, *moby.Destination) error
	DelDestination(*moby.Service, *moby.Destination) error
	Close()
}

// openMoby opens a handle in the network namespace of the calling thread. The caller has probed the kernel.
func openMoby() (handle, error) {
	// moby runs modprobe at its first use in a process and tells the world by logrus when that fails, also when IPVS is
	// there all the same. Nothing else in this program logs by logrus.
	out := logrus.StandardLogger().Out
	logrus.SetOutput(io.Discard)
	defer logrus.SetOutput(out)
	h, err := moby.New("")
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// writer gives moby's calls a deadline. moby asks again and again when no answer comes, and has no other way out than to
// be closed, upon which it gives up within its receive timeout of 3 s.
type writer struct {
	open    func() (handle, error)
	timeout time.Duration

	mu     sync.Mutex
	h      handle // nil after a timeout
	closed bool
	calls  sync.WaitGroup
}

func (w *writer) connect() error {
	h, err := w.open()
	if err != nil {
		return err
	}
	w.h = h
	return nil
}

// do runs fn. After a timeout fn may still be running; the next call gets a new handle.
func (w *writer) do(fn func(handle) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return os.ErrClosed
	}
	if w.h == nil {
		if err := w.connect(); err != nil {
			return err
		}
	}
	h, done := w.h, make(chan error, 1)
	w.calls.Go(func() { done <- fn(h) })
	timer := time.NewTimer(w.timeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		h.Close()
		w.h = nil
		return fmt.Errorf("no answer from the kernel within %v: %w", w.timeout, os.ErrDeadlineExceeded)
	}
}

// close waits for calls that have timed out.
func (w *writer) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return os.ErrClosed
	}
	w.closed = true
	if w.h != nil {
		w.h.Close()
	}
	w.calls.Wait()
	return nil
}
