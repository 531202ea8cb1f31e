package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	group4 = netip.MustParseAddrPort("224.0.0.81:8848")
	group6 = netip.MustParseAddrPort("[ff02::81]:8848")
	wide6  = netip.MustParseAddrPort("[ff15::81]:8848")
)

// segment is two directors with two wires between them.
func segment(tb testing.TB) (peer *nstest.NS) {
	tb.Helper()
	nstest.New(tb)
	peer = nstest.Other(tb)
	nstest.Veth(tb, "a0", []string{"10.0.0.1/24", "fd00::1/64"}, peer, "b0", []string{"10.0.0.2/24", "fd00::2/64"})
	nstest.Veth(tb, "a1", []string{"10.0.1.1/24"}, peer, "b1", []string{"10.0.1.2/24"})
	return peer
}

func open(tb testing.TB, cfg Config) *Conn {
	tb.Helper()
	c, err := Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return c
}

func openIn(tb testing.TB, ns *nstest.NS, cfg Config) (c *Conn) {
	tb.Helper()
	ns.Do(tb, func() { c = open(tb, cfg) })
	return c
}

// text is a received datagram in readable form.
type text struct {
	Data, From string
	Truncated  bool
}

// read reads n datagrams; the port of the sender is left out.
func read(tb testing.TB, l *Link, n int) []text {
	tb.Helper()
	var got []text
	msgs := messages(4, 2048)
	_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
	for len(got) < n {
		k, err := l.ReadBatch(msgs)
		if err != nil {
			tb.Fatalf("after %d of %d datagrams on %s: %v", len(got), n, l.Interface(), err)
		}
		for _, m := range msgs[:k] {
			got = append(got, text{string(m.Buf[:m.N]), m.Src.Addr().String(), m.Truncated})
		}
	}
	return got
}

// quiet fails when a datagram arrives within a moment.
func quiet(tb testing.TB, l *Link) {
	tb.Helper()
	_ = l.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	msgs := messages(1, 2048)
	if n, err := l.ReadBatch(msgs); !errors.Is(err, os.ErrDeadlineExceeded) {
		tb.Errorf("on %s: %d datagrams (%q from %v), error %v; want none", l.Interface(), n, msgs[0].Buf[:msgs[0].N], msgs[0].Src, err)
	}
	_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
}

func messages(n, size int) []Message {
	m := make([]Message, n)
	for i := range m {
		m[i].Buf = make([]byte, size)
	}
	return m
}

func write(tb testing.TB, l *Link, data ...string) {
	tb.Helper()
	var bufs [][]byte
	for _, d := range data {
		bufs = append(bufs, []byte(d))
	}
	if n, err := l.WriteBatch(bufs); n != len(bufs) || err != nil {
		tb.Fatalf("wrote %d of %d datagrams on %s: %v", n, len(bufs), l.Interface(), err)
	}
}

// linkLocal returns the interface's link-local address.
func linkLocal(tb testing.TB, ifname string) string {
	tb.Helper()
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		tb.Fatal(err)
	}
	for range 200 {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			tb.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return a.IP.String()
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("%s has got no link-local address", ifname)
	return ""
}

func TestExchange(t *testing.T) {
	for name, tt := range map[string]struct {
		group netip.AddrPort
		from  string // empty: link-local
	}{
		"IPv4":                 {group4, "10.0.0.1"},
		"IPv4 mapped":          {netip.MustParseAddrPort("[::ffff:224.0.0.81]:8848"), "10.0.0.1"},
		"IPv4 without a route": {netip.MustParseAddrPort("239.1.1.1:9999"), "10.0.0.1"},
		"IPv6 link-local":      {group6, ""},
		"IPv6 site":            {wide6, "fd00::1"},
	} {
		t.Run(name, func(t *testing.T) {
			peer := segment(t)
			ll := linkLocal(t, "a0")
			if tt.from == "" {
				tt.from = ll
			}
			a := open(t, Config{Interfaces: []string{"a0", "a1"}, Group: tt.group})
			b := openIn(t, peer, Config{Interfaces: []string{"b0", "b1"}, Group: tt.group})
			var data []string
			var want []text
			for i := range 10 {
				data = append(data, fmt.Sprintf("datagram %d", i))
				want = append(want, text{Data: data[i], From: tt.from})
			}
			write(t, a.Links()[0], data...)
			if diff := cmp.Diff(want, read(t, b.Links()[0], 10)); diff != "" {
				t.Error(diff)
			}
			if got := a.Links()[0].Local().String(); got != tt.from {
				t.Errorf("Local is %s, want %s", got, tt.from)
			}
			quiet(t, b.Links()[1]) // the other wire
			quiet(t, a.Links()[0]) // no loop
		})
	}
}

