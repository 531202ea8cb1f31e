package syncd

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/proto/ipvssync"
	"saru/syncd/tap"
)

// pump is a tap with a kernel that reports what a load asks for and remembers, of each connection, the newest record: its own reports and
// what is injected. The fwmark of every record is the time at which its message was there to be read, in microseconds of the machine's
// monotonic clock, which all processes share. So each record carries its version, and its lag can be told wherever it arrives. What the
// pump costs is charged to the director, but it is little: no system call, no allocation, one copy of a message.
type pump struct {
	closed chan struct{}
	once   sync.Once
	wake   chan struct{}
	window window
	slow   time.Duration // how long it takes for an injected message

	mu       sync.Mutex // guards what follows
	load     load
	since    time.Time
	begun    uint32 // since, as micros tells it
	before   uint64 // what the peer's kernel had taken then
	reported uint64 // records of the present load
	turn     int    // whose turn it is among the load's connections
	ended    time.Time
	kernel   []uint32
	lags     lags
	bad      uint64 // injected messages that are damaged
	message  []byte // a message of load.Each records

	injected atomic.Uint64 // records
}

// load is what a kernel is to report.
type load struct {
	First, Count int     // connections, in an order that is not that of their numbers
	Records      int     // in total
	Rate         float64 // a second; 0: as fast as they are read
	Each         int     // records a message; 0: 1, as syncd sets the kernel up
	Window       int     // so many records may be on the way to the peer's kernel; 0: any number
	Timeout      uint32  // seconds of each record; 0: 900, as TCP's ESTABLISHED
	Other        bool    // in another order
}

// burst is how far apart messages are that come by rate: a kernel hands over what a soft interrupt has gathered.
const (
	burst       = burstMicros * time.Microsecond
	burstMicros = 500
)

func newPump(connections int, w window) *pump {
	return &pump{closed: make(chan struct{}), wake: make(chan struct{}, 1), kernel: make([]uint32, connections), window: w}
}

// micros is the time of a record.
func micros() uint32 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint32(ts.Nano() / 1000)
}

// start begins a load; the one before must be over.
func (p *pump) start(l load) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reported < uint64(p.load.Records) {
		return errors.New("the load before is not over")
	}
	l.Each, l.Timeout = max(l.Each, 1), max(l.Timeout, 1)
	if l.Timeout == 1 {
		l.Timeout = 900
	}
	var b ipvssync.Builder
	b.Reset(nil, 9, 0)
	for i := range l.Each {
		r := testConn(i)
		r.Timeout = l.Timeout
		if err := b.Add(&r); err != nil {
			return err
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return err
	}
	p.load, p.since, p.begun, p.before, p.reported, p.turn, p.message = l, time.Now(), micros(), p.window.taken(), 0, 0, msg
	poke(p.wake)
	return nil
}

// rate is how many records a second the latest load, which is over, brought.
func (p *pump) rate() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return float64(p.reported) / p.ended.Sub(p.since).Seconds()
}

// done reports whether the load is over.
func (p *pump) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reported >= uint64(p.load.Records)
}

// Read is tap.Tap's.
func (p *pump) Read(msgs []tap.Message) (int, error) {
	for {
		n, wait := p.fill(msgs)
		if n > 0 {
			return n, nil
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-p.closed:
			return 0, os.ErrClosed
		case <-p.wake:
		case <-timer:
		}
	}
}

// fill makes the messages that are due. If there are none, it returns how long to wait; 0: until the next load.
func (p *pump) fill(msgs []tap.Message) (int, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.load
	left := uint64(l.Records) - p.reported
	if left == 0 {
		return 0, 0
	}
	room, at := min(left, uint64(len(msgs)*l.Each)), micros()
	if l.Rate > 0 {
		elapsed := time.Since(p.since)
		if due := uint64(l.Rate * elapsed.Truncate(burst).Seconds()); due > p.reported {
			room = min(room, due-p.reported)
		} else {
			return 0, burst - elapsed%burst // the next one
		}
	}
	if l.Window > 0 {
		if ahead := p.reported - min(p.reported, p.window.taken()-p.before); ahead >= uint64(l.Window) {
			return 0, 20 * time.Microsecond
		}
	}
	n, step := 0, l.stride()%l.Count
	for ; n < len(msgs) && room > 0; n++ {
		each := min(uint64(l.Each), room)
		msg := msgs[n].Buf[:copy(msgs[n].Buf, p.message[:ipvssync.HeaderLenV1+each*ipvssync.RecordLen4])]
		if int(each) < l.Each {
			_ = ipvssync.FinishV1(msg, 0, int(each))
		}
		for i := range each {
			if l.Rate > 0 { // the end of its burst: a reader that comes late lags
				at = p.begun + uint32(float64(p.reported+i)*1e6/l.Rate/burstMicros+1)*burstMicros
			}
			conn := l.First + p.turn
			if p.turn += step; p.turn >= l.Count {
				p.turn -= l.Count
			}
			putConn(msg[ipvssync.HeaderLenV1+i*ipvssync.RecordLen4:], conn, at)
			p.kernel[conn] = at
		}
		msgs[n].Data = msg
		p.reported += each
		room -= each
	}
	if p.reported == uint64(l.Records) {
		p.ended = time.Now()
	}
	return n, 0
}

// stride returns a prime: going on by so many visits every connection before one comes again.
func (l *load) stride() int {
	if l.Other {
		return 15_485_863
	}
	return 7_368_787
}

