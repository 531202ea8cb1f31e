package share

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

// opened returns a filter that owns a random half of the buckets, and that half.
func opened(t *testing.T, cfg Config, rng *rand.Rand) (*Filter, []uint64) {
	t.Helper()
	f := mustOpen(t, cfg)
	owned := randomHalf(rng, cfg.Function.Buckets)
	must(t, f.Apply(owned))
	must(t, f.Grant(lasts(time.Minute)))
	return f, owned
}

// check compares what passes with what should, for many clients; both must happen.
func (w *world) check(what string, owned []uint64, make func(client netip.AddrPort) (pkt []byte, fn flow.Function, key tuple), is4 bool) {
	w.t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	passed := 0
	const clients = 60
	for range clients {
		pkt, fn, key := make(randomSource(rng, is4))
		want := has(owned, fn.Bucket(key.src, key.dst))
		if want {
			passed++
		}
		if got := w.passes(w.out, pkt); got != want {
			w.t.Errorf("%s: %v to %v: passes %v, want %v", what, key.src, key.dst, got, want)
			return
		}
	}
	if passed == 0 || passed == clients {
		w.t.Errorf("%s: %d of %d are to pass: this proves nothing", what, passed, clients)
	}
}

// TestKinds sends packets of each kind to an address whose services have shares of their own.
func TestKinds(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			w := newWorld(t)
			vip, persist := vip4, uint8(24)
			if !is4 {
				vip, persist = vip6, 56
			}
			cfg := testConfig()
			cfg.Virtuals = []Virtual{{Address: vip, Sense: flow.SenseOf(flow.SrcAddr, flow.SrcPort, flow.DstPort), Open: true, Services: []Service{
				{Protocol: tcp, Port: 443, BySource: true, PersistMask: persist}, {Protocol: tcp, Port: 21, BySource: true}, {Protocol: tcp, Port: 80},
				{Protocol: udp, Port: 500, PersistMask: persist},
			}}}
			f, owned := opened(t, cfg, rand.New(rand.NewPCG(3, 4)))
			v := f.cfg.Virtuals[0]
			fn := func(protocol uint8, port uint16) flow.Function { return f.cfg.FunctionOf(v, protocol, port) }
			at := func(c netip.AddrPort, port uint16) tuple { return tuple{c, netip.AddrPortFrom(vip, port)} }
			router := netip.MustParseAddr("203.0.113.9")
			if !is4 {
				router = netip.MustParseAddr("2001:db8:9::9")
			}
			back := func(tp tuple) tuple { return tuple{tp.dst, tp.src} }
			esp := make([]byte, 16)

			for _, port := range []uint16{80, 443, 21, 20000} {
				w.check(fmt.Sprintf("TCP to port %d", port), owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					return syn(at(c, port)), fn(tcp, port), at(c, port)
				}, is4)
				w.check(fmt.Sprintf("error about TCP from port %d", port), owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					return unreachable(router, syn(back(at(c, port)))[:w.quoted(is4)]), fn(tcp, port), at(c, port)
				}, is4)
			}
			for _, port := range []uint16{53, 500, 4500} {
				w.check(fmt.Sprintf("UDP to port %d", port), owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					return datagram(at(c, port)), fn(udp, port), at(c, port)
				}, is4)
			}
			w.check("SCTP", owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
				return ipPacket(c.Addr(), vip, unix.IPPROTO_SCTP, segment(at(c, 99), make([]byte, 20))), fn(unix.IPPROTO_SCTP, 99), at(c, 99)
			}, is4)
			echo, proto := byte(8), uint8(unix.IPPROTO_ICMP)
			if !is4 {
				echo, proto = 128, unix.IPPROTO_ICMPV6
			}
			w.check("echo request", owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
				return icmp(c.Addr(), vip, echo, []byte{1, 2, 3, 4}), fn(proto, 0), at(c, 0)
			}, is4)
			for _, p := range []uint8{unix.IPPROTO_ESP, unix.IPPROTO_AH, 250} {
				w.check(fmt.Sprintf("protocol %d", p), owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					return ipPacket(c.Addr(), vip, p, esp), fn(p, 0), at(c, 0)
				}, is4)
			}
			w.check("error about another protocol", owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
				return unreachable(router, ipPacket(vip, c.Addr(), 250, esp)), fn(250, 0), at(c, 0)
			}, is4)
			if is4 {
				w.check("error about a later fragment", owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					about := datagram(back(at(c, 53)), 1, 2, 3, 4)
					about[7] = 5
					return unreachable(router, about), fn(250, 0), at(c, 0)
				}, is4)
				w.check("error about a packet with options", owned, func(c netip.AddrPort) ([]byte, flow.Function, tuple) {
					about := datagram(back(at(c, 53)), 1, 2, 3, 4)
					about[0] = 0x46
					return unreachable(router, about), fn(250, 0), at(c, 0)
				}, is4)
				short := unreachable(router, datagram(back(flowOf("11.0.0.1:1", vip.String()+":80")))[:21])
				if w.passes(w.out, short) {
					t.Error("an error without the ports passes")
				}
			}
			if !is4 {
				for kind := byte(133); kind <= 137; kind++ {
					if !w.passes(w.out, icmp(router, vip, kind, make([]byte, 20))) {
						t.Errorf("neighbour discovery: type %d does not pass", kind)
					}
				}
			}
			// Everything was counted, in the right place.
			st, err := f.Read()
			must(t, err)
			if c := st.Virtuals[0]; c.Own.Packets == 0 || c.Foreign.Packets == 0 || c.Own.Bytes < 28*c.Own.Packets {
				t.Errorf("counters: %+v", c)
			}
			if n := w.passed(); !is4 && st.Virtuals[0].Own.Packets != n-5 || is4 && st.Virtuals[0].Own.Packets != n {
				t.Errorf("%d packets passed, %d were counted as own", n, st.Virtuals[0].Own.Packets)
			}
		})
	}
}

