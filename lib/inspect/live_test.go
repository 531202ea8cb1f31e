package inspect

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
)

// lines collects output and tells when something has come.
type lines struct {
	mu  sync.Mutex
	b   bytes.Buffer
	got chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.got <- struct{}{}:
	default:
	}
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// send multicasts payload out of an interface of the present namespace.
func send(t *testing.T, ifname string, to netip.AddrPort, payload []byte) {
	t.Helper()
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		t.Fatal(err)
	}
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16(), ZoneId: uint32(ifi.Index)}
	if to.Addr().Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if family == unix.AF_INET {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ifi.Index)})
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index)
	}
	if err != nil {
		t.Fatal(err)
	}
	// An IPv6 interface that has just come up takes a moment until it lends its address.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Sendto(fd, payload, 0, sa)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) || time.Now().After(end) {
			t.Fatalf("send to %s: %v", to, err)
		}
	}
}

// awaitCarrier waits until an interface takes packets, which is some time after it was set up.
func awaitCarrier(t *testing.T, name string) {
	t.Helper()
	tick, deadline := time.NewTicker(5*time.Millisecond), time.After(5*time.Second)
	defer tick.Stop()
	for {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s has no carrier", name)
		}
	}
}

// live opens a source in the present namespace, and runs it on a goroutine; stop ends it and returns what was shown.
func live(t *testing.T, cfg Config) (out *lines, stop func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out = &lines{got: make(chan struct{}, 1)}
	cfg.Out = out
	if cfg.Port == 0 {
		cfg.Port = 8848
	}
	src, err := open(ctx, &cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- run(ctx, cfg, src) }()
	return out, func() string {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("Run does not end when its context does")
		}
		if err := src.close(); err != nil {
			t.Error(err)
		}
		return out.String()
	}
}

// await waits for the text in the output.
func await(t *testing.T, out *lines, want string) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for !strings.Contains(out.String(), want) {
		select {
		case <-out.got:
		case <-deadline:
			t.Fatalf("no %q within 5 s in\n%s", want, out)
		}
	}
}

func TestLive(t *testing.T) {
	msg := kernelMessage(t, tcp4())
	big := kernelMessage(t, slices.Repeat([]ipvssync.Record{tcp4()}, 100)...)
	for _, tt := range []struct {
		name    string
		iface   string // listened to
		group   netip.AddrPort
		sender  string // its interface; eth1 is in the other namespace
		payload []byte
		want    string
	}{
		{"received", "eth0", group, "eth1", msg, " eth0 192.0.2.2:"},
		{"sent", "eth0", group, "eth0", msg, " eth0 192.0.2.1:"},
		{"all interfaces", "", group, "eth1", msg, " eth0 192.0.2.2:"},
		{"another group, in fragments", "eth0", ap("239.1.2.3:8848"), "eth1", big, " 239.1.2.3:8848 kernel v1 syncid 7, 100 records, 3608 bytes"},
		{"IPv6", "eth0", group6, "eth1", msg, " [ff02::81]:8848 kernel"},
		{"loopback", "lo", group, "lo", msg, " lo 1"},
		{"loopback among all", "", group, "lo", msg, " lo 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.New(t)
			other := nstest.Other(t)
			nstest.Veth(t, "eth0", []string{"192.0.2.1/24", "fe80::1/64"}, other, "eth1", []string{"192.0.2.2/24", "fe80::2/64"})
			awaitCarrier(t, "eth0")
			other.Do(t, func() { awaitCarrier(t, "eth1") })
			out, stop := live(t, Config{Interface: tt.iface, Group: tt.group.Addr()})
			sendAll := func() {
				send(t, tt.sender, netip.AddrPortFrom(tt.group.Addr(), 8849), msg) // another port
				send(t, tt.sender, ap("239.9.9.9:8848"), msg)                      // another group
				send(t, tt.sender, tt.group, tt.payload)
			}
			if tt.sender == "eth1" {
				other.Do(t, sendAll)
			} else {
				sendAll()
			}
			await(t, out, tt.want)
			if shown := stop(); strings.Count(shown, " > 2")+strings.Count(shown, " > [") != 1 {
				t.Errorf("not one message:\n%s", shown)
			}
		})
	}
}

// TestLiveJoins makes sure that the group is delivered to a machine on which nobody else has joined it.
func TestLiveJoins(t *testing.T) {
	nstest.New(t)
	nstest.Veth(t, "eth0", []string{"192.0.2.1/24"}, nstest.Other(t), "eth1", nil)
	_, stop := live(t, Config{Interface: "eth0", Group: netip.MustParseAddr("239.1.2.3")})
	memberships := func() string {
		b, err := os.ReadFile("/proc/thread-self/net/igmp")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const hexGroup = "030201EF"
	if !strings.Contains(memberships(), hexGroup) {
		t.Errorf("not joined:\n%s", memberships())
	}
	stop()
	if strings.Contains(memberships(), hexGroup) {
		t.Error("still joined after the end")
	}
}

func TestLiveErrors(t *testing.T) {
	err := Run(t.Context(), Config{Interface: "none0"})
	if err == nil || !strings.Contains(err.Error(), `interface "none0"`) {
		t.Errorf("unknown interface: %v", err)
	}
}
