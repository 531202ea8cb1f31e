package flow

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// Reference values of lookup3.c (driver5, Bob Jenkins 2006), whose hashlittle the kernel's jhash is on a little-endian machine. Those for the
// others are by another program (Python).
func TestJhash(t *testing.T) {
	if got := jhash(nil, 0); got != 0xdeadbeef {
		t.Errorf("nothing: %#x", got)
	}
	const text = "Four score and seven years ago"
	seeds := []uint32{0x17770551, 0xcd628161}
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		seeds = []uint32{0x65872663, 0xfb244b7f}
	}
	for seed, want := range seeds {
		if got := jhash([]byte(text), uint32(seed)); got != want {
			t.Errorf("seed %d: %#x, want %#x", seed, got, want)
		}
	}
}

// Default is part of the protocol between directors: an IPv4 flow's bucket is the same on every machine and for ever.
func TestDefault(t *testing.T) {
	if err := Default.Check(); err != nil {
		t.Error(err)
	}
	dst := netip.MustParseAddrPort("192.0.2.1:80")
	for src, want := range map[string]uint32{"198.51.100.23:40000": 2666, "10.0.0.1:0": 1318, "255.255.255.255:65535": 3701} {
		if got := Default.Bucket(netip.MustParseAddrPort(src), dst); got != want {
			t.Errorf("%s is in bucket %d, want %d", src, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*Function){
		"no field":               func(f *Function) { f.Sense = 0 },
		"unknown field":          func(f *Function) { f.Sense = 1 << 4 },
		"no bucket":              func(f *Function) { f.Buckets = 0 },
		"too many buckets":       func(f *Function) { f.Buckets = 1<<16 + 1 },
		"seed 0":                 func(f *Function) { f.Seed = 0 },
		"IPv4 mask missing":      func(f *Function) { f.Mask4 = 0 },
		"IPv4 mask of 33 bits":   func(f *Function) { f.Mask4 = 33 },
		"IPv6 mask missing":      func(f *Function) { f.Mask6 = 0 },
		"IPv6 mask of 129 bits":  func(f *Function) { f.Mask6 = 129 },
		"as the zero value is":   func(f *Function) { *f = Function{} },
		"all fields and unknown": func(f *Function) { f.Sense = 0xff },
	} {
		f := Default
		if spoil(&f); f.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSense(t *testing.T) {
	for in, want := range map[string]string{
		"src-addr": "src-addr", "dst-port": "dst-port", "src-addr,src-port": "src-addr,src-port", "dst-port,dst-addr,src-port,src-addr": "src-addr,src-port,dst-addr,dst-port",
	} {
		s, err := ParseSense(in)
		if err != nil || s.String() != want {
			t.Errorf("%q: %s, %v; want %s", in, s, err, want)
		}
		if again := SenseOf(s.Fields()...); again != s {
			t.Errorf("%q: its fields make %s", in, again)
		}
	}
	for _, in := range []string{"", ",", "src-addr,", "src", "src-addr,src-addr", "src-addr src-port", "SRC-ADDR"} {
		if s, err := ParseSense(in); err == nil {
			t.Errorf("%q: %s", in, s)
		}
	}
	if got := Field(9).String(); got != "field 9" {
		t.Errorf("unknown field: %s", got)
	}
}

func drawFlow(t *rapid.T) (src, dst netip.AddrPort) {
	port := rapid.Uint16()
	if rapid.Bool().Draw(t, "IPv6") {
		draw := func(name string) netip.Addr {
			return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
		}
		return netip.AddrPortFrom(draw("src"), port.Draw(t, "sport")), netip.AddrPortFrom(draw("dst"), port.Draw(t, "dport"))
	}
	draw := func(name string) netip.Addr {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	return netip.AddrPortFrom(draw("src"), port.Draw(t, "sport")), netip.AddrPortFrom(draw("dst"), port.Draw(t, "dport"))
}

func drawFunction(t *rapid.T) Function {
	return Function{
		Sense: Sense(rapid.Uint8Range(1, uint8(allFields)).Draw(t, "sense")), Buckets: rapid.Uint32Range(1, MaxBuckets).Draw(t, "buckets"),
		Seed: rapid.Uint32Min(1).Draw(t, "seed"), Mask4: rapid.Uint8Range(1, 32).Draw(t, "mask4"), Mask6: rapid.Uint8Range(1, 128).Draw(t, "mask6"),
	}
}

// A bucket is one of those that there are, and depends on nothing but what the sense and the masks leave.
func TestBucketProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFunction(t)
		if err := f.Check(); err != nil {
			t.Fatal(err)
		}
		src, dst := drawFlow(t)
		want := f.Bucket(src, dst)
		if want >= f.Buckets {
			t.Fatalf("bucket %d of %d", want, f.Buckets)
		}
		keep := int(f.Mask6)
		if src.Addr().Is4() {
			keep = int(f.Mask4)
		}
		prefix, err := src.Addr().Prefix(keep)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Bucket(netip.AddrPortFrom(prefix.Addr(), src.Port()), dst); got != want {
			t.Errorf("%v is in bucket %d, its network %v in %d", src, want, prefix, got)
		}
		other, otherDst := drawFlow(t)
		if other.Addr().Is4() != src.Addr().Is4() {
			return
		}
		if !f.Sense.Has(SrcAddr) {
			src = netip.AddrPortFrom(other.Addr(), src.Port())
		}
		if !f.Sense.Has(SrcPort) {
			src = netip.AddrPortFrom(src.Addr(), other.Port())
		}
		if !f.Sense.Has(DstAddr) {
			dst = netip.AddrPortFrom(otherDst.Addr(), dst.Port())
		}
		if !f.Sense.Has(DstPort) {
			dst = netip.AddrPortFrom(dst.Addr(), otherDst.Port())
		}
		if got := f.Bucket(src, dst); got != want {
			t.Errorf("bucket %d became %d by what is not in %s", want, got, f.Sense)
		}
	})
}

// An address that is not valid must not crash whoever asks.
func TestBucketOfNothing(t *testing.T) {
	if b := Default.Bucket(netip.AddrPort{}, netip.AddrPort{}); b >= Default.Buckets {
		t.Errorf("bucket %d", b)
	}
	mapped, plain := netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"), netip.MustParseAddrPort("192.0.2.1:80")
	if Default.Bucket(mapped, mapped) == Default.Bucket(plain, plain) {
		t.Error("an IPv4-mapped address is taken for IPv4")
	}
	zone := netip.AddrPortFrom(netip.MustParseAddr("fe80::1%eth0"), 80)
	if Default.Bucket(zone, zone) != Default.Bucket(netip.AddrPortFrom(zone.Addr().WithZone(""), 80), zone) {
		t.Error("the zone counts")
	}
}

// Buckets are filled evenly by what clients do: chi-square with 4095 degrees of freedom has a mean of 4095 and a standard deviation of 90; six
// of them are allowed to either side.
func TestUniform(t *testing.T) {
	const each = 40
	rng := rand.New(rand.NewPCG(3, 4))
	addr4 := func(n uint32) netip.Addr { return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n))) }
	addr6 := func(high, low uint64) netip.Addr {
		return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, high), low)))
	}
	for name, src := range map[string]func(i uint32) netip.AddrPort{
		"random IPv4": func(uint32) netip.AddrPort { return netip.AddrPortFrom(addr4(rng.Uint32()), uint16(rng.Uint32())) },
		"random IPv6": func(uint32) netip.AddrPort {
			return netip.AddrPortFrom(addr6(rng.Uint64(), rng.Uint64()), uint16(rng.Uint32()))
		},
		"ports of a few addresses":   func(i uint32) netip.AddrPort { return netip.AddrPortFrom(addr4(0x0a000001+i>>15), uint16(i|1<<15)) },
		"addresses behind one port":  func(i uint32) netip.AddrPort { return netip.AddrPortFrom(addr4(0x0a000000+i), 5060) },
		"networks of 64 bits":        func(i uint32) netip.AddrPort { return netip.AddrPortFrom(addr6(0x20010db8<<32|uint64(i), 1), 443) },
		"addresses of an IPv6 block": func(i uint32) netip.AddrPort { return netip.AddrPortFrom(addr6(0x20010db8<<32, uint64(i)), 443) },
	} {
		f, dst := Default, netip.MustParseAddrPort("192.0.2.1:80")
		count := make([]int, f.Buckets)
		for i := range each * f.Buckets {
			count[f.Bucket(src(i), dst)]++
		}
		chi := 0.0
		for _, n := range count {
			chi += float64(n-each) * float64(n-each) / each
		}
		if chi < 4095-6*90 || chi > 4095+6*90 {
			t.Errorf("%s: chi-square %.0f", name, chi)
		}
	}
}

func TestBucketDoesNotAllocate(t *testing.T) {
	src, dst := netip.MustParseAddrPort("[2001:db8::17]:40000"), netip.MustParseAddrPort("[2001:db8::1]:80")
	f := Function{Sense: allFields, Buckets: 4096, Seed: 1, Mask4: 24, Mask6: 64}
	if n := testing.AllocsPerRun(100, func() { f.Bucket(src, dst) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBucket(b *testing.B) {
	for name, src := range map[string]string{"IPv4": "198.51.100.23:40000", "IPv6": "[2001:db8::17]:40000"} {
		b.Run(name, func(b *testing.B) {
			src, dst := netip.MustParseAddrPort(src), netip.MustParseAddrPort("192.0.2.1:80")
			b.ReportAllocs()
			for b.Loop() {
				Default.Bucket(src, dst)
			}
		})
	}
}
