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

// perSense is how many addresses each sense has.
const perSense = 16

// senseConfig has addresses of a family for each sense; every second one has a mask where the source address counts.
func senseConfig(rng *rand.Rand, is4 bool) Config {
	cfg := testConfig()
	cfg.Virtuals = nil
	for s := flow.Sense(1); s < 16; s++ {
		for i := range perSense {
			v := Virtual{Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", perSense*int(s)+i)), Sense: s, Open: true}
			bits := 31
			if !is4 {
				v.Address, bits = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", perSense*int(s)+i)), 127
			}
			if i%2 == 1 && s.Has(flow.SrcAddr) {
				v.Mask = uint8(1 + rng.IntN(bits))
			}
			cfg.Virtuals = append(cfg.Virtuals, v)
		}
	}
	return cfg
}

// With a random half of the buckets owned, the kernel lets exactly those of 100,000 random flows of each sense pass whose predicted bucket is in that half: a bucket that was
// predicted wrongly would be found in every second case.
func TestPrediction(t *testing.T) {
	const flows = 100_000
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			w := newWorld(t)
			rng := rand.New(rand.NewPCG(7, 8))
			cfg := senseConfig(rng, is4)
			f := mustOpen(t, cfg)
			owned := randomHalf(rng, cfg.Function.Buckets)
			must(t, f.Apply(owned))
			must(t, f.Grant(lasts(time.Minute)))
			sock := w.raw(is4, unix.IPPROTO_UDP)
			for s := flow.Sense(1); s < 16; s++ {
				addresses := cfg.Virtuals[perSense*(s-1) : perSense*s]
				functions := make([]flow.Function, len(addresses))
				for i, v := range addresses {
					functions[i] = f.cfg.FunctionOf(v, udp, 0)
				}
				w.predict(sock, is4, s, flows, func(i uint32) (tuple, bool) {
					src, v := randomSource(rng, is4), addresses[i%perSense]
					fl := tuple{src, netip.AddrPortFrom(v.Address, uint16(rng.Uint32()))}
					return fl, has(owned, functions[i%perSense].Bucket(fl.src, fl.dst))
				})
			}
		})
	}
}

// predict sends flows and compares which of them arrive.
func (w *world) predict(sock int, is4 bool, s flow.Sense, flows uint32, draw func(i uint32) (tuple, bool)) {
	w.t.Helper()
	buf := make([]byte, 2048)
	wrong, arrived := 0, 0
	first, _ := draw(0)
	pkt := datagram(first, 0, 0, 0, 0)
	for i := range flows {
		fl, want := draw(i)
		rewrite(pkt, fl, i)
		w.write(w.out, pkt)
		got := next(w.t, sock, is4, buf)
		for ; got != nil && binary.BigEndian.Uint32(got[8:]) != i; got = next(w.t, sock, is4, buf) {
			w.t.Errorf("flow %d came late", binary.BigEndian.Uint32(got[8:]))
		}
		if got != nil {
			arrived++
		}
		if (got != nil) != want {
			if wrong++; wrong <= 3 {
				w.t.Errorf("%v: %v to %v: arrived %v, predicted %v", s, fl.src, fl.dst, got != nil, want)
			}
		}
	}
	if wrong > 0 {
		w.t.Errorf("%v: %d flows of %d went wrong", s, wrong, flows)
	}
	w.t.Logf("%v: %d of %d flows arrived", s, arrived, flows)
}

// rewrite makes another datagram out of one, which is faster than to make one.
func rewrite(pkt []byte, fl tuple, number uint32) {
	addresses, ports := 8, 40
	if fl.src.Addr().Is4() {
		addresses, ports = 12, 20
	}
	copy(pkt[addresses:], fl.src.Addr().AsSlice())
	copy(pkt[(addresses+ports)/2:], fl.dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(pkt[ports:], fl.src.Port())
	binary.BigEndian.PutUint16(pkt[ports+2:], fl.dst.Port())
	binary.BigEndian.PutUint32(pkt[ports+8:], number)
	if ports == 20 {
		binary.BigEndian.PutUint16(pkt[10:], 0)
		binary.BigEndian.PutUint16(pkt[10:], ^sum(pkt[:20]))
	}
}
