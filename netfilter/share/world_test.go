package share

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"saru/lib/tun"
	"saru/lib/tun/nstest"
)

// world is a director into which packets are written by devices "flow0" and "in0", and whose kernel tells which of them pass the filter: a table behind it
// counts them, and raw sockets get them. The kernel works on a packet within the call that writes it.
type world struct {
	t      testing.TB
	ns     *nstest.NS
	out    *tun.Device // to the clients
	inside *tun.Device // to the real servers
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ns: nstest.New(t)}
	device := func(name, local, peer string) *tun.Device {
		dev, err := tun.Open(tun.Config{Name: name, Local: netip.MustParseAddr(local), Peer: netip.MustParseAddr(peer)})
		must(t, err)
		t.Cleanup(func() { _ = dev.Remove() })
		sysctl(t, "net/ipv6/conf/"+name+"/disable_ipv6", "0") // a tap has no use for IPv6, these tests have
		sysctl(t, "net/ipv4/conf/"+name+"/rp_filter", "0")
		return dev
	}
	sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	w.out = device("flow0", "169.254.81.1", "169.254.81.2")
	w.inside = device("in0", "169.254.82.1", "169.254.82.2")
	run(t, "ip", "route", "add", "local", "192.0.2.0/24", "dev", "lo")
	run(t, "ip", "-6", "route", "add", "local", "2001:db8::/64", "dev", "lo")
	run(t, "ip", "route", "add", "default", "dev", "flow0")
	run(t, "ip", "-6", "route", "add", "default", "dev", "flow0")
	nft(t, "add table inet witness; add counter inet witness passed; add chain inet witness c { type filter hook prerouting priority -250; };"+
		`add rule inet witness c iifname { "flow0", "in0" } counter name passed`)
	return w
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func sysctl(tb testing.TB, name, value string) {
	tb.Helper()
	must(tb, os.WriteFile("/proc/sys/"+name, []byte(value), 0))
}

func (w *world) write(dev *tun.Device, pkt []byte) {
	w.t.Helper()
	if _, err := dev.Write(pkt); err != nil {
		w.t.Fatal(err)
	}
}

// passed is how many packets have passed the filter so far.
func (w *world) passed() uint64 {
	w.t.Helper()
	c, err := nftables.New()
	must(w.t, err)
	objs, err := c.GetObjects(&nftables.Table{Name: "witness", Family: nftables.TableFamilyINet})
	must(w.t, err)
	return objs[0].(*nftables.CounterObj).Packets
}

// passes says whether the filter lets a packet pass.
func (w *world) passes(dev *tun.Device, pkt []byte) bool {
	w.t.Helper()
	before := w.passed()
	w.write(dev, pkt)
	return w.passed() == before+1
}

// raw returns a socket that gets the packets of a protocol that are for this host.
func (w *world) raw(is4 bool, protocol int) int {
	w.t.Helper()
	domain := unix.AF_INET6
	if is4 {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	must(w.t, err)
	w.t.Cleanup(func() { _ = unix.Close(fd) })
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	return fd
}

// next returns the next packet of a raw socket, from the transport header on; nil: there is none.
func next(tb testing.TB, fd int, is4 bool, buf []byte) []byte {
	n, err := unix.Read(fd, buf)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	must(tb, err)
	if is4 {
		return buf[20:n]
	}
	return buf[:n]
}

// tuple is what a packet has.
type tuple struct{ src, dst netip.AddrPort }

func flowOf(src, dst string) tuple {
	return tuple{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)}
}

// ipPacket makes a packet without options.
func ipPacket(src, dst netip.Addr, protocol byte, segment []byte) []byte {
	var p []byte
	if src.Is4() {
		p = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(segment)))
	} else {
		p = []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
		binary.BigEndian.PutUint16(p[4:], uint16(len(segment)))
	}
	p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
	if src.Is4() {
		binary.BigEndian.PutUint16(p[10:], ^sum(p))
	}
	return append(p, segment...)
}

// sum is the ones' complement sum of 16-bit words (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// datagram makes a UDP packet whose checksum is wrong: raw sockets get it, and nobody answers that there is no such port.
func datagram(f tuple, data ...byte) []byte {
	s := segment(f, append([]byte{0, 0, 0x12, 0x34}, data...))
	binary.BigEndian.PutUint16(s[4:], uint16(len(s)))
	return ipPacket(f.src.Addr(), f.dst.Addr(), udp, s)
}

// segment is a header of ports and what follows it.
func segment(f tuple, rest []byte) []byte {
	s := binary.BigEndian.AppendUint16(nil, f.src.Port())
	return append(binary.BigEndian.AppendUint16(s, f.dst.Port()), rest...)
}

// syn makes a TCP packet that opens a connection.
func syn(f tuple) []byte {
	s := segment(f, []byte{0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0})
	length := binary.BigEndian.AppendUint32(nil, uint32(len(s)))
	pseudo := slices.Concat(f.src.Addr().AsSlice(), f.dst.Addr().AsSlice(), length, []byte{0, 0, 0, tcp}, s)
	binary.BigEndian.PutUint16(s[16:], ^sum(pseudo))
	return ipPacket(f.src.Addr(), f.dst.Addr(), tcp, s)
}

// icmp makes an ICMP or ICMPv6 packet with a body after its first 4 bytes.
func icmp(src, dst netip.Addr, kind byte, body []byte) []byte {
	s := append([]byte{kind, 0, 0, 0}, body...)
	if src.Is4() {
		binary.BigEndian.PutUint16(s[2:], ^sum(s))
		return ipPacket(src, dst, unix.IPPROTO_ICMP, s)
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(s)))
	binary.BigEndian.PutUint16(s[2:], ^sum(slices.Concat(src.AsSlice(), dst.AsSlice(), length, []byte{0, 0, 0, unix.IPPROTO_ICMPV6}, s)))
	return ipPacket(src, dst, unix.IPPROTO_ICMPV6, s)
}

// unreachable is an error about a packet, from a router on its way to the packet's sender.
func unreachable(router netip.Addr, about []byte) []byte {
	kind := byte(3)
	var dst netip.Addr
	if router.Is4() {
		dst, _ = netip.AddrFromSlice(about[12:16])
	} else {
		kind = 1
		dst, _ = netip.AddrFromSlice(about[8:24])
	}
	return icmp(router, dst, kind, append([]byte{0, 0, 0, 0}, about...))
}

// randomSource returns a client that may be on any interface.
func randomSource(rng *rand.Rand, is4 bool) netip.AddrPort {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], rng.Uint64())
	binary.BigEndian.PutUint64(b[8:], rng.Uint64())
	port := uint16(rng.Uint32())
	if is4 {
		b[0] = 11 + b[0]%100 // no loopback, no multicast, not 10.0.0.0/8
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), port)
	}
	b[0] = 0x26 // 2600::/8
	return netip.AddrPortFrom(netip.AddrFrom16(b), port)
}

func has(set []uint64, b uint32) bool { return set[b/64]>>(b%64)&1 != 0 }

func randomHalf(rng *rand.Rand, n uint32) []uint64 {
	return buckets(n, func(uint32) bool { return rng.Uint32()&1 == 0 })
}
