package transfer

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	wire "saru/proto/transfer"
	"saru/syncd/table"
)

const (
	group   = "224.0.0.81:8848"
	pupilN  = "pupil"
	teacher = "teacher"
)

func ring(t testing.TB, text string) *seal.Ring {
	t.Helper()
	keys, err := seal.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.NewRing(keys, "syncd", group)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var (
	key1 = "1 " + strings.Repeat("01", 32) + "\n"
)

// signed is --auth enforce.
func signed(t testing.TB, keys string) Auth {
	return Auth{Group: group, Ring: ring(t, keys), Sign: true, RequireSigned: true}
}

var insecure = Auth{Group: group}

// replica is a Source in memory.
type replica struct {
	mu      sync.Mutex
	state   State
	buckets [wire.Buckets]map[key]Entry
	names   map[peer.ID]string
	locked  atomic.Bool // while a bucket is walked over
	calls   int         // of Bucket
	digests int         // buckets digested
}

type key struct {
	client, virtual netip.AddrPort
	protocol        uint8
	template        bool
}

func keyOf(r *ipvssync.Record) key { return key{r.Client, r.Virtual, r.Protocol, r.Template()} }

// bucketOf is FNV-1a by hand, as package hash/fnv allocates.
func bucketOf(r *ipvssync.Record) uint16 {
	h, a, port := uint32(2166136261), r.Client.Addr().As16(), r.Client.Port()
	for _, b := range a {
		h = (h ^ uint32(b)) * 16777619
	}
	h = (h ^ uint32(port>>8)) * 16777619
	h = (h ^ uint32(port&0xff)) * 16777619
	return uint16(h % wire.Buckets)
}

func newReplica(name string) *replica {
	return &replica{
		state: State{Node: peer.IDOf(name), Incarnation: peer.Incarnation(peer.IDOf(name)) + 1, Synced: true},
		names: map[peer.ID]string{},
	}
}

// put enters an entry if it is newer.
func (r *replica) put(e Entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &r.buckets[bucketOf(&e.Record)]
	if *b == nil {
		*b = map[key]Entry{}
	}
	k := keyOf(&e.Record)
	old, ok := (*b)[k]
	if ok && e.Stamp.Compare(e.Origin, old.Stamp, old.Origin) <= 0 {
		return false
	}
	if !ok {
		r.state.Entries++
	}
	e.Record.PEName, e.Record.PEData = slices.Clone(e.Record.PEName), slices.Clone(e.Record.PEData)
	(*b)[k] = e
	return true
}

func (r *replica) learn(entries []Entry, names map[peer.ID]string) {
	for _, e := range entries {
		r.put(e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(r.names, names)
}

func (r *replica) all() map[key]Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[key]Entry{}
	for _, b := range r.buckets {
		maps.Copy(out, b)
	}
	return out
}

func (r *replica) Digests(cut uint64, buckets []uint16, dst []Digest) []Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range buckets {
		d := Digest{Bucket: n}
		for _, e := range r.buckets[n] {
			if e.Stamp.Clock > cut {
				continue
			}
			h := fnv.New64a()
			w := wire.Builder{}
			w.Reset(nil)
			w.Add(n, &wire.Item{Grant: e.Stamp.Grant, Clock: e.Stamp.Clock}, &e.Record)
			h.Write(w.Bytes())
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(e.Origin)))
			d.Count++
			d.Sum += h.Sum64()
		}
		dst = append(dst, d)
		r.digests++
	}
	return dst
}

func (r *replica) Bucket(bucket uint16, fn func(*Entry) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.locked.Store(true)
	defer r.locked.Store(false)
	for _, e := range r.buckets[bucket] {
		if !fn(&e) {
			return
		}
	}
}

func (r *replica) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *replica) OriginName(id peer.ID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[id]
}

func (r *replica) teacher() Teacher { return Teacher{r.state.Node, r.state.Incarnation} }

func (r *replica) config(auth Auth) Config {
	return Config{Node: r.state.Node, Incarnation: r.state.Incarnation, Auth: auth, Counters: new(Counters)}
}

// request returns a request of r to a teacher.
func (r *replica) request(p Purpose, from *replica) Request {
	return Request{
		Purpose: p, Expect: from.teacher(), Own: r.Digests, Cut: func() uint64 { return 1 << 60 }, BucketOf: bucketOf, Learn: r.learn,
	}
}

// conn4 returns connection n; every seventh is a template, every eleventh has sequence numbers or a persistence engine.
func conn4(n int) Entry {
	rec := ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, Flags: ipvssync.FlagDRoute | ipvssync.FlagNoOutput, State: ipvssync.TCPEstablished, Timeout: 900, Fwmark: uint32(n % 3),
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 24), byte(n >> 16), byte(n >> 8)}), uint16(1024+n%50000)),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"),
		Real:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 8080),
	}
	if n%7 == 0 {
		rec.Flags |= ipvssync.FlagTemplate
		rec.Client = netip.AddrPortFrom(rec.Client.Addr(), 0)
	}
	if n%11 == 0 {
		rec.HasSeq, rec.In, rec.Out = true, ipvssync.Seq{Init: 1, Delta: 2, PrevDelta: 3}, ipvssync.Seq{Init: 4, Delta: 5, PrevDelta: uint32(n)}
		rec.Flags |= ipvssync.FlagSeqMask
	}
	if n%13 == 0 {
		rec.PEName, rec.PEData = []byte("sip"), []byte("call-"+strings.Repeat("x", n%200))
	}
	origin := []string{"a", "b", "kernel 192.0.2.9"}[n%3]
	return Entry{
		Record: rec, Origin: peer.IDOf(origin), Stamp: table.Stamp{Grant: mirror.NewGrant(uint32(n%4), uint32(n)), Clock: 1e15 + uint64(n)*12345},
		Remaining: time.Duration(1+n%900) * time.Second,
	}
}

