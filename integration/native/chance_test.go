package native

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"

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

// TestChance sends frames to the shared MAC address whose packets are for others: for the own address of one director, and for a host behind all of them. The directors forward.
// Without --mac each forwards what it gets; with it, every packet arrives once, and nobody sends redirects.
func TestChance(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		once bool
	}{{"without --mac", nil, false}, {"with --mac", []string{"--mac", sharedMAC.String()}, true}} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFarm(t, 3, tt.args...)
			f.settled()
			behind := netip.MustParseAddr("10.9.0.1")
			nstest.Up(t, "beat", "10.2.0.200/24")
			nstest.Up(t, "lo", behind.String()+"/32")
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644))
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/beat/rp_filter", []byte("0"), 0o644))
			for _, d := range f.directors {
				d.ns.Do(t, func() {
					for _, name := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/send_redirects"} {
						must(t, os.WriteFile("/proc/sys/"+name, []byte("1"), 0o644))
					}
					must(t, netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: behind.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: net.IPv4(10, 2, 0, 200)}))
				})
			}
			const port, sources, each = 9001, 50, 4 // the directors forward by the source address
			const count = sources * each
			var own, other *atomic.Int64
			d := f.directors[0]
			d.ns.Do(t, func() {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 1, 0, 1), Port: port})
				must(t, err)
				own = counted(t, c)
				neighbour(t, "eth0", netip.MustParseAddr("10.1.0.1"), sharedMAC)
			})
			for _, other := range f.directors[1:] { // as everybody on the segment, they know this address at the shared MAC
				other.ns.Do(t, func() { neighbour(t, "eth0", netip.MustParseAddr("10.1.0.1"), sharedMAC) })
			}
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: behind.AsSlice(), Port: port})
			must(t, err)
			other = counted(t, c)
			var socket *net.UDPConn
			f.client.Do(t, func() {
				neighbour(t, "eth0", netip.MustParseAddr("10.1.0.1"), sharedMAC)
				must(t, netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: behind.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: vip.AsSlice()}))
				for i := range sources {
					from := netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)})
					nstest.Up(t, "eth0", from.String()+"/16")
					socket, err = net.ListenUDP("udp4", &net.UDPAddr{IP: from.AsSlice()})
					must(t, err)
					// Without the rules a packet for another director's own address goes around until its time to live is over, three times as many each time: once is enough.
					must(t, ipv4.NewConn(socket).SetTTL(2))
					for range each {
						for _, to := range []net.IP{net.IPv4(10, 1, 0, 1), behind.AsSlice()} {
							_, err := socket.WriteToUDP([]byte("?"), &net.UDPAddr{IP: to, Port: port})
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
				tt.name, count, own.Load(), other.Load(), redirects, forwarding)
			switch {
			case tt.once && (own.Load() != count || other.Load() != count || redirects != 0 || forwarding != len(f.directors)):
				t.Error("not each packet once")
			case !tt.once && (own.Load() == count || other.Load() == count):
				t.Error("without the rules each packet arrives once as well: the test shows nothing")
			}
		})
	}
}

// redirects is how many ICMP redirects the client has got.
func (f *farm) redirects() (n int) {
	f.client.Do(f.t, func() {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		must(f.t, err)
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || fields[0] != "Icmp:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			for i, name := range names {
				if name == "InRedirects" {
					for _, c := range fields[i] {
						n = n*10 + int(c-'0')
					}
				}
			}
		}
	})
	return n
}
