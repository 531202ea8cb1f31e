package segment

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"saru/lib/tun/nstest"
)

const (
	// queueLen is the queue from the kernel to the segment, in frames: a third of a second at 30,000 frames a second. The kernel's
	// default is 500 or 1,000 (drivers/net/tun.c).
	queueLen = 10_000
	// frameLen is room for a frame of 1,500 bytes with header and VLAN tag.
	frameLen = 1522
)

// Config describes a segment.
type Config struct {
	Seed  uint64         // of all draws
	Group netip.AddrPort // whose datagrams are impaired
	TCP   bool           // every TCP segment is impaired as well
	// Watch is told of each frame that may suffer, and by how many of its receivers it was lost. It is called by several goroutines and
	// must not keep the frame. May be nil.
	Watch func(frame []byte, lost int)
}

// Impairment is what a segment does to the frames that Config names. Each field is a part of the copies, from 0 to 1.
type Impairment struct {
	Loss      float64
	Duplicate float64 // arrives twice
	Reorder   float64 // is overtaken: arrives between Earliest and Latest later; of a double, each copy by itself
	Earliest  time.Duration
	Latest    time.Duration
}

// Counts says what a segment has done. A frame has as many copies as there are receivers.
type Counts struct {
	Frames   uint64 // read from all ports
	Copies   uint64 // of those that are impaired
	Lost     uint64 // of Copies
	Doubled  uint64 // of Copies
	Delayed  uint64 // copies, doubles included
	Overflow uint64 // frames that the kernel dropped, as the segment was too slow: more than none is a flaw of the test
}

// Segment is a segment. Attach ports first.
type Segment struct {
	tb      testing.TB
	cfg     Config
	ports   []*port
	present atomic.Pointer[Impairment]
	running sync.WaitGroup
	late    delay

	frames, copies, lost, doubled, delayed atomic.Uint64
}

// port is a TAP device.
type port struct {
	segment *Segment
	index   int
	file    *os.File
	stats   func() (uint64, error)
}

// New returns a segment without ports that impairs nothing yet. It ends with the test.
func New(tb testing.TB, cfg Config) *Segment {
	s := &Segment{tb: tb, cfg: cfg}
	s.present.Store(&Impairment{})
	s.late.wake, s.late.stop = make(chan struct{}, 1), make(chan struct{})
	s.running.Go(s.late.run)
	tb.Cleanup(func() {
		close(s.late.stop)
		for _, p := range s.ports {
			_ = p.file.Close()
		}
		s.running.Wait()
	})
	return s
}

// Impair changes what is done to frames from now on.
func (s *Segment) Impair(i Impairment) { s.present.Store(&i) }

// Attach makes a TAP device with these addresses (CIDR notation) in a namespace. All ports are to be there before the first is used.
func (s *Segment) Attach(ns *nstest.NS, name string, addrs ...string) {
	s.tb.Helper()
	p := &port{segment: s, index: len(s.ports)}
	ns.Do(s.tb, func() {
		file, err := openTAP(name)
		if err != nil {
			s.tb.Fatal(err)
		}
		p.file = file
		nstest.Up(s.tb, name, addrs...)
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetTxQLen(link, queueLen)
		}
		if err != nil {
			s.tb.Fatalf("set the queue length of %s: %v", name, err)
		}
	})
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		s.tb.Fatalf("open netlink for %s: %v", name, err)
	}
	s.tb.Cleanup(h.Close)
	p.stats = func() (uint64, error) {
		link, err := h.LinkByName(name)
		if err != nil {
			return 0, err
		}
		return link.Attrs().Statistics.TxDropped, nil
	}
	s.ports = append(s.ports, p)
}

// Start begins to carry frames.
func (s *Segment) Start() {
	for _, p := range s.ports {
		s.running.Go(p.run)
	}
}

// Counts returns what was done so far.
func (s *Segment) Counts() Counts {
	s.tb.Helper()
	c := Counts{
		Frames: s.frames.Load(), Copies: s.copies.Load(), Lost: s.lost.Load(), Doubled: s.doubled.Load(), Delayed: s.delayed.Load(),
	}
	for _, p := range s.ports {
		n, err := p.stats()
		if err != nil {
			s.tb.Fatalf("read statistics of port %d: %v", p.index, err)
		}
		c.Overflow += n
	}
	return c
}

// openTAP makes a TAP device in the present namespace. It lasts as long as the file.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the TUN driver: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make TAP device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// run carries what the port sends to all others.
func (p *port) run() {
	s := p.segment
	buf := make([]byte, frameLen)
	draws := make([]*rand.Rand, len(s.ports))
	for i := range draws {
		draws[i] = rand.New(rand.NewPCG(s.cfg.Seed, uint64(p.index)<<32|uint64(i)))
	}
	for {
		n, err := p.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			s.tb.Errorf("port %d: read: %v", p.index, err)
			return
		}
		s.frames.Add(1)
		frame, bad, lost := buf[:n], s.cfg.impaired(buf[:n]), 0
		for i, to := range s.ports {
			switch {
			case i == p.index:
			case !bad:
				to.write(frame)
			case !s.pass(draws[i], to, frame):
				lost++
			}
		}
		if bad && s.cfg.Watch != nil {
			s.cfg.Watch(frame, lost)
		}
	}
}

// pass gives a frame that is impaired to a port, or loses it and returns false.
func (s *Segment) pass(draw *rand.Rand, to *port, frame []byte) bool {
	// As many draws for each frame, whatever comes of them: a frame more or less changes the fate of no other.
	lose, double, late, lateDouble, after, afterDouble := draw.Float64(), draw.Float64(), draw.Float64(), draw.Float64(), draw.Float64(), draw.Float64()
	bad := s.present.Load()
	s.copies.Add(1)
	if lose < bad.Loss {
		s.lost.Add(1)
		return false
	}
	one := func(late, after float64) {
		if late >= bad.Reorder {
			to.write(frame)
			return
		}
		s.delayed.Add(1)
		s.late.add(to, frame, time.Now().Add(bad.Earliest+time.Duration(after*float64(bad.Latest-bad.Earliest))))
	}
	one(late, after)
	if double < bad.Duplicate {
		s.doubled.Add(1)
		one(lateDouble, afterDouble)
	}
	return true
}

// write hands a frame to the port's namespace. A device that is down refuses it (EIO), as a wire does that is not plugged in.
func (p *port) write(frame []byte) {
	if _, err := p.file.Write(frame); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EIO) {
		p.segment.tb.Errorf("port %d: write: %v", p.index, err)
	}
}
