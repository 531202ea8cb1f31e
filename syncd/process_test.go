package syncd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"saru/lib/control"
	"saru/lib/mcast"
	"saru/lib/peer"
	"saru/lib/seal"
	"saru/lib/tun/nstest"
	"saru/syncd/engine"
	"saru/syncd/transfer"
)

// directorEnv marks the test binary that runs as a director: a process of its own has its own memory, processor time and garbage
// collector, and can be killed. Its value is the configuration. It does what comes by standard input, one order a line.
const directorEnv = "SARU_SYNCD_DIRECTOR"

// directorConfig says what a director of its own process is like.
type directorConfig struct {
	Node        string
	Interface   string
	Connections int
	Own, Peer   int           // slots of the window
	Slow        time.Duration // how long the kernel takes for a message
}

// order is what a director is told to do.
type order struct {
	Do      string // start, load, wait, arrive, report, check, begin, free, profile, end
	Load    load   // load
	Records uint64 // arrive: how many records the kernel has taken in total
	Profile string // profile: the file for the CPU profile that ends with end; "": none
}

// answer is what a director says.
type answer struct {
	Error    string
	Status   control.SyncStatus
	Injected uint64 // records, since the start
	Bad      uint64
	Rate     float64       // of the latest load
	Join     time.Duration // from the start to synced
	Stream   time.Duration // from the first entry that was learned to the last

	// With the order "check".
	Replica int    // entries
	Digest  uint64 // over the digests of all buckets, everything included
	Kernel  int    // connections that the kernel has
	Sum     uint64 // over the newest record of each

	// Since the order "begin".
	Processor time.Duration
	Took      time.Duration
	Pause     time.Duration // longest stop of the garbage collector, at most
	Cycles    uint64        // of the garbage collector
	P50, P99  time.Duration // lag
	Longest   time.Duration
	Lags      uint64

	Peak     uint64 // bytes: VmHWM
	Resident uint64 // VmRSS
	Heap     uint64 // live after a collection, with "free"
}

// beDirector runs the test binary as a director if that is what it is for.
func beDirector() bool {
	text := os.Getenv(directorEnv)
	if text == "" {
		return false
	}
	var cfg directorConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	d := &director{cfg: cfg}
	if err := d.serve(); err != nil {
		fmt.Fprintln(os.Stderr, cfg.Node+":", err)
		os.Exit(1)
	}
	return true
}

// director is this side of a process.
type director struct {
	cfg  directorConfig
	pump *pump
	*Mirrorer
	began     time.Time
	joined    atomic.Int64 // how long the join took
	stream    atomic.Int64 // and of it, the teacher's stream
	since     time.Time
	processor time.Duration
	pauses    *metrics.Float64Histogram
	cycles    uint32
}

func (d *director) serve() error {
	w, err := mapWindow(3, d.cfg.Own, d.cfg.Peer)
	if err != nil {
		return err
	}
	d.pump = newPump(d.cfg.Connections, w)
	d.pump.slow = d.cfg.Slow
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		var o order
		var a answer
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			err = d.obey(ctx, o, &a, ended)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	cancel()
	if d.Mirrorer == nil {
		return nil
	}
	return <-ended
}

func (d *director) obey(ctx context.Context, o order, a *answer, ended chan<- error) error {
	switch o.Do {
	case "start":
		return d.start(ctx, ended)
	case "load":
		return d.pump.start(o.Load)
	case "wait":
		for !d.pump.done() {
			time.Sleep(time.Millisecond)
		}
		a.Rate = d.pump.rate()
	case "arrive": // asked once, as an answer every millisecond would cost what is measured
		for end := time.Now().Add(30 * time.Second); d.pump.injected.Load() < o.Records; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("%d of %d records have arrived after 30 s", d.pump.injected.Load(), o.Records)
			}
		}
	case "begin":
		runtime.GC()
		d.begin()
	case "report", "check", "free":
		switch o.Do {
		case "check":
			a.Kernel, a.Sum = d.pump.known(0, d.cfg.Connections)
			d.With(func(e *engine.Engine) { a.Replica = e.Len() })
			a.Digest = digestOf(d.Mirrorer)
		case "free":
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			a.Heap = m.HeapAlloc
		}
		return d.report(a)
	case "profile":
		f, err := os.Create(o.Profile)
		if err != nil {
			return err
		}
		return pprof.StartCPUProfile(f)
	case "end":
		pprof.StopCPUProfile()
	default:
		return fmt.Errorf("order %q", o.Do)
	}
	return nil
}