// quoted is how much of a packet an error must quote: the header and 8 bytes (RFC 792).
func (w *world) quoted(is4 bool) int {
	if is4 {
		return 28
	}
	return 48
}

// TestFragments sends datagrams in two parts: both follow the ports, which only the first one has.
func TestFragments(t *testing.T) {
	w := newWorld(t)
	f, owned := opened(t, testConfig(), rand.New(rand.NewPCG(3, 4)))
	rng := rand.New(rand.NewPCG(5, 6))
	sock := w.raw(true, unix.IPPROTO_UDP)
	buf := make([]byte, 65536)
	passed := 0
	for i := range 100 {
		fl := tuple{randomSource(rng, true), netip.AddrPortFrom(vip4, 80)}
		p := datagram(fl, make([]byte, 32)...)
		first, second := append([]byte{}, p[:20+24]...), append(append([]byte{}, p[:20]...), p[20+24:]...)
		for j, part := range [][]byte{first, second} {
			binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
			binary.BigEndian.PutUint16(part[4:], uint16(i))
			binary.BigEndian.PutUint16(part[6:], []uint16{0x2000, 24 / 8}[j]) // more fragments; offset in units of 8 bytes
			binary.BigEndian.PutUint16(part[10:], 0)
			binary.BigEndian.PutUint16(part[10:], ^sum(part[:20]))
			w.write(w.out, part)
		}
		b, _ := f.Bucket(udp, fl.src, fl.dst)
		got := next(t, sock, true, buf)
		if want := has(owned, b); want != (len(got) == len(p)-20) {
			t.Fatalf("bucket %d, owned %v: %d bytes of %d", b, want, len(got), len(p)-20)
		}
		if got != nil {
			passed++
		}
	}
	if passed == 0 || passed == 100 {
		t.Errorf("%d of 100 passed: this proves nothing", passed)
	}
}

