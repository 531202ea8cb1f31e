package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
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
	local = netip.MustParseAddr("169.254.81.1")
	peer  = netip.MustParseAddr("169.254.81.2")
	group = netip.MustParseAddrPort("224.0.0.81:8848")
)

func testConfig() Config { return Config{Name: "syncd0", Local: local, Peer: peer} }

func open(tb testing.TB, cfg Config) *Device {
	tb.Helper()
	d, err := Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = d.Close() })
	return d
}

func TestConfigCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string // part of the error; empty: none
	}{
		"good":          {func(*Config) {}, ""},
		"mapped":        {func(c *Config) { c.Local = netip.MustParseAddr("::ffff:169.254.81.1") }, ""},
		"no name":       {func(c *Config) { c.Name = "" }, "interface name"},
		"long name":     {func(c *Config) { c.Name = "abcdefghijklmnop" }, "interface name"},
		"pattern name":  {func(c *Config) { c.Name = "tun%d" }, "interface name"},
		"slash":         {func(c *Config) { c.Name = "../x" }, "interface name"},
		"IPv6":          {func(c *Config) { c.Local = netip.MustParseAddr("fe80::1") }, "must be IPv4"},
		"no address":    {func(c *Config) { c.Peer = netip.Addr{} }, "must be IPv4"},
		"same ends":     {func(c *Config) { c.Peer = c.Local }, "both ends"},
		"multicast":     {func(c *Config) { c.Peer = group.Addr() }, "unicast"},
		"small MTU":     {func(c *Config) { c.MTU = 100 }, "MTU 100"},
		"big MTU":       {func(c *Config) { c.MTU = 65536 }, "MTU 65536"},
		"huge queue":    {func(c *Config) { c.QueueLen = 1 << 21 }, "queue length"},
		"negative qlen": {func(c *Config) { c.QueueLen = -1 }, "queue length"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tt.change(&cfg)
			got, err := cfg.check()
			if tt.want == "" {
				want := Config{Name: "syncd0", Local: local, Peer: peer, MTU: DefaultMTU, QueueLen: DefaultQueueLen}
				if err != nil || got != want {
					t.Fatalf("got %+v, %v; want %+v", got, err, want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestOpenConfigures(t *testing.T) {
	nstest.New(t)
	d := open(t, testConfig())
	if d.Reattached() {
		t.Error("a new device says that it was re-attached")
	}
	link, err := netlink.LinkByName("syncd0")
	if err != nil {
		t.Fatal(err)
	}
	type state struct {
		Index, MTU, QueueLen int
		Up, Persistent, TUN  bool
		Addresses, IPv6Off   string
	}
	tuntap := link.(*netlink.Tuntap)
	a := link.Attrs()
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/syncd0/disable_ipv6")
	if err != nil {
		t.Fatal(err)
	}
	got := state{
		Index: a.Index, MTU: a.MTU, QueueLen: a.TxQLen, Up: a.Flags&net.FlagUp != 0,
		Persistent: !tuntap.NonPersist, TUN: tuntap.Mode == netlink.TUNTAP_MODE_TUN,
		Addresses: listed(addrs), IPv6Off: string(off),
	}
	want := state{
		Index: d.Index(), MTU: 9216, QueueLen: 5000, Up: true, Persistent: true, TUN: true,
		Addresses: "169.254.81.1 peer 169.254.81.2", IPv6Off: "1\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if addrs[0].Scope != unix.RT_SCOPE_UNIVERSE {
		t.Errorf("scope of the address is %d: the kernel's thread would bind to another interface's", addrs[0].Scope)
	}
}

func TestReattach(t *testing.T) {
	nstest.New(t)
	first := open(t, testConfig())
	if _, err := Open(testConfig()); !errors.Is(err, ErrBusy) {
		t.Fatalf("second Open: got %v, want ErrBusy", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if ok, err := Exists("syncd0"); !ok || err != nil {
		t.Fatalf("after Close the device exists: %v, %v", ok, err)
	}
	// What an operator may have done meanwhile is put right.
	link, _ := netlink.LinkByName("syncd0")
	if err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetMTU(link, 1400)); err != nil {
		t.Fatal(err)
	}
	second := open(t, testConfig())
	if !second.Reattached() || second.Index() != first.Index() {
		t.Errorf("reattached %v with index %d, want true and %d", second.Reattached(), second.Index(), first.Index())
	}
	link, _ = netlink.LinkByName("syncd0")
	if a := link.Attrs(); a.MTU != DefaultMTU || a.Flags&net.FlagUp == 0 {
		t.Errorf("after re-attach MTU %d, flags %v", a.MTU, a.Flags)
	}
	exchange(t, second)
	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	if ok, err := Exists("syncd0"); ok || err != nil {
		t.Fatalf("after Remove the device exists: %v, %v", ok, err)
	}
}

func TestForeign(t *testing.T) {
	add := func(l netlink.Link) func(*testing.T) {
		return func(t *testing.T) {
			l.Attrs().Name = "syncd0"
			l.Attrs().TxQLen = -1
			if err := netlink.LinkAdd(l); err != nil {
				t.Fatal(err)
			}
			if tt, ok := l.(*netlink.Tuntap); ok {
				for _, f := range tt.Fds {
					_ = f.Close()
				}
			}
		}
	}
	other := func(t *testing.T) {
		cfg := testConfig()
		cfg.Local = netip.MustParseAddr("10.0.0.1")
		if err := open(t, cfg).Close(); err != nil {
			t.Fatal(err)
		}
	}
	second := func(t *testing.T) {
		if err := open(t, testConfig()).Close(); err != nil {
			t.Fatal(err)
		}
		link, _ := netlink.LinkByName("syncd0")
		a, _ := netlink.ParseAddr("10.9.9.9/24")
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		prepare func(*testing.T)
		want    string
		removes bool // Remove takes it away
	}{
		"bridge":         {add(&netlink.Bridge{}), "it is a bridge interface", false},
		"TAP":            {add(&netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TAP}), "it is a TAP device", false},
		"no address":     {add(&netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TUN}), "its addresses are none and not 169.254.81.1 peer", true},
		"other address":  {other, "its addresses are 10.0.0.1 peer 169.254.81.2 and not", true},
		"second address": {second, "10.9.9.9", true},
	} {
		t.Run(name, func(t *testing.T) {
			nstest.New(t)
			tt.prepare(t)
			before, _ := netlink.LinkByName("syncd0")
			_, err := Open(testConfig())
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "ip link delete syncd0") {
				t.Errorf("got %v, want ErrForeign with %q and what to do", err, tt.want)
			}
			after, _ := netlink.LinkByName("syncd0")
			if after == nil || after.Attrs().MTU != before.Attrs().MTU || after.Attrs().Flags != before.Attrs().Flags {
				t.Error("a refused Open has changed the interface")
			}
			err = Remove("syncd0")
			if tt.removes && err != nil || !tt.removes && !errors.Is(err, ErrForeign) {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}

func TestMultiQueueIsForeign(t *testing.T) {
	nstest.New(t)
	l := &netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TUN, Queues: 2, Flags: netlink.TUNTAP_MULTI_QUEUE_DEFAULTS}
	l.LinkAttrs = netlink.NewLinkAttrs()
	l.Name = "syncd0"
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Fds {
		_ = f.Close()
	}
	if err := netlink.AddrAdd(l, address(testConfig())); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testConfig()); !errors.Is(err, ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
}

func TestDeadlineAndClose(t *testing.T) {
	nstest.New(t)
	d := open(t, testConfig())
	buf := make([]byte, 2048)
	if err := d.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := readUDP(d, buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want os.ErrDeadlineExceeded", err)
	}
	if err := d.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := readUDP(d, buf)
		done <- err
	}()
	time.Sleep(20 * time.Millisecond) // let it block; the test passes without, too
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want os.ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close did not unblock Read")
	}
}

func TestDeletedUnderneath(t *testing.T) {
	nstest.New(t)
	d := open(t, testConfig())
	if err := Remove("syncd0"); err != nil {
		t.Fatal(err)
	}
	if err := Remove("syncd0"); err != nil {
		t.Errorf("removing a missing device: %v", err)
	}
	_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := readUDP(d, make([]byte, 100)); !errors.Is(err, ErrGone) {
		t.Errorf("Read: got %v, want ErrGone", err)
	}
	if _, err := d.Write(datagram(peer, group, []byte("x"))); !errors.Is(err, ErrGone) {
		t.Errorf("Write: got %v, want ErrGone", err)
	}
	if err := d.Remove(); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

// TestInterfaceDown shows what a caller sees while an operator has the interface down, and that it works afterwards.
func TestInterfaceDown(t *testing.T) {
	nstest.New(t)
	d := open(t, testConfig())
	link, _ := netlink.LinkByName("syncd0")
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(datagram(peer, group, []byte("x"))); !errors.Is(err, unix.EIO) {
		t.Errorf("Write on a device that is down: %v, want EIO", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	exchange(t, d)
}

// exchange sends a datagram from the kernel's side to the device, and one back with rp_filter=1.
func exchange(tb testing.TB, d *Device) {
	tb.Helper()
	for _, dev := range []string{"all", d.Name()} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/rp_filter", []byte("1"), 0); err != nil {
			tb.Fatal(err)
		}
	}
	c, err := net.ListenMulticastUDP("udp4", &net.Interface{Index: d.Index(), Name: d.Name()}, net.UDPAddrFromAddrPort(group))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	out := kernelSocket(tb)
	if err := unix.Send(out, []byte("from kernel"), 0); err != nil {
		tb.Fatal(err)
	}
	_ = unix.Close(out)
	_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 2048)
	pkt, err := readUDP(d, buf)
	if err != nil {
		tb.Fatal(err)
	}
	src := netip.AddrFrom4([4]byte(pkt[12:16]))
	if src != local || !bytes.Equal(pkt[28:], []byte("from kernel")) {
		tb.Fatalf("got %q from %v", pkt[28:], src)
	}

	if _, err := d.Write(datagram(peer, group, []byte("to kernel"))); err != nil {
		tb.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			tb.Fatal(err)
		}
		if string(buf[:n]) == "from kernel" {
			continue // the socket hears the own host's multicast, too
		}
		if string(buf[:n]) != "to kernel" || from.Addr().Unmap() != peer {
			tb.Fatalf("got %q from %v", buf[:n], from)
		}
		return
	}
}

// kernelSocket returns a blocking socket that sends to the group over the device as the kernel's thread does.
func kernelSocket(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	err = errors.Join(
		unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, local.As4()),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}),
	)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

// readUDP returns the next UDP packet and passes over IGMP reports.
func readUDP(d *Device, buf []byte) ([]byte, error) {
	for {
		n, err := d.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 28 && buf[0] == 0x45 && buf[9] == unix.IPPROTO_UDP {
			return buf[:n], nil
		}
	}
}

// datagram makes an IPv4 packet with a UDP datagram.
func datagram(from netip.Addr, to netip.AddrPort, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 1, unix.IPPROTO_UDP, 0, 0}
	b = append(b, from.AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, 4711)
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0) // no checksum
	return append(b, payload...)
}