// start is what startMirrorer does in a test, and syncd's main in the product.
func (d *director) start(ctx context.Context, ended chan<- error) error {
	keys, err := seal.Parse([]byte("1 " + strings.Repeat("5a", 32)))
	if err != nil {
		return err
	}
	ring, err := seal.NewRing(keys, "syncd", testGroup.String())
	if err != nil {
		return err
	}
	links := []string{d.cfg.Interface}
	conn, err := mcast.Open(mcast.Config{Interfaces: links, Group: testGroup})
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if testing.Testing() && os.Getenv("SARU_TEST_LOG") != "" {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("director", d.cfg.Node)
	d.began = time.Now()
	m := NewMirrorer(engine.Config{
		Node: d.cfg.Node, Incarnation: peer.NewIncarnation(), Links: links, SyncID: 1, Ring: ring,
		Tick: netip.MustParseAddrPort("169.254.81.1:8848"), AuditInterval: 10 * time.Second,
	}, d.pump, conn, testGroup, log)
	at, err := ownAddress(d.cfg.Interface, false, nil)
	if err != nil {
		return err
	}
	teaching := &teacher{}
	if err := teaching.start(ctx, netip.AddrPortFrom(at, JoinPort), transfer.NewServer(replica{m}, m.sessionAuth(), log)); err != nil {
		return err
	}
	m.With(func(e *engine.Engine) { e.SetTeaches(teaching.at) })
	d.Mirrorer = m
	go func() {
		err := m.Run(ctx)
		teaching.stop()
		ended <- err
	}()
	go func() {
		var first, last time.Time
		learned := uint64(0)
		for synced := false; !synced && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			n := uint64(0)
			m.With(func(e *engine.Engine) { synced, n = e.Synced(), e.Counters()[engine.LearnedRecords] })
			if n > learned {
				if last = time.Now(); learned == 0 {
					first = last
				}
				learned = n
			}
		}
		d.joined.Store(int64(time.Since(d.began)))
		d.stream.Store(int64(last.Sub(first)))
	}()
	return nil
}

const pauseMetric = "/sched/pauses/total/gc:seconds"

func readPauses() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: pauseMetric}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: h.Buckets}
}

func processorTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// begin starts a measurement.
func (d *director) begin() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d.pump.mu.Lock()
	d.pump.lags = lags{}
	d.pump.mu.Unlock()
	d.cycles, d.pauses, d.processor, d.since = m.NumGC, readPauses(), processorTime(), time.Now()
}

func (d *director) report(a *answer) error {
	a.Processor, a.Took = processorTime()-d.processor, time.Since(d.since)
	if d.pauses != nil {
		now := readPauses()
		for i, n := range now.Counts {
			if n > d.pauses.Counts[i] {
				a.Pause = time.Duration(now.Buckets[i+1] * 1e9)
			}
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	a.Cycles = uint64(m.NumGC - d.cycles)
	a.Injected = d.pump.injected.Load()
	d.pump.mu.Lock()
	a.Bad = d.pump.bad
	a.P50, a.P99, a.Longest, a.Lags = d.pump.lags.quantile(0.5), d.pump.lags.quantile(0.99), d.pump.lags.quantile(1), d.pump.lags.total
	d.pump.mu.Unlock()
	if d.Mirrorer != nil {
		a.Status = d.Status()
		a.Join, a.Stream = time.Duration(d.joined.Load()), time.Duration(d.stream.Load())
	}
	var err error
	if a.Peak, err = memory("VmHWM"); err != nil {
		return err
	}
	a.Resident, err = memory("VmRSS")
	return err
}

// digestOf is a sum over everything that a replica has.
func digestOf(m *Mirrorer) (sum uint64) {
	cut := replica{m}.cut() + 3600e6 // what was told in the last seconds too
	for _, d := range (replica{m}).Digests(cut, allBuckets(), nil) {
		sum = (sum ^ d.Sum ^ uint64(d.Count)<<32) * 1099511628211
	}
	return sum
}

// memory reads a line of /proc/self/status, in bytes.
func memory(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no " + name + " in /proc/self/status")
}

// slots is how many directors a window has room for.
const slots = 8

// mapWindow maps the window that is open as a descriptor.
func mapWindow(fd, own, peer int) (window, error) {
	b, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return window{}, fmt.Errorf("map the window: %w", err)
	}
	return window{slots: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b))), slots), own: own, peer: peer}, nil
}

