package segment

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var group = netip.MustParseAddrPort("224.0.0.81:8848")

// hub makes a segment with three ports, x0 in each of three namespaces, with 192.0.2.1 to .3.
func hub(tb testing.TB, cfg Config) (*Segment, []*nstest.NS) {
	tb.Helper()
	cfg.Group = group
	nss := []*nstest.NS{nstest.New(tb), nstest.Other(tb), nstest.Other(tb)}
	s := New(tb, cfg)
	for i, ns := range nss {
		s.Attach(ns, "x0", fmt.Sprintf("192.0.2.%d/24", i+1))
	}
	s.Start()
	return s, nss
}

// sender opens a socket that sends to the group.
func sender(tb testing.TB, ns *nstest.NS) net.Conn {
	tb.Helper()
	var conn net.Conn
	ns.Do(tb, func() {
		c, err := net.ListenPacket("udp4", "0.0.0.0:0")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = c.Close() })
		link, err := net.InterfaceByName("x0")
		if err == nil {
			err = ipv4.NewPacketConn(c).SetMulticastInterface(link)
		}
		if err != nil {
			tb.Fatal(err)
		}
		conn = groupConn{c}
	})
	return conn
}

// groupConn writes to the group.
type groupConn struct{ net.PacketConn }

func (c groupConn) Write(b []byte) (int, error) {
	return c.WriteTo(b, net.UDPAddrFromAddrPort(group))
}
func (c groupConn) Read([]byte) (int, error) { return 0, io.EOF }
func (c groupConn) RemoteAddr() net.Addr     { return net.UDPAddrFromAddrPort(group) }

// receiver opens a socket that is a member of the group.
func receiver(tb testing.TB, ns *nstest.NS) *net.UDPConn {
	tb.Helper()
	var conn *net.UDPConn
	ns.Do(tb, func() {
		link, err := net.InterfaceByName("x0")
		if err != nil {
			tb.Fatal(err)
		}
		if conn, err = net.ListenMulticastUDP("udp4", link, net.UDPAddrFromAddrPort(group)); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetReadBuffer(8 << 20); err != nil {
			tb.Fatal(err)
		}
	})
	return conn
}

// heard returns the numbers of the datagrams that came, until nothing comes for a while.
func heard(tb testing.TB, c *net.UDPConn) []uint32 {
	tb.Helper()
	var out []uint32
	buf := make([]byte, 2000)
	for {
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			tb.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			return out
		}
		if n != 100 {
			tb.Fatalf("a datagram of %d bytes", n)
		}
		out = append(out, binary.BigEndian.Uint32(buf))
	}
}

// exchange sends numbered datagrams from the first namespace and returns what the others heard.
func exchange(t *testing.T, cfg Config, bad Impairment, count int) (Counts, [2][]uint32) {
	t.Helper()
	s, nss := hub(t, cfg)
	s.Impair(bad)
	to, from := sender(t, nss[0]), []*net.UDPConn{receiver(t, nss[1]), receiver(t, nss[2])}
	buf := make([]byte, 100)
	for i := range count {
		binary.BigEndian.PutUint32(buf, uint32(i))
		if _, err := to.Write(buf); err != nil {
			t.Fatal(err)
		}
		if i%64 == 63 {
			time.Sleep(time.Millisecond)
		}
	}
	var out [2][]uint32
	for i, c := range from {
		out[i] = heard(t, c)
	}
	return s.Counts(), out
}

func TestHarmless(t *testing.T) {
	const count = 3000
	c, heard := exchange(t, Config{Seed: 1}, Impairment{}, count)
	for i, got := range heard {
		if len(got) != count || !slices.IsSorted(got) {
			t.Errorf("receiver %d: %d of %d, in order: %v", i, len(got), count, slices.IsSorted(got))
		}
	}
	if c.Lost != 0 || c.Doubled != 0 || c.Delayed != 0 || c.Overflow != 0 || c.Copies != 2*count {
		t.Errorf("%+v", c)
	}
}

