package native

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// manyClients are the addresses of TestShares' flows.
var manyClients = netip.MustParsePrefix("10.9.0.0/16")

// manyFlows lets n clients send one datagram each, from random addresses and ports, and returns who answered each: how often, and the last director.
func (f *farm) manyFlows(n int) (answers []uint8, by []int) {
	t := f.t
	t.Helper()
	ipNet := &net.IPNet{IP: manyClients.Addr().AsSlice(), Mask: net.CIDRMask(manyClients.Bits(), 32)}
	var raw int
	var replies *net.IPConn
	f.client.Do(t, func() {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		// Every address of the network is the client's.
		must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}))
		raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		must(t, err)
		replies, err = net.ListenIP("ip4:udp", &net.IPAddr{IP: net.IPv4zero})
		must(t, err)
		must(t, replies.SetReadBuffer(32<<20))
	})
	defer unix.Close(raw)
	for _, d := range f.directors {
		d.ns.Do(t, func() {
			must(t, netlink.RouteReplace(&netlink.Route{Dst: ipNet, Gw: net.IPv4(10, 1, 0, 200)}))
		})
	}
	answers, by = make([]uint8, n), make([]int, len(f.directors))
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 256)
		for {
			got, err := replies.Read(buf)
			if err != nil {
				return
			}
			b := buf[:got]
			if len(b) >= 20 && b[0]>>4 == 4 { // with its IP header
				b = b[int(b[0]&15)*4:]
			}
			if len(b) < 8+5 || binary.BigEndian.Uint16(b) != port {
				continue
			}
			id := binary.BigEndian.Uint32(b[9:])
			if int(id) < n && int(b[8]) < len(by) {
				answers[id]++
				by[b[8]]++
			}
		}
	})
	rng := rand.New(rand.NewPCG(1, 2))
	used := map[netip.AddrPort]bool{}
	to := &unix.SockaddrInet4{Addr: vip.As4()}
	begin := time.Now()
	for id := range n {
		var from netip.AddrPort
		for from = randomFlow(rng); used[from]; from = randomFlow(rng) {
		}
		used[from] = true
		must(t, unix.Sendto(raw, oneDatagram(from, uint32(id)), 0, to))
		const rate = 15_000 // a second: three directors and the hub share two cores
		if ahead := time.Duration(id)*time.Second/rate - time.Since(begin); ahead > 5*time.Millisecond {
			time.Sleep(ahead)
		}
	}
	time.Sleep(500 * time.Millisecond)
	_ = replies.Close()
	wg.Wait()
	return answers, by
}

func randomFlow(rng *rand.Rand) netip.AddrPort {
	a := manyClients.Addr().As4()
	a[2], a[3] = byte(rng.IntN(256)), byte(1+rng.IntN(250))
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1024+rng.IntN(64000)))
}

// oneDatagram is an IPv4 packet with a UDP datagram to the service; the kernel fills in the header's checksum.
func oneDatagram(from netip.AddrPort, id uint32) []byte {
	b := make([]byte, 20+8+4)
	src, dst := from.Addr().As4(), vip.As4()
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], 8+4)
	binary.BigEndian.PutUint32(b[28:], id)
	return b
}

// TestShares sends one datagram of each of 100,000 flows: each is answered exactly once, and each director answers its share.
func TestShares(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []string
	}{
		{"equal weights", []string{"100", "100", "100"}},
		{"weights 1 2 1", []string{"100", "200", "100"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := prepareFarm(t, 3)
			sum, parts := 0, make([]int, 3)
			for i, d := range f.directors {
				d.args = []string{"--weight", c.weights[i]}
				parts[i] = map[string]int{"100": 1, "200": 2}[c.weights[i]]
				sum += parts[i]
				d.start()
			}
			f.responders(nil)
			f.settled()
			const n = 100_000
			answers, by := f.manyFlows(n)
			var none, twice int
			for _, a := range answers {
				switch {
				case a == 0:
					none++
				case a > 1:
					twice++
				}
			}
			t.Logf("RESULT %d flows of one datagram, %s: answered by %v, by nobody %d, more than once %d", n, c.name, by, none, twice)
			if none+twice > 0 {
				t.Errorf("%d flows were answered by nobody, %d more than once", none, twice)
			}
			for i, got := range by {
				want := n * parts[i] / sum
				if off := 100 * float64(got-want) / float64(want); off > 3 || off < -3 {
					t.Errorf("d%d has answered %d flows, %.1f %% off its share of %d", i+1, got, off, want)
				}
			}
		})
	}
}
