package table

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// The sums were computed by another program (Python) from the description in digest: the protocol depends on them.
func TestDigestIsFixed(t *testing.T) {
	full4 := &ipvssync.Record{
		Protocol: 6, State: 1, Flags: 0x103, Fwmark: 7, Timeout: 900,
		Client:  netip.MustParseAddrPort("198.51.100.23:40000"),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"),
		Real:    netip.MustParseAddrPort("10.9.0.7:8080"),
	}
	full6 := &ipvssync.Record{
		Protocol: 17, Flags: 0x1000, Timeout: 300, State: 0x1234,
		Client:  netip.MustParseAddrPort("[2001:db8::17]:5060"),
		Virtual: netip.MustParseAddrPort("[2001:db8::1]:5060"),
		Real:    netip.MustParseAddrPort("[fd00::7]:5061"),
		HasSeq:  true, In: ipvssync.Seq{Init: 1, Delta: 2, PrevDelta: 3}, Out: ipvssync.Seq{Init: 4, Delta: 5, PrevDelta: 6},
		PEName: []byte("sip"), PEData: []byte("call-id@host"),
	}
	for _, tc := range []struct {
		name string
		r    *ipvssync.Record
		sum  uint64
	}{
		{"IPv4", full4, 0x312f693e2319cd97},
		{"IPv6 with extras", full6, 0xc4e2298a35df306f},
	} {
		tab := New(t0)
		tab.Put(t0, tc.r, peer.IDOf("director1"), Stamp{mirror.NewGrant(3, 4), 1_700_000_000_000_000}, 0)
		sum, count := tab.Digest(BucketOf(tc.r), 1_700_000_000_000_000)
		if sum != tc.sum || count != 1 {
			t.Errorf("%s: digest %#016x of %d entries; want %#016x of 1", tc.name, sum, count, tc.sum)
		}
	}
}

func TestDigestCounts(t *testing.T) {
	const clock, timeout = 100e6, 10
	tab, r := New(t0), tcp(1, timeout)
	tab.Put(t0, r, 1, at(clock), 0)
	for _, tc := range []struct {
		cut  uint64
		want uint32
	}{{0, 0}, {clock - 1, 0}, {clock, 1}, {clock + 6e6 - 1, 1}, {clock + 6e6, 0}, {1 << 63, 0}, {^uint64(0), 0}} {
		if _, count := tab.Digest(BucketOf(r), tc.cut); count != tc.want {
			t.Errorf("cut %d counts %d, want %d", tc.cut, count, tc.want)
		}
	}
	if sum, count := tab.Digest(Buckets, clock); sum != 0 || count != 0 {
		t.Errorf("a bucket that does not exist: %#x of %d", sum, count)
	}
	tab.Bucket(t0, Buckets, func(*Entry) bool {
		t.Error("a bucket that does not exist has an entry")
		return false
	})
	for _, timeout := range []uint32{1, 4, 5} {
		if got, want := counts(7, timeout, 7), timeout == 5; got != want {
			t.Errorf("timeout %d: %v, want %v", timeout, got, want)
		}
	}
	if !counts(^uint64(0), ^uint32(0), ^uint64(0)) {
		t.Error("the last clock overflows")
	}
}

// A digest in steps over the whole table is that of the bucket's list.
func TestDigestStep(t *testing.T) {
	tab := New(t0)
	for n := range 4000 {
		r := tcp(n, uint32(10+n%100))
		if n%3 == 0 {
			r = udp6(n, uint32(10+n%100))
		}
		r.HasSeq = n%5 == 0
		tab.Put(t0, r, peer.ID(n%4+1), at(uint64(1+n)*1e3), 0)
	}
	tab.Expire(t0.Add(30 * time.Second)) // leaves places that are unused
	const cut = 3e6
	counted := uint32(0)
	for b := range uint16(Buckets) {
		if b%16 != 0 {
			continue
		}
		var sum uint64
		var count uint32
		for c := (Cursor{}); !c.Done; {
			var s uint64
			var n uint32
			s, n, c = tab.DigestStep(c, 77, b, cut)
			sum, count = sum+s, count+n
		}
		if s, n := tab.Digest(b, cut); s != sum || n != count {
			t.Fatalf("bucket %d: %#x of %d in steps, %#x of %d at once", b, sum, count, s, n)
		}
		counted += count
	}
	if counted == 0 {
		t.Error("nothing was counted")
	}
}

