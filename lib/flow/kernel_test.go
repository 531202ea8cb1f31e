package flow

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/lib/tun"
	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// tuple is what a packet of the test has.
type tuple struct{ src, dst netip.AddrPort }

// expression returns the function as nft reads it, for a family "ip" or "ip6".
func expression(f *Function, family string) string {
	keep, bits := int(f.Mask4), 32
	if family == "ip6" {
		keep, bits = int(f.Mask6), 128
	}
	source := family + " saddr"
	if keep < bits {
		source += " & " + net.IP(net.CIDRMask(keep, bits)).String()
	}
	text := map[Field]string{SrcAddr: source, SrcPort: "th sport", DstAddr: family + " daddr", DstPort: "th dport"}
	var fields []string
	for _, field := range f.Sense.Fields() {
		fields = append(fields, text[field])
	}
	return fmt.Sprintf("jhash %s mod %d seed %#x", strings.Join(fields, " . "), f.Buckets, f.Seed)
}

// ruleset makes the kernel note the bucket of each packet by each function in a set of its own, and drop the packet.
func ruleset(functions map[string]Function, family string) string {
	var sets, rules strings.Builder
	for name, f := range functions {
		fmt.Fprintf(&sets, "set %s { type %s_addr . inet_service . %[2]s_addr . inet_service . mark; flags dynamic; size 65535; }\n",
			name, map[string]string{"ip": "ipv4", "ip6": "ipv6"}[family])
		fmt.Fprintf(&rules, "meta mark set %s add @%s { %s saddr . udp sport . %[3]s daddr . udp dport . meta mark }\n",
			expression(&f, family), name, family)
	}
	return fmt.Sprintf("table %s test {\n%schain c {\ntype filter hook prerouting priority -300;\niifname flow0 jump noted\n}\nchain noted {\n%sdrop\n}\n}\n",
		family, &sets, &rules)
}

// noted returns what the kernel has noted in a set.
func noted(t *testing.T, family, set string) map[tuple]uint32 {
	t.Helper()
	out, err := exec.Command("nft", "-j", "list", "set", family, "test", set).Output()
	if err != nil {
		t.Fatalf("list set %s: %v", set, err)
	}
	var listing struct {
		Nftables []struct {
			Set struct {
				Elem []struct{ Concat [5]any } // address, port, address, port, bucket
			}
		}
	}
	if err := json.Unmarshal(out, &listing); err != nil {
		t.Fatalf("list of set %s: %v", set, err)
	}
	buckets := map[tuple]uint32{}
	for _, part := range listing.Nftables {
		for _, e := range part.Set.Elem {
			end := func(i int) netip.AddrPort {
				return netip.AddrPortFrom(netip.MustParseAddr(e.Concat[i].(string)), uint16(e.Concat[i+1].(float64)))
			}
			buckets[tuple{end(0), end(2)}] = uint32(e.Concat[4].(float64))
		}
	}
	return buckets
}

// packet returns a UDP datagram without data.
func packet(f tuple) []byte {
	src, dst := f.src.Addr().AsSlice(), f.dst.Addr().AsSlice()
	var p []byte
	if f.src.Addr().Is4() {
		p = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	} else {
		p = []byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}
	}
	p = append(append(p, src...), dst...)
	if f.src.Addr().Is4() {
		binary.BigEndian.PutUint16(p[10:], ^sum(p))
	}
	p = binary.BigEndian.AppendUint16(p, f.src.Port())
	p = binary.BigEndian.AppendUint16(p, f.dst.Port())
	p = append(p, 0, 8, 0, 0)
	// The pseudo header of RFC 768 and RFC 8200: addresses, protocol, length; the length and the protocol are words of their own here.
	check := ^sum(append(append(append([]byte{0, 8, 0, unix.IPPROTO_UDP}, src...), dst...), p[len(p)-8:]...))
	binary.BigEndian.PutUint16(p[len(p)-2:], max(check, 1)) // 0 would be none
	return p
}

// sum is the ones' complement sum of 16-bit words (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// randomTuple returns what a packet may have on any interface.
func randomTuple(rng *rand.Rand, family string) tuple {
	addr := func() netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], rng.Uint64())
		binary.BigEndian.PutUint64(b[8:], rng.Uint64())
		if family == "ip" {
			b[0] = 1 + b[0]%126 // no loopback, no multicast
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		b[0] = 0x20 | b[0]&0x1f // 2000::/3
		return netip.AddrFrom16(b)
	}
	port := func() uint16 { return uint16(rng.Uint32()) }
	return tuple{netip.AddrPortFrom(addr(), port()), netip.AddrPortFrom(addr(), port())}
}

// The kernel puts random packets into the very buckets that Bucket tells, for every sense, with and without masks.
func TestKernel(t *testing.T) {
	const packets = 2000
	for _, family := range []string{"ip", "ip6"} {
		t.Run(family, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(5, 6))
			functions := map[string]Function{"default": Default, "single": {allFields, 1, 1, 32, 128}, "most": {SenseOf(SrcAddr), MaxBuckets, 1<<32 - 1, 32, 128}}
			for s := Sense(1); s <= allFields; s++ {
				f := Function{Sense: s, Buckets: 4096, Seed: max(rng.Uint32(), 1), Mask4: 32, Mask6: 128}
				functions[fmt.Sprintf("plain%d", s)] = f
				if s.Has(SrcAddr) {
					f.Mask4, f.Mask6 = 24, 64
					functions[fmt.Sprintf("masked%d", s)] = f
					f.Mask4, f.Mask6, f.Buckets = uint8(1+rng.IntN(31)), uint8(1+rng.IntN(127)), 1+rng.Uint32N(MaxBuckets)
					functions[fmt.Sprintf("odd%d", s)] = f
				}
			}
			dev := newKernel(t, ruleset(functions, family))
			sent := map[tuple]bool{}
			for len(sent) < packets {
				f := randomTuple(rng, family)
				sent[f] = true
				if _, err := dev.Write(packet(f)); err != nil {
					t.Fatal(err)
				}
			}
			for name, f := range functions {
				compare(t, family, name, &f, sent)
			}
		})
	}
}

// newKernel makes a namespace with a device and a ruleset.
func newKernel(t *testing.T, rules string) *tun.Device {
	t.Helper()
	nstest.New(t)
	dev, err := tun.Open(tun.Config{Name: "flow0", Local: netip.MustParseAddr("169.254.81.1"), Peer: netip.MustParseAddr("169.254.81.2")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Remove() })
	// A tap has no use for IPv6, this test has.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/flow0/disable_ipv6", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return dev
}

// compare compares what the kernel notes with what the function tells.
func compare(t *testing.T, family, set string, f *Function, sent map[tuple]bool) {
	t.Helper()
	got := noted(t, family, set)
	for end := time.Now().Add(5 * time.Second); len(got) < len(sent) && time.Now().Before(end); got = noted(t, family, set) {
		time.Sleep(10 * time.Millisecond)
	}
	if len(got) != len(sent) {
		t.Fatalf("%s: the kernel noted %d packets of %d", expression(f, family), len(got), len(sent))
	}
	wrong := 0
	for fl := range sent {
		bucket, ok := got[fl]
		if want := f.Bucket(fl.src, fl.dst); !ok || bucket != want {
			if wrong++; wrong <= 3 {
				t.Errorf("%s: %v to %v is in bucket %d (noted %v), predicted %d", expression(f, family), fl.src, fl.dst, bucket, ok, want)
			}
		}
	}
	if wrong > 3 {
		t.Errorf("%s: %d packets of %d are elsewhere than predicted", expression(f, family), wrong, len(sent))
	}
}
