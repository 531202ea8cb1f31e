package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// State is how far a download has come.
type State int32

// The states of a download.
const (
	Waiting State = iota // not begun
	Running
	Done // complete, every byte as expected
	Cut  // ended early; Download.Why says how
)

func (s State) String() string { return [...]string{"waiting", "running", "done", "cut"}[s] }

// Job asks for a number of downloads from one address.
type Job struct {
	Name   string // group, for tables
	Host   Host   // where the client's sockets are
	Target netip.AddrPort
	Count  int
	Every  time.Duration // between two starts
	Order  Order         // of each; download i uses Seed+i
	Stall  time.Duration // a download that receives nothing for so long is cut; default 15 s
}

const (
	defaultStall = 15 * time.Second
	dialLimit    = 10 * time.Second
)

// Download is one download of a fleet. All fields may be read when it has
// ended; before that use Fleet.Downloads.
type Download struct {
	Job          string
	ID           int
	Local        netip.AddrPort // the client's end
	Target       netip.AddrPort
	Began, Ended time.Time
	Opened       time.Time // when it had its connection; zero: it never had one
	Last         time.Time // when something was received last
	Bytes, Want  int
	State        State
	Why          string // of Cut: reset, stalled, closed early, wrong content, no connection
}

// Fleet is a set of downloads that run at the same time.
type Fleet struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	all []*Download
}

// NewFleet returns an empty fleet. What is launched ends with the context that
// it was launched with.
func NewFleet() *Fleet { return &Fleet{} }

// Launch starts the downloads of a job and returns when the last has begun
// (or failed to), so that what is opened before an event is told from what is
// opened after it.
func (f *Fleet) Launch(ctx context.Context, j Job) error {
	if j.Stall == 0 {
		j.Stall = defaultStall
	}
	tick := time.NewTicker(max(j.Every, time.Microsecond))
	defer tick.Stop()
	var begun sync.WaitGroup
	for i := range j.Count {
		d := &Download{Job: j.Name, ID: i, Target: j.Target, Want: j.Order.Bytes}
		f.mu.Lock()
		f.all = append(f.all, d)
		f.mu.Unlock()
		o := j.Order
		o.Seed += uint64(i)
		begun.Add(1)
		f.wg.Go(func() { f.download(ctx, j, o, d, sync.OnceFunc(begun.Done)) })
		if i+1 == j.Count {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			begun.Wait()
			return ctx.Err()
		}
	}
	begun.Wait()
	return nil
}

// Wait waits for the end of all downloads, at most until ctx ends.
func (f *Fleet) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { f.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("downloads: %w", ctx.Err())
	}
}

// Downloads returns copies of all downloads as they stand.
func (f *Fleet) Downloads() []Download {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Download, len(f.all))
	for i, d := range f.all {
		all[i] = *d
	}
	return all
}

// Count is how many downloads of the named jobs (all, if none is named) are in
// a state.
func (f *Fleet) Count(s State, jobs ...string) int {
	n := 0
	for _, d := range f.Downloads() {
		if d.State == s && (len(jobs) == 0 || slices.Contains(jobs, d.Job)) {
			n++
		}
	}
	return n
}

// set changes a download under the fleet's lock.
func (f *Fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *Fleet) download(ctx context.Context, j Job, o Order, d *Download, begun func()) {
	defer begun()
	f.set(func() { d.Began = time.Now() })
	end := func(s State, why string) {
		f.set(func() { d.State, d.Why, d.Ended = s, why, time.Now() })
	}
	c, err := dial(ctx, j)
	if err != nil {
		end(Cut, "no connection: "+reason(err))
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })() //nolint:errcheck // closed, then
	f.set(func() {
		d.State, d.Opened = Running, time.Now()
		if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
			d.Local = a
		}
	})
	if _, err := io.WriteString(c, o.line()); err != nil {
		end(Cut, reason(err))
		return
	}
	begun()
	want := newContent(o.Seed)
	buf, expect := make([]byte, 16<<10), make([]byte, 16<<10)
	for got := 0; got < o.Bytes; {
		if err := c.SetReadDeadline(time.Now().Add(j.Stall)); err != nil {
			end(Cut, reason(err))
			return
		}
		n, err := c.Read(buf[:min(len(buf), o.Bytes-got)])
		want.Read(expect[:n]) //nolint:errcheck // never fails
		if !bytes.Equal(buf[:n], expect[:n]) {
			end(Cut, "wrong content")
			return
		}
		got += n
		f.set(func() { d.Bytes, d.Last = got, time.Now() })
		if ctx.Err() != nil {
			end(Cut, "given up")
			return
		}
		if err != nil && got < o.Bytes {
			end(Cut, reason(err))
			return
		}
	}
	end(Done, "")
}

func dial(ctx context.Context, j Job) (c net.Conn, err error) {
	err = j.Host.Do(func() (err error) {
		d := net.Dialer{Timeout: dialLimit}
		c, err = d.DialContext(ctx, "tcp", j.Target.String())
		return err
	})
	return c, err
}

// reason names an error in a word or two, for a table.
func reason(err error) string {
	switch {
	case errors.Is(err, io.EOF):
		return "closed early"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "stalled"
	}
	return err.Error()
}