// TestNothingElse sends what must not be received: other groups, other ports, unicast.
func TestNothingElse(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": group4, "IPv6": group6} {
		t.Run(name, func(t *testing.T) {
			peer := segment(t)
			linkLocal(t, "a0")
			ga, gp := group.Addr(), group.Port()
			otherGroup := netip.AddrPortFrom(ga.Next(), gp)
			otherPort := netip.AddrPortFrom(ga, gp+1)
			b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group})
			// These make the host a member, so that the datagrams do come in.
			og := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: otherGroup})
			op := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: otherPort})
			for _, g := range []netip.AddrPort{otherGroup, otherPort} {
				write(t, open(t, Config{Interfaces: []string{"a0"}, Group: g}).Links()[0], g.String())
			}
			unicast := "10.0.0.2:8848"
			if group.Addr().Is6() {
				unicast = "[fd00::2]:8848"
			}
			u, err := net.Dial("udp", unicast)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = u.Close() }()
			if _, err := u.Write([]byte("unicast")); err != nil {
				t.Fatal(err)
			}
			read(t, og.Links()[0], 1)
			read(t, op.Links()[0], 1)
			quiet(t, b.Links()[0])
		})
	}
}

// TestCoexist runs beside a socket made as the kernel's backup thread makes it, which shows the TTL as well.
func TestCoexist(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4})
	var stock int
	cfg := Config{Interfaces: []string{"b0"}, Group: group4}
	first := openIn(t, peer, cfg)
	peer.Do(t, func() { stock = stockReceiver(t, first.Links()[0].Index()) })
	defer func() { _ = unix.Close(stock) }()
	second := openIn(t, peer, cfg)

	write(t, a.Links()[0], "to all three")
	want := []text{{Data: "to all three", From: "10.0.0.1"}}
	if diff := cmp.Diff(want, read(t, first.Links()[0], 1)); diff != "" {
		t.Error("first:", diff)
	}
	if diff := cmp.Diff(want, read(t, second.Links()[0], 1)); diff != "" {
		t.Error("second:", diff)
	}
	buf, oob := make([]byte, 100), make([]byte, 100)
	n, oobn, _, _, err := unix.Recvmsg(stock, buf, oob, 0)
	if err != nil || string(buf[:n]) != "to all three" {
		t.Fatalf("stock socket: %q, %v", buf[:n], err)
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(cmsgs) != 1 || cmsgs[0].Data[0] != 1 {
		t.Errorf("TTL message %v, %v; want TTL 1", cmsgs, err)
	}

	// And back, from a socket that nothing has prepared, as another director's kernel.
	peer.Do(t, func() {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2)}, net.UDPAddrFromAddrPort(group4))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		raw, _ := c.SyscallConn()
		if err := control(raw, func(fd int) error {
			return unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, [4]byte{10, 0, 0, 2})
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("stock")); err != nil {
			t.Fatal(err)
		}
	})
	if diff := cmp.Diff([]text{{Data: "stock", From: "10.0.0.2"}}, read(t, a.Links()[0], 1)); diff != "" {
		t.Error(diff)
	}
}

func stockReceiver(tb testing.TB, index int) int {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: group4.Addr().As4(), Port: int(group4.Port())}),
		unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group4.Addr().As4(), Ifindex: int32(index)}),
	)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