func conn6(n int) Entry {
	e := conn4(n)
	six := func(a netip.AddrPort) netip.AddrPort {
		b := a.Addr().As4()
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 12: b[0], b[1], b[2], b[3]}), a.Port())
	}
	e.Record.Client, e.Record.Virtual, e.Record.Real = six(e.Record.Client), six(e.Record.Virtual), six(e.Record.Real)
	return e
}

func (r *replica) fill(n int) {
	for i := range n {
		if r.put(conn4(i)); i%5 == 0 {
			r.put(conn6(i))
		}
	}
	for _, name := range []string{"a", "b", "kernel 192.0.2.9"} {
		r.names[peer.IDOf(name)] = name
	}
}

// same fails the test when the tables differ.
func same(t testing.TB, a, b *replica) {
	t.Helper()
	if want, got := a.all(), b.all(); !reflect.DeepEqual(want, got) { // which is much faster
		t.Errorf("tables (-want +got):\n%s", cmp.Diff(want, got, compareEntries))
	}
}

// compareEntries compares what entries say, not how it lies in memory.
var compareEntries = cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.AllowUnexported(key{})}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// pipeListener is a listener whose connections are pipes.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}

// serve starts a server over pipes and returns how to connect; it ends with the test, or earlier by stop.
func serve(t testing.TB, s *Server) (dial func() net.Conn, stop func()) {
	t.Helper()
	l := newPipeListener()
	return l.dial, start(t, s, l)
}

// serveTCP starts a server on the loopback interface.
func serveTCP(t testing.TB, s *Server) (dial func() net.Conn, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}, start(t, s, l)
}

func start(t testing.TB, s *Server, l net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if n := s.Sessions(); n != 0 || len(s.halfOpen) != 0 {
			t.Errorf("%d sessions and %d connections after the end", n, len(s.halfOpen))
		}
	})
	t.Cleanup(stop)
	return stop
}

// transports are what carries sessions. Over pipes time is that of a bubble.
var transports = []struct {
	name  string
	serve func(testing.TB, *Server) (func() net.Conn, func())
	test  func(func(*testing.T)) func(*testing.T)
}{
	{"pipe", serve, func(fn func(*testing.T)) func(*testing.T) { return func(t *testing.T) { synctest.Test(t, fn) } }},
	{"tcp", serveTCP, func(fn func(*testing.T)) func(*testing.T) { return fn }},
}

func TestPull(t *testing.T) {
	for _, tr := range transports {
		for _, purpose := range []Purpose{Join, Audit, Compare} {
			for _, auth := range []struct {
				name string
				Auth
			}{{"signed", signed(t, key1)}, {"insecure", insecure}} {
				t.Run(tr.name+"/"+purpose.String()+"/"+auth.name, tr.test(func(t *testing.T) {
					a, b := newReplica(teacher), newReplica(pupilN)
					a.fill(3000)
					s := NewServer(a, auth.Auth, quiet)
					dial, stop := tr.serve(t, s)
					if purpose != Join {
						b.fill(2990)
					}
					before := len(b.all())
					var told []uint64
					req := b.request(purpose, a)
					req.Progress = func(done, total uint64) { told = append(told, done, total) }
					cfg := b.config(auth.Auth)
					res, err := Pull(t.Context(), dial(), cfg, req)
					if err != nil {
						t.Fatal(err)
					}
					stop()
					same(t, a, b)
					if diff := cmp.Diff(a.names, b.names); diff != "" {
						t.Errorf("names (-teacher +pupil):\n%s", diff)
					}
					missing := len(a.all()) - before
					if !res.Complete || res.Skipped != 0 || (purpose == Join) != (res.Buckets == nil) || int(res.Entries) < missing {
						t.Errorf("result %+v", res)
					}
					if purpose == Join && int(res.Entries) != missing || purpose != Join && (len(res.Buckets) > missing || len(res.Buckets) == 0) {
						t.Errorf("%d entries of %d buckets, want %d entries", res.Entries, len(res.Buckets), missing)
					}
					if len(told) < 2 || told[len(told)-2] != res.Entries || told[len(told)-1] != res.Entries {
						t.Errorf("progress %v, want %d of %d at the end", told, res.Entries, res.Entries)
					}
					for _, c := range []*Counters{s.Counters(), cfg.Counters} {
						if c.Get(Finished) != 1 || c.Get(Entries) != res.Entries {
							t.Errorf("counters %v", maps.Collect(c.All("join_")))
						}
					}
					if got := s.Counters().Get(Bytes); got != res.Bytes {
						t.Errorf("%d bytes sent, %d received", got, res.Bytes)
					}
				}))
			}
		}
	}
}