// putConn makes a record that of a connection: client address, client port and fwmark.
func putConn(rec []byte, conn int, mark uint32) {
	rec[25], rec[26], rec[27] = byte(conn>>16), byte(conn>>8), byte(conn)
	binary.BigEndian.PutUint16(rec[10:], uint16(1024+conn%60000))
	binary.BigEndian.PutUint32(rec[16:], mark)
}

// Inject is tap.Tap's.
func (p *pump) Inject(msg []byte) error {
	if p.slow > 0 {
		time.Sleep(p.slow)
	}
	now := micros()
	p.mu.Lock()
	defer p.mu.Unlock()
	m, err := ipvssync.Parse(msg)
	if err != nil || len(msg) != ipvssync.HeaderLenV1+int(m.Count)*ipvssync.RecordLen4 {
		p.bad++
		return nil
	}
	for rec := msg[ipvssync.HeaderLenV1:]; len(rec) > 0; rec = rec[ipvssync.RecordLen4:] {
		conn, at := int(rec[25])<<16|int(rec[26])<<8|int(rec[27]), binary.BigEndian.Uint32(rec[16:])
		if conn >= len(p.kernel) {
			p.bad++
			continue
		}
		p.kernel[conn] = at
		p.lags.add(now - at)
	}
	p.window.take(p.injected.Add(uint64(m.Count)))
	return nil
}

// Queued is tap.Tap's: this kernel takes everything at once.
func (p *pump) Queued() (uint64, uint64, error) { return 0, 0, nil }

// Tick is tap.Tap's: this kernel holds nothing back.
func (p *pump) Tick(uint16) error { return nil }

// Close is tap.Tap's.
func (p *pump) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

var _ tap.Tap = (*pump)(nil)

// known returns how many of connections [from, to) the kernel has, and a sum over the newest record of each.
func (p *pump) known(from, to int) (count int, sum uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum = 14695981039346656037 // FNV-1a
	for _, at := range p.kernel[from:to] {
		if at != 0 {
			count++
		}
		sum = (sum ^ uint64(at)) * 1099511628211
	}
	return count, sum
}

// lags counts times by tens of microseconds.
type lags struct {
	counts [1 << 16]uint32 // the last one: 0.65 s and more
	total  uint64
}

func (l *lags) add(micros uint32) {
	l.counts[min(micros/10, uint32(len(l.counts)-1))]++
	l.total++
}

// quantile returns the time that a part of the records did not exceed.
func (l *lags) quantile(part float64) time.Duration {
	left, at := int64(float64(l.total)*part), 0
	for i, n := range l.counts {
		if n > 0 {
			at = i + 1
		}
		if left -= int64(n); left < 0 {
			break
		}
	}
	return time.Duration(at) * 10 * time.Microsecond
}

// window is memory that directors in several processes share: how many records the kernel of each has taken.
type window struct {
	slots     []atomic.Uint64
	own, peer int
}

func (w *window) take(n uint64) {
	if w.slots != nil {
		w.slots[w.own].Store(n)
	}
}

// taken is how many records the peer's kernel has taken.
func (w *window) taken() uint64 {
	if w.slots == nil {
		return 0
	}
	return w.slots[w.peer].Load()
}

// A pump's reports become records that arrive as they were made.
func TestPump(t *testing.T) {
	from, to := newPump(1000, window{}), newPump(1000, window{})
	msgs := make([]tap.Message, 64)
	for i := range msgs {
		msgs[i].Buf = make([]byte, tap.MaxPacket)
	}
	for _, l := range []load{{First: 100, Count: 900, Records: 900}, {Count: 1000, Records: 2500, Each: 40}, {Count: 7, Records: 500, Rate: 20_000}} {
		if err := from.start(l); err != nil {
			t.Fatal(err)
		}
		if err := from.start(l); err == nil {
			t.Fatal("a second load was taken")
		}
		began, records, before := time.Now(), 0, to.injected.Load()
		for !from.done() {
			n, err := from.Read(msgs)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs[:n] {
				parsed, err := ipvssync.Parse(m.Data)
				if err != nil {
					t.Fatal(err)
				}
				for r, err := range parsed.Records() {
					if err != nil || r.Fwmark == 0 || r.Timeout != 900 || !r.Virtual.IsValid() || r.Client.Addr().As4()[0] != 10 {
						t.Fatalf("%+v, %v", r, err)
					}
					records++
				}
				if err := to.Inject(m.Data); err != nil {
					t.Fatal(err)
				}
			}
		}
		if records != l.Records || to.injected.Load()-before != uint64(l.Records) || to.bad != 0 {
			t.Errorf("%+v: %d records, %d injected, %d bad", l, records, to.injected.Load()-before, to.bad)
		}
		if took := time.Since(began); l.Rate > 0 && took.Seconds() < 0.9*float64(l.Records)/l.Rate {
			t.Errorf("%+v took %v", l, took)
		}
		if n, _ := to.known(l.First, l.First+l.Count); n != l.Count {
			t.Errorf("%+v: %d connections", l, n)
		}
		_, a := from.known(0, 1000)
		_, b := to.known(0, 1000)
		if a != b {
			t.Errorf("%+v: the kernels differ", l)
		}
	}
	if q := to.lags.quantile(0.99); to.lags.total != 3900 || q > 100*time.Millisecond {
		t.Errorf("%d lags, 99th percentile %v", to.lags.total, q)
	}
}
