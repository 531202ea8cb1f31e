package share

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/flow"
	"saru/lib/tun/nstest"
)

// TestResponders lets clients on a veth talk to UDP responders at a director: answered are exactly the flows whose buckets are owned. The responders stand for IPVS.
func TestResponders(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			nstest.New(t)
			clients := nstest.Other(t)
			const hosts, socketsPerHost = 5, 8
			var sources []string
			here, prefix, vips, any := "198.51.100.1", "198.51.100.%d/24", "192.0.2.%d", "192.0.2.0/24"
			if !is4 {
				here, prefix, vips, any = "2001:db8:1::1", "2001:db8:1::%x/64", "2001:db8::%x", "2001:db8::/64"
			}
			for i := range hosts {
				sources = append(sources, fmt.Sprintf(prefix, i+10))
			}
			nstest.Veth(t, "d0", []string{fmt.Sprintf(prefix, 1)}, clients, "c0", sources)
			clients.Do(t, func() { run(t, "ip", "route", "add", any, "via", here) })

			cfg := testConfig()
			cfg.Virtuals = nil
			rng := rand.New(rand.NewPCG(1, 2))
			var ends []netip.AddrPort
			for s := flow.Sense(1); s < 16; s++ {
				v := Virtual{Address: netip.MustParseAddr(fmt.Sprintf(vips, uint8(s))), Sense: s, Open: true}
				cfg.Virtuals = append(cfg.Virtuals, v)
				add := []string{"address", "add", netip.PrefixFrom(v.Address, v.Address.BitLen()).String(), "dev", "lo"}
				if !is4 {
					add = append(add, "nodad") // usable at once
				}
				run(t, "ip", add...)
				for range 2 {
					end := netip.AddrPortFrom(v.Address, uint16(1024+rng.IntN(60000)))
					ends = append(ends, end)
					respond(t, end)
				}
			}
			f, owned := opened(t, cfg, rng)
			var sockets []*net.UDPConn
			clients.Do(t, func() {
				for i := range hosts * socketsPerHost {
					source := netip.MustParsePrefix(sources[i%hosts]).Addr()
					c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
					must(t, err)
					t.Cleanup(func() { _ = c.Close() })
					sockets = append(sockets, c)
				}
			})
			want, got := map[string]bool{}, map[string]bool{}
			for _, c := range sockets {
				src := c.LocalAddr().(*net.UDPAddr).AddrPort()
				for _, end := range ends {
					if b, ok := f.Bucket(udp, src, end); ok && has(owned, b) {
						want[fmt.Sprint(src, " ", end)] = true
					}
					_, err := c.WriteToUDPAddrPort([]byte("who is there?"), end)
					must(t, err)
				}
			}
			for _, c := range sockets {
				src := c.LocalAddr().(*net.UDPAddr).AddrPort()
				answers := 0
				for k := range want {
					var from, to string
					if _, err := fmt.Sscan(k, &from, &to); err == nil && from == src.String() {
						answers++
					}
				}
				buf := make([]byte, 100)
				for n := 0; ; n++ {
					wait := 2 * time.Second
					if n >= answers {
						wait = 5 * time.Millisecond // one too many would be here by now
					}
					_ = c.SetReadDeadline(time.Now().Add(wait))
					_, from, err := c.ReadFromUDPAddrPort(buf)
					if err != nil {
						break
					}
					got[fmt.Sprint(src, " ", netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))] = true
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answered flows (-want +got)\n%s", diff)
			}
			total := hosts * socketsPerHost * len(ends)
			if len(want) < total/4 || len(want) > 3*total/4 {
				t.Errorf("%d of %d flows are owned: this proves little", len(want), total)
			}
			t.Logf("%d of %d flows were answered", len(got), total)
		})
	}
}

// respond answers datagrams until the test ends.
func respond(t *testing.T, at netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	must(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}
