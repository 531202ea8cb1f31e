package native

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"saru/lib/tun/nstest"
)

// counted counts the datagrams that come to a socket.
func counted(t *testing.T, c *net.UDPConn) *atomic.Int64 {
	t.Cleanup(func() { _ = c.Close() })
	n := new(atomic.Int64)
	go func() {
		buf := make([]byte, 64)
		for {
			if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return n
}

// chance is how packets of a family get to the wrong host: addresses of a director, of a host behind all of them and of that host's segment.
type chance struct {
	family             string
	own, behind, gate  netip.Addr
	prefix, beatPrefix int
	source, director   func(i int) netip.Addr
	forward            string
	limitHops          func(c *net.UDPConn, n int) error
}

var chances = []chance{
	{
		"IPv4", netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.2.0.200"), 16, 24,
		func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}) }, nil, "net/ipv4/ip_forward",
		func(c *net.UDPConn, n int) error { return ipv4.NewConn(c).SetTTL(n) },
	},
	{
		"IPv6", netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:9::1"), netip.MustParseAddr("fd00:2::200"), 64, 64,
		func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:1::1:%x", i+1)) },
		func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i+1)) }, "net/ipv6/conf/all/forwarding",
		func(c *net.UDPConn, n int) error { return ipv6.NewConn(c).SetHopLimit(n) },
	},
}

// route goes to a host by a gateway.
func route(t *testing.T, to, by netip.Addr) {
	t.Helper()
	must(t, netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}, Gw: by.AsSlice()}))
}

// TestChance sends frames to the shared MAC address whose packets are for others: for the own address of one director, and for a host behind all of them. The directors forward.
// Without --mac each forwards what it gets; with it, every packet arrives once, and nobody sends redirects.
func TestChance(t *testing.T) {
	for _, c := range chances {
		t.Run(c.family+" without --mac", func(t *testing.T) { c.test(t, false) })
		t.Run(c.family+" with --mac", func(t *testing.T) { c.test(t, true, "--mac", sharedMAC.String()) })
	}
}

func (c chance) test(t *testing.T, once bool, args ...string) {
	f := newFarm(t, 3, args...)
	f.settled()
	nstest.Up(t, "beat", fmt.Sprintf("%v/%d", c.gate, c.beatPrefix))
	nstest.Up(t, "lo", netip.PrefixFrom(c.behind, c.behind.BitLen()).String())
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644))
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/beat/rp_filter", []byte("0"), 0o644))
	for i, d := range f.directors {
		d.ns.Do(t, func() {
			for _, name := range []string{c.forward, "net/ipv4/conf/all/send_redirects"} {
				must(t, os.WriteFile("/proc/sys/"+name, []byte("1"), 0o644))
			}
			if c.director != nil {
				nstest.Up(t, "eth0", fmt.Sprintf("%v/%d", c.director(i), c.prefix))
				nstest.Up(t, "eth1", fmt.Sprintf("fd00:2::%x/%d", i+1, c.beatPrefix))
			}
			route(t, c.behind, c.gate)
		})
	}
	const port, sources, each = 9001, 50, 4 // the directors forward by the source address
	const count = sources * each
	var own, other *atomic.Int64
	f.directors[0].ns.Do(t, func() {
		var at *net.UDPConn
		until(t, 5*time.Second, "an address that can be used", func() bool {
			var err error
			at, err = net.ListenUDP("udp", &net.UDPAddr{IP: c.own.AsSlice(), Port: port})
			return err == nil
		})
		own = counted(t, at)
		neighbour(t, "eth0", c.own, sharedMAC)
	})
	for _, other := range f.directors[1:] { // as everybody on the segment, they know this address at the shared MAC
		other.ns.Do(t, func() { neighbour(t, "eth0", c.own, sharedMAC) })
	}
	at, err := net.ListenUDP("udp", &net.UDPAddr{IP: c.behind.AsSlice(), Port: port})
	must(t, err)
	other = counted(t, at)
	f.client.Do(t, func() {
		neighbour(t, "eth0", c.own, sharedMAC)
		if c.director != nil {
			nstest.Up(t, "eth0", fmt.Sprintf("%v/%d", c.source(-1), c.prefix)) // the gateway is on its segment then
		}
		route(t, c.behind, c.own)
		for i := range sources {
			from := c.source(i)
			nstest.Up(t, "eth0", fmt.Sprintf("%v/%d", from, c.prefix))
			var socket *net.UDPConn
			until(t, 5*time.Second, "an address that can be used", func() bool {
				socket, err = net.ListenUDP("udp", &net.UDPAddr{IP: from.AsSlice()})
				return err == nil
			})
			// Without the rules a packet for another director's own address goes around until its time to live is over, three times as many each time: once is enough.
			must(t, c.limitHops(socket, 2))
			for range each {
				for _, to := range []netip.Addr{c.own, c.behind} {
					_, err := socket.WriteToUDP([]byte("?"), &net.UDPAddr{IP: to.AsSlice(), Port: port})
					must(t, err)
				}
				time.Sleep(time.Millisecond)
			}
			must(t, socket.Close())
		}
	})
	time.Sleep(300 * time.Millisecond)
	redirects := f.redirects()
	forwarding := 0
	for _, d := range f.directors {
		s, ok := d.status()
		if ok && s.Chance.Accepted > 0 && s.Chance.Rebounded > 0 || ok && d.index == 0 && s.Chance.Accepted > 0 { // the first one takes what is for itself
			forwarding++
		}
	}
	t.Logf("RESULT %s, %d packets each by chance to the shared MAC address: for a director's own address %d arrive, for a host behind all %d; redirects: %d; directors that forward: %d",
		t.Name(), count, own.Load(), other.Load(), redirects, forwarding)
	switch {
	case once && (own.Load() != count || other.Load() != count || redirects != 0 || forwarding != len(f.directors)):
		t.Error("not each packet once")
	case !once && (own.Load() == count || other.Load() == count):
		t.Error("without the rules each packet arrives once as well: the test shows nothing")
	}
}

// redirects is how many ICMP and ICMPv6 redirects the client has got.
func (f *farm) redirects() (n int) {
	f.client.Do(f.t, func() {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		must(f.t, err)
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 0 || fields[0] != "Icmp:":
			case names == nil:
				names = fields
			default:
				at := slices.Index(names, "InRedirects")
				n, err = strconv.Atoi(fields[at])
				must(f.t, err)
			}
		}
		text, err = os.ReadFile("/proc/thread-self/net/snmp6")
		must(f.t, err)
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "Icmp6InRedirects" {
				more, err := strconv.Atoi(fields[1])
				must(f.t, err)
				n += more
			}
		}
	})
	return n
}