// TestClosed shows that a filter lets nothing pass that has no lease, owns nothing, or whose address is closed; and leaves everything else alone.
func TestClosed(t *testing.T) {
	w := newWorld(t)
	cfg := testConfig()
	cfg.Virtuals = append(cfg.Virtuals, Virtual{Address: netip.MustParseAddr("192.0.2.9"), Sense: flow.SenseOf(flow.SrcPort)})
	packets := map[string][]byte{
		"IPv4":           datagram(flowOf("11.0.0.1:1000", "192.0.2.1:80")),
		"IPv6":           datagram(flowOf("[2600::1]:1000", "[2001:db8::1]:80")),
		"echo":           icmp(netip.MustParseAddr("11.0.0.1"), vip4, 8, []byte{1, 2, 3, 4}),
		"closed address": datagram(flowOf("11.0.0.1:1000", "192.0.2.9:80")),
		"other address":  datagram(flowOf("11.0.0.1:1000", "192.0.2.77:80")),
		"other, IPv6":    datagram(flowOf("[2600::1]:1000", "[2001:db8::77]:80")),
	}
	expect := func(when string, pass ...string) {
		t.Helper()
		want := map[string]bool{"other address": true, "other, IPv6": true}
		for _, name := range pass {
			want[name] = true
		}
		for name, pkt := range packets {
			if got := w.passes(w.out, pkt); got != want[name] {
				t.Errorf("%s: %s: passes %v", when, name, got)
			}
		}
	}
	everything := buckets(cfg.Function.Buckets, all)
	open := []string{"IPv4", "IPv6", "echo"}
	f := mustOpen(t, cfg)
	expect("at first")
	must(t, f.Grant(lasts(time.Minute)))
	expect("with a lease, nothing owned")
	must(t, f.CloseShare())
	must(t, f.Apply(everything))
	expect("everything owned, no lease")
	must(t, f.Grant(lasts(time.Minute)))
	expect("everything owned, with a lease", open...)
	must(t, f.CloseShare())
	expect("closed again")
	must(t, f.Apply(everything))
	must(t, f.Grant(lasts(time.Minute)))
	expect("open again", open...)

	// This host's own packets: over loopback to the address, and out.
	conn, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(conn) }()
	must(t, f.CloseShare())
	sock := w.raw(true, unix.IPPROTO_UDP)
	must(t, unix.Sendto(conn, []byte("hello"), 0, &unix.SockaddrInet4{Port: 9, Addr: vip4.As4()}))
	if next(t, sock, true, make([]byte, 2048)) == nil {
		t.Error("loopback is closed")
	}
	must(t, unix.Sendto(conn, []byte("hello"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{8, 8, 8, 8}}))
	out := make([]byte, 2048)
	_ = w.out.SetReadDeadline(time.Now().Add(time.Second))
	for {
		n, err := w.out.Read(out)
		must(t, err)
		if n == 20+8+5 && out[0] == 0x45 && out[19] == 8 {
			break
		}
	}
	must(t, f.Shutdown())
	expect("shut down")
	must(t, Remove(""))
	expect("removed", "IPv4", "IPv6", "echo", "closed address")
}

// TestLateDrop: what IPVS (which is not there) did not take of a service gets no reset from this host.
func TestLateDrop(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			w := newWorld(t)
			cfg := testConfig()
			vip, client, i := vip4, "11.0.0.1:1000", 0
			if !is4 {
				vip, client, i = vip6, "[2600::1]:1000", 1
			}
			cfg.Virtuals[i].Services = []Service{{Protocol: tcp, Port: 80}, {Protocol: tcp, Port: 81, Local: true}, {Protocol: udp}}
			f := mustOpen(t, cfg)
			must(t, f.Apply(buckets(cfg.Function.Buckets, all)))
			must(t, f.Grant(lasts(time.Minute)))
			resets := func(port uint16) bool {
				w.write(w.out, syn(tuple{netip.MustParseAddrPort(client), netip.AddrPortFrom(vip, port)}))
				buf := make([]byte, 2048)
				_ = w.out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				for {
					n, err := w.out.Read(buf)
					if err != nil {
						return false
					}
					l4, proto := 20, buf[9]
					if buf[0]>>4 == 6 {
						l4, proto = 40, buf[6]
					}
					if n >= l4+20 && proto == tcp && binary.BigEndian.Uint16(buf[l4:]) == port && buf[l4+13]&0x04 != 0 {
						return true
					}
				}
			}
			for port, want := range map[uint16]bool{80: false, 81: true, 82: true} {
				if got := resets(port); got != want {
					t.Errorf("port %d: reset %v, want %v", port, got, want)
				}
			}
			sock := w.raw(is4, unix.IPPROTO_UDP)
			w.write(w.out, datagram(tuple{netip.MustParseAddrPort(client), netip.AddrPortFrom(vip, 53)}))
			if next(t, sock, is4, make([]byte, 2048)) != nil {
				t.Error("a datagram to a service of all ports arrives")
			}
			st, err := f.Read()
			must(t, err)
			if got := st.Virtuals[i]; got.Late.Packets != 2 || got.Own.Packets != 4 {
				t.Errorf("counters: %+v", got)
			}
		})
	}
}