// process is the other side: a director that a test has started.
type process struct {
	tb    testing.TB
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *json.Decoder
	ended bool
}

// newWindow makes a window for the directors of a test.
func newWindow(tb testing.TB) *os.File {
	tb.Helper()
	fd, err := unix.MemfdCreate("window", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, int64(os.Getpagesize()))
	}
	if err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "window")
	tb.Cleanup(func() { _ = f.Close() })
	return f
}

// launch starts a director's process in a namespace, bound to a processor; -1: to none. It does not mirror yet.
func launch(tb testing.TB, ns *nstest.NS, processor int, w *os.File, cfg directorConfig) *process {
	tb.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	p := &process{tb: tb, name: cfg.Node, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), directorEnv+"="+string(text))
	var said bytes.Buffer // a line between a benchmark's name and its figures would hide these from benchstat
	if p.cmd.Stderr = &said; os.Getenv("SARU_TEST_LOG") != "" {
		p.cmd.Stderr = os.Stderr
	}
	tb.Cleanup(func() {
		if tb.Failed() && said.Len() > 0 {
			tb.Logf("director %s says:\n%s", cfg.Node, said.Bytes())
		}
	})
	p.cmd.ExtraFiles = []*os.File{w}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	p.out = json.NewDecoder(stdout)
	ns.Do(tb, func() { // the calling goroutine is locked to its thread; a child inherits the thread's namespace and processors
		var before unix.CPUSet
		if err = unix.SchedGetaffinity(0, &before); err != nil {
			return
		}
		if processor >= 0 {
			var one unix.CPUSet
			one.Set(processor % runtime.NumCPU())
			if err = unix.SchedSetaffinity(0, &one); err != nil {
				return
			}
		}
		err = errors.Join(p.cmd.Start(), unix.SchedSetaffinity(0, &before))
	})
	if err != nil {
		tb.Fatalf("start director %s: %v", cfg.Node, err)
	}
	tb.Cleanup(p.stop)
	return p
}

// do gives an order and waits for the answer.
func (p *process) do(o order) answer {
	p.tb.Helper()
	b, err := json.Marshal(o)
	if err == nil {
		_, err = p.in.Write(append(b, '\n'))
	}
	var a answer
	if err == nil {
		err = p.out.Decode(&a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		p.tb.Fatalf("%s: %s: %v", p.name, o.Do, err)
	}
	return a
}

// kill ends the process without a farewell.
func (p *process) kill() {
	p.tb.Helper()
	p.ended = true
	if err := p.cmd.Process.Kill(); err != nil {
		p.tb.Fatal(err)
	}
	_ = p.cmd.Wait()
}

func (p *process) stop() {
	if p.ended {
		return
	}
	p.ended = true
	_ = p.in.Close()
	timer := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.tb.Errorf("director %s: %v", p.name, err)
	}
}

// synced waits until a director is synced and knows so many peers, and returns what it says.
func (p *process) synced(peers int) answer {
	p.tb.Helper()
	var a answer
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if a = p.do(order{Do: "report"}); a.Status.Synced && len(a.Status.Peers) == peers {
			return a
		}
		if time.Now().After(end) {
			p.tb.Fatalf("%s is not synced with %d peers after a minute: %+v", p.name, peers, a.Status)
		}
	}
}

// profile begins a CPU profile of the director in the folder SARU_PROFILE, if that is set, and returns what ends it.
func (p *process) profile(name string) (end func()) {
	p.tb.Helper()
	dir := os.Getenv("SARU_PROFILE")
	if dir == "" {
		return func() {}
	}
	p.do(order{Do: "profile", Profile: filepath.Join(dir, strings.ReplaceAll(name, "/", "_")+"."+p.name+".pprof")})
	return func() { p.do(order{Do: "end"}) }
}
