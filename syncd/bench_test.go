package syncd

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/lib/tun"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/tap"
)

// benchConns is how many connections the benchmarks go round.
const benchConns = 100_000

// benchMessages makes messages of the kernel with each so many records of different connections.
func benchMessages(b *testing.B, each int) [][]byte {
	var out [][]byte
	for i := 0; i < benchConns; {
		var m ipvssync.Builder
		m.Reset(nil, 9, 0)
		for range each {
			r := testConn(i % benchConns)
			if err := m.Add(&r); err != nil {
				b.Fatal(err)
			}
			i++
		}
		msg, err := m.Finish()
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, msg)
	}
	return out
}

// cpu returns the processor time that the process has used.
func cpu(b *testing.B) time.Duration { return used(b, unix.RUSAGE_SELF) }

// used returns the processor time that the process (RUSAGE_SELF) or the calling thread (RUSAGE_THREAD) has used.
func used(b *testing.B, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rate reports records a second, by the clock and by processor time: the latter is what one core does, whatever the other one helps with.
func rate(b *testing.B, records int, before time.Duration) {
	b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(records)/(cpu(b)-before).Seconds(), "records/cpu-s")
	b.ReportMetric(0, "ns/op")
}

func veth(b *testing.B) *nstest.NS {
	nstest.New(b)
	other := nstest.Other(b)
	nstest.Veth(b, "a0", []string{"192.0.2.10/24"}, other, "b0", []string{"192.0.2.11/24"})
	return other
}

// BenchmarkOutMemory: from a tap in memory to signed datagrams on a link.
func BenchmarkOutMemory(b *testing.B) {
	for _, each := range []int{1, 40} {
		b.Run(fmt.Sprintf("records=%d", each), func(b *testing.B) {
			veth(b)
			a := startMemory(b, "a", "a0")
			eventually(b, "synced", synced(a))
			msgs, n, sent := benchMessages(b, each), 0, func() uint64 { return a.Status().Counters["sent_records"] }
			before, used := sent(), cpu(b)
			for b.Loop() {
				if err := a.tap.Report(msgs[n%len(msgs)]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			eventually(b, "everything is sent", func() bool { return sent()-before == uint64(n*each) })
			rate(b, n*each, used)
		})
	}
}

// BenchmarkPairMemory: from one director's tap over a link into another's, both in this process and on these cores: what one of them
// does alone is more.
func BenchmarkPairMemory(b *testing.B) {
	other := veth(b)
	a := startMemory(b, "a", "a0")
	var injected atomic.Uint64
	t := tap.NewMemory(func(msg []byte) {
		if m, err := ipvssync.Parse(msg); err == nil {
			injected.Add(uint64(m.Count))
		}
	}, nil)
	var peer *Mirrorer
	other.Do(b, func() { peer = startMirrorer(b, testGroup, t, "b", "b0") })
	eventually(b, "synced", func() bool { return a.Status().Synced && len(a.Status().Peers) == 1 && peer.Status().Synced })
	msgs, n, sent := benchMessages(b, 40), 0, uint64(0)
	before, used := injected.Load(), cpu(b)
	for b.Loop() {
		// No more on the way than the socket's buffer holds: what the segment loses is another measurement.
		for stop := time.Now().Add(time.Second); sent-(injected.Load()-before) > 50_000 && time.Now().Before(stop); {
			time.Sleep(50 * time.Microsecond)
		}
		if err := a.tap.Report(msgs[n%len(msgs)]); err != nil {
			b.Fatal(err)
		}
		sent += 40
		n++
	}
	end := time.Now().Add(5 * time.Second)
	for injected.Load()-before < sent && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	got := int(injected.Load() - before)
	rate(b, got, used)
	b.ReportMetric(float64(int(sent)-got)/float64(sent)*100, "lost-%")
}

// BenchmarkOutTUN: from a socket that plays the kernel's master thread through a real TUN device to signed datagrams on a link. What the
// playing thread costs is only left out of syncd-records/cpu-s. What overflows the device's queue is not counted.
func BenchmarkOutTUN(b *testing.B) {
	for _, each := range []int{1, 40} {
		b.Run(fmt.Sprintf("records=%d", each), func(b *testing.B) {
			veth(b)
			t, master := benchTUN(b)
			m := startMirrorer(b, testGroup, t, "a", "a0")
			eventually(b, "synced", func() bool { return m.Status().Synced })
			msgs, n := benchMessages(b, each), 0
			count := func() uint64 { return m.Status().Counters["sent_records"] }
			before, all, kernel := count(), cpu(b), used(b, unix.RUSAGE_THREAD)
			for b.Loop() {
				// ENOBUFS: the queue is full; the message is lost, as the kernel's would be.
				if err := unix.Send(master, msgs[n%len(msgs)], 0); err != nil && err != unix.ENOBUFS {
					b.Fatal(err)
				}
				n++
			}
			kernel = used(b, unix.RUSAGE_THREAD) - kernel
			got := before
			for { // until nothing more comes
				time.Sleep(20 * time.Millisecond)
				now := count()
				if now == got {
					break
				}
				got = now
			}
			rate(b, int(got-before), all)
			b.ReportMetric(float64(got-before)/(cpu(b)-all-kernel).Seconds(), "syncd-records/cpu-s")
			b.ReportMetric(float64(n*each-int(got-before))/float64(n*each)*100, "lost-%")
		})
	}
}

// BenchmarkInTUN: messages of so many records into a real TUN device, where a socket plays the kernel's backup thread.
func BenchmarkInTUN(b *testing.B) {
	for _, each := range []int{1, 40, 255} {
		b.Run(fmt.Sprintf("records=%d", each), func(b *testing.B) {
			veth(b)
			t, _ := benchTUN(b)
			msgs, n := benchMessages(b, each), 0
			used := cpu(b)
			for b.Loop() {
				if err := t.Inject(msgs[n%len(msgs)]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			rate(b, n*each, used)
		})
	}
}

// benchTUN makes a tap on a TUN device in the present namespace, and a socket that is the master thread to it.
func benchTUN(b *testing.B) (*tap.TUN, int) {
	local := netip.MustParseAddr("169.254.81.1")
	dev, err := tun.Open(tun.Config{Name: "syncd0", Local: local, Peer: local.Next()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = dev.Remove() })
	master := kernelSocket(b, dev.Index())
	// The tap is read by a thread of another namespace, for which /proc has other sockets: give it a table of its own.
	sa, err := unix.Getsockname(master)
	if err != nil {
		b.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	table := filepath.Join(b.TempDir(), "udp")
	rows := fmt.Sprintf("heading\n1: %08X:%04X %08X:2290 01 0:0 0:0 0 0 0 1 2 0 0\n", word(local), port, word(testGroup.Addr())) +
		fmt.Sprintf("2: %08X:2290 00000000:0000 07 0:0 0:0 0 0 0 2 2 0 0\n", word(testGroup.Addr())) // the backup thread's
	if err := os.WriteFile(table, []byte(rows), 0o600); err != nil {
		b.Fatal(err)
	}
	t, err := tap.NewTUN(dev, local, table, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return t, master
}

// word is an address as the kernel prints it in /proc/net/udp.
func word(a netip.Addr) uint32 {
	raw := a.As4()
	return binary.NativeEndian.Uint32(raw[:])
}

// kernelSocket plays the kernel's master thread on a TUN device: a connected socket that sends what it is given.
func kernelSocket(tb testing.TB, index int) int {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	a := testGroup.Addr().As4()
	for _, err := range []error{
		unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Multiaddr: a, Ifindex: int32(index)}),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: a, Port: int(testGroup.Port())}),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return fd
}