// TestInside sends what LVS-NAT real servers send: replies and errors pass at the owner of the client, new connections at the owner of the server's end.
func TestInside(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			w := newWorld(t)
			sysctl(t, "net/ipv4/ip_forward", "1")
			sysctl(t, "net/ipv6/conf/all/forwarding", "1")
			cfg := testConfig()
			cfg.Inside = "in0"
			vip, server, other, own, broadcast, mask := vip4, "10.1.0.11", "10.2.0.11", "169.254.82.1", "255.255.255.255", uint8(16)
			cfg.Masquerade = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
			if !is4 {
				vip, server, other, own, broadcast, mask = vip6, "fd00:1::11", "fd00:2::11", "2001:db8::99", "ff02::1", 48
				cfg.Masquerade = []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")}
			}
			real := netip.MustParseAddr(server)
			cfg.Virtuals = []Virtual{{Address: vip, Sense: flow.SenseOf(flow.SrcAddr, flow.SrcPort), Open: true, Services: []Service{
				{Protocol: tcp, Port: 80, NAT: true, Destinations: []netip.AddrPort{netip.AddrPortFrom(real, 8080)}},
				{Protocol: tcp, Port: 443, NAT: true, BySource: true, PersistMask: mask, Destinations: []netip.AddrPort{netip.AddrPortFrom(real, 8443)}},
				{Protocol: udp, Port: 0, NAT: true, BySource: true, Destinations: []netip.AddrPort{netip.AddrPortFrom(real, 0)}},
			}}}
			f, owned := opened(t, cfg, rand.New(rand.NewPCG(3, 4)))
			v := f.cfg.Virtuals[0]
			rng := rand.New(rand.NewPCG(9, 9))
			servers := f.cfg.Function
			servers.Sense = flow.SenseOf(flow.SrcAddr, flow.SrcPort)
			hosts := servers
			hosts.Sense = flow.SenseOf(flow.SrcAddr)
			kinds := map[string]func(c netip.AddrPort) (pkt []byte, fn flow.Function, src netip.AddrPort){
				"reply of a service": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					return syn(tuple{netip.AddrPortFrom(real, 8080), c}), f.cfg.FunctionOf(v, tcp, 80), c
				},
				"reply of a persistent service": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					return syn(tuple{netip.AddrPortFrom(real, 8443), c}), f.cfg.FunctionOf(v, tcp, 443), c
				},
				"reply of a service of all ports": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					return datagram(tuple{netip.AddrPortFrom(real, 777), c}), f.cfg.FunctionOf(v, udp, 777), c
				},
				"error about a packet to a service": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					about := syn(tuple{c, netip.AddrPortFrom(real, 8080)})
					return unreachable(real, about), f.cfg.FunctionOf(v, tcp, 80), c
				},
				"connection of a server": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					from := netip.AddrPortFrom(real, c.Port()|0x8000)
					return syn(tuple{from, netip.AddrPortFrom(c.Addr(), 25)}), servers, from
				},
				"ping of a server": func(c netip.AddrPort) ([]byte, flow.Function, netip.AddrPort) {
					b := real.AsSlice()
					b[len(b)-1] = byte(c.Port())
					from, _ := netip.AddrFromSlice(b)
					return icmp(from, c.Addr(), map[bool]byte{true: 8, false: 128}[is4], make([]byte, 4)), hosts, netip.AddrPortFrom(from, 0)
				},
			}
			for name, make := range kinds {
				passed := 0
				for range 60 {
					pkt, fn, src := make(randomSource(rng, is4))
					want := has(owned, fn.Bucket(src, netip.AddrPortFrom(vip, 0)))
					if want {
						passed++
					}
					if got := w.passes(w.inside, pkt); got != want {
						t.Errorf("%s: %v: passes %v, want %v", name, src, got, want)
						break
					}
				}
				if passed == 0 || passed == 60 {
					t.Errorf("%s: %d are to pass: this proves nothing", name, passed)
				}
			}
			// What is for this host, for everybody, or of other networks, is not looked at.
			must(t, f.CloseShare())
			client := randomSource(rng, is4)
			for name, pkt := range map[string][]byte{
				"to this host": syn(tuple{netip.AddrPortFrom(real, 8080), netip.AddrPortFrom(netip.MustParseAddr(own), 5555)}),
				"to everybody": datagram(tuple{netip.AddrPortFrom(real, 68), netip.AddrPortFrom(netip.MustParseAddr(broadcast), 67)}),
				"other server": syn(tuple{netip.AddrPortFrom(netip.MustParseAddr(other), 8080), client}),
			} {
				if !w.passes(w.inside, pkt) {
					t.Errorf("%s: does not pass", name)
				}
			}
			if w.passes(w.inside, syn(tuple{netip.AddrPortFrom(real, 8080), client})) {
				t.Error("a reply passes without a lease")
			}
			st, err := f.Read()
			must(t, err)
			if st.Inside.Packets == 0 || st.InsideForeign.Packets == 0 {
				t.Errorf("counters: %+v", st)
			}
		})
	}
}