// What a leap of the clock has aged counts until its own time is nearly over.
func TestDigestAfterLeap(t *testing.T) {
	const clock, leapt = 100e6, 100e6 + 3600e6
	tab, r := New(t0), tcp(1, 900)
	tab.Put(t0, r, 1, at(clock), 0)
	for _, tc := range []struct {
		sec  int
		cut  uint64
		want uint32
	}{{0, leapt, 1}, {0, clock - 1, 0}, {869, leapt, 1}, {870, leapt, 0}, {870, clock, 1}} {
		tab.Expire(t0.Add(time.Duration(tc.sec) * time.Second))
		if _, count := tab.Digest(BucketOf(r), tc.cut); count != tc.want {
			t.Errorf("after %d s cut %d counts %d, want %d", tc.sec, tc.cut, count, tc.want)
		}
	}
}

// flips returns a function for each bit of what a digest covers, which flips it.
func flips[A address](e *entry[A], x *extra, origin *peer.ID) []func() {
	var out []func()
	for i := range 8 * len(e.real) {
		for _, a := range []*A{&e.client, &e.virtual, &e.real} {
			out = append(out, func() { (*a)[i/8] ^= 1 << (i % 8) })
		}
	}
	out = flipsOf(out, &e.protocol)
	out = flipsOf(out, &e.clientPort, &e.virtualPort, &e.realPort)
	out = flipsOf(out, &e.flags, &e.fwmark, &e.timeout)
	out = flipsOf(out, (*uint64)(origin), &e.grant, &e.clock)
	if x == nil {
		return flipsOf(out, &e.state)
	}
	out = flipsOf(out, &x.state)
	out = flipsOf(out, &x.in.Init, &x.in.Delta, &x.in.PrevDelta, &x.out.Init, &x.out.Delta, &x.out.PrevDelta)
	for _, s := range []*string{&x.peName, &x.peData} {
		for i := range 8 * len(*s) {
			out = append(out, func() {
				b := []byte(*s)
				b[i/8] ^= 1 << (i % 8)
				*s = string(b)
			})
		}
	}
	return out
}

func flipsOf[T uint8 | uint16 | uint32 | uint64](out []func(), fields ...*T) []func() {
	for _, f := range fields {
		var zero T
		for bit := range bits.Len64(uint64(^zero)) {
			out = append(out, func() { *f ^= 1 << bit })
		}
	}
	return out
}

// avalanche flips each bit of random entries and counts which bits of the digest follow.
func avalanche[A address](t *testing.T, extras bool) {
	const rounds = 600
	rng := rand.New(rand.NewPCG(1, 2))
	e, x, origin := &entry[A]{}, (*extra)(nil), peer.ID(0)
	if extras {
		x = &extra{seq: true, peName: "sip", peData: "call-id@host"}
	}
	all := flips(e, x, &origin)
	follow := make([][64]int, len(all))
	for range rounds {
		for _, flip := range all {
			if rng.IntN(2) == 0 {
				flip()
			}
		}
		plain := e.digest(origin, x)
		for i, flip := range all {
			flip()
			for d := plain ^ e.digest(origin, x); d != 0; d &= d - 1 {
				follow[i][bits.TrailingZeros64(d)]++
			}
			flip()
		}
	}
	// Each of about 100,000 counts has a standard deviation of 12; the sums over 64 bits of one of 98.
	for i := range follow {
		sum := 0
		for bit, n := range follow[i] {
			if sum += n; n < rounds/2-85 || n > rounds/2+85 {
				t.Errorf("input bit %d flips bit %d of the digest in %d of %d cases", i, bit, n, rounds)
			}
		}
		if mean := float64(sum) / rounds; mean < 31 || mean > 33 {
			t.Errorf("input bit %d flips %.1f bits of the digest", i, mean)
		}
	}
}

func TestDigestAvalanche(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { avalanche[[4]byte](t, false) })
	t.Run("IPv6", func(t *testing.T) { avalanche[[16]byte](t, false) })
	t.Run("extras", func(t *testing.T) { avalanche[[4]byte](t, true) })
}

// Where one text ends and the next begins, and what is absent, makes a difference.
func TestDigestExtras(t *testing.T) {
	seen := map[uint64]int{}
	e := &entry[[4]byte]{clock: 1}
	for i, x := range []*extra{
		nil, {seq: true}, {peName: "ab"}, {peName: "a", peData: "b"}, {peData: "ab"}, {peData: "ab\x00"}, {peName: "abcdefgh", peData: "i"},
		{peName: "abcdefghi"}, {seq: true, in: ipvssync.Seq{Init: 1}}, {seq: true, out: ipvssync.Seq{Init: 1}}, {state: 0x100},
	} {
		sum := e.digest(1, x)
		if j, ok := seen[sum]; ok {
			t.Errorf("extras %d and %d have the same digest", i, j)
		}
		seen[sum] = i
	}
}
