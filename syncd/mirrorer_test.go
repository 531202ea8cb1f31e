package syncd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"saru/lib/mcast"
	"saru/lib/peer"
	"saru/lib/seal"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
	"saru/syncd/transfer"
)

func TestMain(m *testing.M) {
	if beDirector() {
		return
	}
	nstest.Main(m)
}

// memDirector is a Mirrorer on a real socket whose kernel is a map.
type memDirector struct {
	*Mirrorer
	tap *tap.Memory

	mu      sync.Mutex
	kernel  map[netip.AddrPort]ipvssync.Record // by client
	records int
}

func (d *memDirector) take(msg []byte) {
	m, err := ipvssync.Parse(msg)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for r, err := range m.Records() {
		if err == nil {
			d.kernel[r.Client] = r
			d.records++
		}
	}
}

func (d *memDirector) entries() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.kernel)
}

var testGroup = netip.MustParseAddrPort("224.0.0.81:8848")

// startMemory starts a director with memory for a kernel in the present network namespace.
func startMemory(tb testing.TB, node string, interfaces ...string) *memDirector {
	tb.Helper()
	return startMemoryOn(tb, testGroup, node, interfaces...)
}

func startMemoryOn(tb testing.TB, group netip.AddrPort, node string, interfaces ...string) *memDirector {
	tb.Helper()
	d := &memDirector{kernel: map[netip.AddrPort]ipvssync.Record{}}
	d.tap = tap.NewMemory(d.take, nil)
	d.Mirrorer = startMirrorer(tb, group, d.tap, node, interfaces...)
	return d
}

// startMirrorer starts a mirrorer in the present network namespace.
func startMirrorer(tb testing.TB, group netip.AddrPort, t tap.Tap, node string, interfaces ...string) *Mirrorer {
	tb.Helper()
	return startChanged(tb, nil, group, t, node, interfaces...)
}

// startChanged starts one that is configured otherwise.
func startChanged(tb testing.TB, change func(*engine.Config), group netip.AddrPort, t tap.Tap, node string, interfaces ...string) *Mirrorer {
	tb.Helper()
	keys, err := seal.Parse([]byte("1 " + strings.Repeat("5a", 32)))
	if err != nil {
		tb.Fatal(err)
	}
	ring, err := seal.NewRing(keys, "syncd", group.String())
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := mcast.Open(mcast.Config{Interfaces: interfaces, Group: group})
	if err != nil {
		tb.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(tb.Output(), nil))
	cfg := engine.Config{
		Node: node, Incarnation: peer.NewIncarnation(), Links: interfaces, SyncID: 1, Ring: ring,
		Tick: netip.MustParseAddrPort("169.254.81.1:8848"), AuditInterval: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	m := NewMirrorer(cfg, t, conn, group, log)
	m.dial = dialHere(tb)
	ctx, cancel := context.WithCancel(context.Background())
	at, err := ownAddress(interfaces[0], group.Addr().Is6(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	teaching := teacher{}
	if err := teaching.start(ctx, netip.AddrPortFrom(at, JoinPort), transfer.NewServer(replica{m}, m.sessionAuth(), log)); err != nil {
		tb.Fatal(err)
	}
	m.With(func(e *engine.Engine) { e.SetTeaches(teaching.at) })
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	tb.Cleanup(func() {
		teaching.stop()
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("%s: %v", node, err)
		}
	})
	return m
}

// dialHere returns a dialer that works in the network namespace of the calling thread, whichever thread calls it.
func dialHere(tb testing.TB) func(ctx context.Context, network, address string) (net.Conn, error) {
	tb.Helper()
	ns, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ns.Close() })
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			if err = netns.Set(ns); err == nil {
				conn, err = (&net.Dialer{Timeout: dialTime}).DialContext(ctx, network, address)
			}
		}()
		<-done
		return conn, err
	}
}

// eventually waits until ok, at most 10 s.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within 10 s: %s", what)
		}
	}
}

func synced(ds ...*memDirector) func() bool {
	return func() bool {
		for _, d := range ds {
			if s := d.Status(); !s.Synced || len(s.Peers) != len(ds)-1 {
				return false
			}
		}
		return true
	}
}

func testConn(n int) ipvssync.Record {
	return ipvssync.Record{
		Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 4000),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"), Real: netip.MustParseAddrPort("10.9.0.7:8080"),
	}
}

// report makes the director's kernel report connections [from, to), so many records a message.
func report(tb testing.TB, d *memDirector, from, to, each int) {
	tb.Helper()
	var b ipvssync.Builder
	for i := from; i < to; {
		b.Reset(nil, 9, tap.MaxInject)
		for n := 0; n < each && i < to; n++ {
			r := testConn(i)
			if err := b.Add(&r); err != nil {
				tb.Fatal(err)
			}
			i++
		}
		msg, err := b.Finish()
		if err != nil {
			tb.Fatal(err)
		}
		if err := d.tap.Report(msg); err != nil {
			tb.Fatal(err)
		}
	}
}

// Two directors with memory for a kernel mirror each other over two veth pairs, by IPv4 and by IPv6.
func TestMirrorOverSockets(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": testGroup, "IPv6": netip.MustParseAddrPort("[ff02::81]:8848")} {
		t.Run(name, func(t *testing.T) { mirrorOverSockets(t, group) })
	}
}

func mirrorOverSockets(t *testing.T, group netip.AddrPort) {
	nstest.New(t)
	other := nstest.Other(t)
	nstest.Veth(t, "a0", []string{"192.0.2.10/24", "fe80::a0/64"}, other, "b0", []string{"192.0.2.11/24", "fe80::b0/64"})
	nstest.Veth(t, "a1", []string{"198.51.100.10/24", "fe80::a1/64"}, other, "b1", []string{"198.51.100.11/24", "fe80::b1/64"})
	a := startMemoryOn(t, group, "a", "a0", "a1")
	var b *memDirector
	other.Do(t, func() { b = startMemoryOn(t, group, "b", "b0", "b1") })
	eventually(t, "both are synced", synced(a, b))

	report(t, a, 0, 10000, 1)
	report(t, b, 10000, 12000, 40)
	eventually(t, "b's kernel has a's connections", func() bool { return b.entries() == 10000 })
	eventually(t, "a's kernel has b's connections", func() bool { return a.entries() == 2000 })

	sa, sb := a.Status(), b.Status()
	if sa.Connections.Local != 10000 || sa.Connections.Remote != 2000 || sb.Connections.Local != 2000 || sb.Connections.Remote != 10000 {
		t.Errorf("connections: a %+v, b %+v", sa.Connections, sb.Connections)
	}
	if sb.Counters["duplicate_link"] == 0 || sb.Counters["drop_replayed"] != 0 {
		t.Errorf("over two links: %d duplicates, %d replayed", sb.Counters["duplicate_link"], sb.Counters["drop_replayed"])
	}
	if sb.Peers[0].Missing != 0 || sb.Peers[0].Node != "a" {
		t.Errorf("b's peer: %+v", sb.Peers[0])
	}
	found := 0
	if err := a.connections(context.Background(), map[string][]string{"origin": {"b"}}, func(any) error { found++; return nil }); err != nil || found != 2000 {
		t.Errorf("%d connections of b listed, error %v", found, err)
	}
}