func TestLoopAndTTL(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": group4, "IPv6": group6} {
		t.Run(name, func(t *testing.T) {
			segment(t)
			linkLocal(t, "a0")
			a := open(t, Config{Interfaces: []string{"a0"}, Group: group, Loop: true, TTL: 7})
			write(t, a.Links()[0], "to myself")
			if got := read(t, a.Links()[0], 1); got[0].Data != "to myself" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestTruncated(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4})
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4})
	write(t, a.Links()[0], "short", "12345678", "123456789", "after", "")
	msgs := messages(8, 8)
	var got []text
	for len(got) < 5 {
		n, err := b.Links()[0].ReadBatch(msgs)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs[:n] {
			got = append(got, text{string(m.Buf[:m.N]), m.Src.Addr().String(), m.Truncated})
		}
	}
	const from = "10.0.0.1"
	want := []text{{"short", from, false}, {"12345678", from, false}, {"12345678", from, true}, {"after", from, false}, {"", from, false}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDropped(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4})
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4, ReadBuffer: 20000})
	l := b.Links()[0]
	if l.ReadBuffer() < 20000 || l.ReadBuffer() > 40000 {
		t.Errorf("ReadBuffer %d, asked for 20000", l.ReadBuffer())
	}
	if d := l.Dropped(); d != 0 {
		t.Fatalf("%d dropped before anything was sent", d)
	}
	bufs := make([][]byte, 200)
	for i := range bufs {
		bufs[i] = make([]byte, 1400)
	}
	if n, err := a.Links()[0].WriteBatch(bufs); n != 200 || err != nil {
		t.Fatal(n, err)
	}
	// Delivery over veth is done by softirq, perhaps on the other processor.
	received := 0
	for deadline := time.Now().Add(5 * time.Second); received+int(l.Dropped()) < 200 && time.Now().Before(deadline); {
		_ = l.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := l.ReadBatch(messages(64, 1500))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		received += n
	}
	if d := int(l.Dropped()); d == 0 || received == 0 || received+d != 200 {
		t.Errorf("%d received and %d dropped, want both and 200 in total", received, d)
	}
	_ = b.Close()
	if l.Dropped() == 0 {
		t.Error("the counter is lost with Close")
	}
}

func TestClose(t *testing.T) {
	segment(t)
	a := open(t, Config{Interfaces: []string{"a0", "a1"}, Group: group4})
	_ = a.SetReadDeadline(time.Time{})
	done := make(chan error, 2)
	for _, l := range a.Links() {
		go func() {
			_, err := l.ReadBatch(messages(1, 100))
			done <- err
		}()
	}
	time.Sleep(20 * time.Millisecond) // let them block; the test passes without, too
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-done:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("ReadBatch: %v, want net.ErrClosed", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("Close did not unblock ReadBatch")
		}
	}
	l := a.Links()[0]
	if _, err := l.WriteBatch([][]byte{{1}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WriteBatch: %v", err)
	}
	if err := l.Rejoin(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Rejoin: %v", err)
	}
	if err := a.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	segment(t)
	good := Config{Interfaces: []string{"a0"}, Group: group4}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"unknown interface": {func(c *Config) { c.Interfaces = []string{"a0", "eth7"} }, `interface "eth7"`},
		"no interface":      {func(c *Config) { c.Interfaces = nil }, "no interface"},
		"twice":             {func(c *Config) { c.Interfaces = []string{"a0", "a0"} }, `"a0" is given twice`},
		"unicast":           {func(c *Config) { c.Group = netip.MustParseAddrPort("10.0.0.1:1") }, "not a multicast address"},
		"no group":          {func(c *Config) { c.Group = netip.AddrPort{} }, "not a multicast address"},
		"no port":           {func(c *Config) { c.Group = netip.MustParseAddrPort("224.0.0.81:0") }, "port must not be 0"},
		"TTL":               {func(c *Config) { c.TTL = 256 }, "TTL 256"},
		"buffer":            {func(c *Config) { c.ReadBuffer = 1 << 31 }, "buffer sizes"},
	} {
		// No subtests: they would run outside of the namespace.
		cfg := good
		tt.change(&cfg)
		c, err := Open(cfg)
		if err == nil {
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	addr := func(s string, flags int) netlink.Addr {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = flags
		return *a
	}
	for name, tt := range map[string]struct {
		addrs []netlink.Addr
		group netip.AddrPort
		want  string
	}{
		"first IPv4":              {[]netlink.Addr{addr("10.0.0.1/24", 0), addr("10.0.0.2/24", 0)}, group4, "10.0.0.1"},
		"none":                    {nil, group4, "invalid IP"},
		"link-local":              {[]netlink.Addr{addr("fd00::1/64", 0), addr("fe80::1/64", 0)}, group6, "fe80::1"},
		"wide":                    {[]netlink.Addr{addr("fe80::1/64", 0), addr("fd00::1/64", 0)}, wide6, "fd00::1"},
		"wide, link-local only":   {[]netlink.Addr{addr("fe80::1/64", 0)}, wide6, "fe80::1"},
		"link-local, global only": {[]netlink.Addr{addr("fd00::1/64", 0)}, group6, "invalid IP"},
		"tentative":               {[]netlink.Addr{addr("fe80::1/64", unix.IFA_F_TENTATIVE), addr("fe80::2/64", 0)}, group6, "fe80::2"},
		"duplicate":               {[]netlink.Addr{addr("fe80::1/64", unix.IFA_F_DADFAILED)}, group6, "invalid IP"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := choose(tt.addrs, tt.group.Addr()).String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