// Each receiver loses by itself; what is lost follows from the seed; the counts agree with what is heard.
func TestImpaired(t *testing.T) {
	const count = 5000
	bad := Impairment{Loss: 0.2, Duplicate: 0.1, Reorder: 0.3, Earliest: time.Millisecond, Latest: 20 * time.Millisecond}
	run := func(seed uint64) (lost [2][]uint32) {
		nstest.New(t) // back to the namespace of before at the end of the test
		c, heard := exchange(t, Config{Seed: seed}, bad, count)
		twice, overtaken, all := 0, 0, 0
		for i, got := range heard {
			times := make([]int, count)
			newest := uint32(0)
			for _, n := range got {
				times[n]++
				if n < newest {
					overtaken++
				}
				newest = max(newest, n)
			}
			for n, k := range times {
				switch k {
				case 0:
					lost[i] = append(lost[i], uint32(n))
				case 2:
					twice++
				}
			}
			all += len(got)
		}
		if c.Copies != 2*count || int(c.Lost) != len(lost[0])+len(lost[1]) || int(c.Doubled) != twice || c.Overflow != 0 || all != 2*count-int(c.Lost)+twice {
			t.Errorf("%+v, but %d and %d of %d lost, %d doubled, %d heard", c, len(lost[0]), len(lost[1]), count, twice, all)
		}
		near := func(what string, got int, of, want float64) {
			if part := float64(got) / of; math.Abs(part-want) > 0.02 {
				t.Errorf("%s: %d of %.0f, want %.2f", what, got, of, want)
			}
		}
		near("lost", int(c.Lost), 2*count, bad.Loss)
		near("doubled", twice, 2*count, bad.Duplicate*(1-bad.Loss))
		near("delayed", int(c.Delayed), float64(all), bad.Reorder)
		if overtaken < all/10 {
			t.Errorf("only %d of %d overtaken", overtaken, all)
		}
		return lost
	}
	one, again, other := run(7), run(7), run(8)
	if !slices.Equal(one[0], again[0]) || !slices.Equal(one[1], again[1]) {
		t.Error("the same seed loses other frames")
	}
	if slices.Equal(one[0], other[0]) || slices.Equal(one[0], one[1]) {
		t.Error("another seed, or another receiver, loses the same frames")
	}
}

// TCP passes a segment that loses all datagrams, or suffers too if asked.
func TestTCP(t *testing.T) {
	for name, suffers := range map[string]bool{"spared": false, "suffers": true} {
		t.Run(name, func(t *testing.T) {
			s, nss := hub(t, Config{Seed: 3, TCP: suffers})
			s.Impair(Impairment{Loss: 0.02})
			const size = 1 << 20
			var l net.Listener
			nss[1].Do(t, func() {
				var err error
				if l, err = net.Listen("tcp4", "192.0.2.2:7777"); err != nil {
					t.Fatal(err)
				}
			})
			defer func() { _ = l.Close() }()
			got := make(chan int64, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					got <- -1
					return
				}
				n, _ := io.Copy(io.Discard, c)
				_ = c.Close()
				got <- n
			}()
			var c net.Conn
			nss[0].Do(t, func() {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				var err error
				if c, err = new(net.Dialer).DialContext(ctx, "tcp4", "192.0.2.2:7777"); err != nil {
					t.Fatal(err)
				}
			})
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			if n := <-got; n != size {
				t.Errorf("%d of %d bytes", n, size)
			}
			if c := s.Counts(); suffers != (c.Lost > 0) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// BenchmarkSegment carries frames of 214 bytes from one port to two others, all of them through the impairment.
func BenchmarkSegment(b *testing.B) {
	s, nss := hub(b, Config{Seed: 1})
	s.Impair(Impairment{Loss: 0.05, Duplicate: 0.01, Reorder: 0.05, Earliest: time.Millisecond, Latest: 20 * time.Millisecond})
	to := sender(b, nss[0])
	buf, n := make([]byte, 172), uint64(0)
	for b.Loop() {
		if _, err := to.Write(buf); err != nil {
			b.Fatal(err)
		}
		n++
		for n > s.frames.Load()+5000 {
			time.Sleep(10 * time.Microsecond)
		}
	}
	for s.frames.Load() < n && b.Elapsed() < time.Minute {
		time.Sleep(10 * time.Microsecond)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "frames/s")
	b.ReportMetric(0, "ns/op")
	if c := s.Counts(); c.Overflow > 0 {
		b.Errorf("%+v", c)
	}
}
