package tun

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"saru/lib/tun/nstest"
)

// benchSizes are UDP payloads of kernel sync messages: a header of 8 bytes and records of 36.
var benchSizes = []int{1, 40}

// BenchmarkRead measures the reading of messages that another thread sends, as the kernel's master thread does. Below
// the sender's own speed, packets that overflow the queue are not counted.
func BenchmarkRead(b *testing.B) {
	for _, records := range benchSizes {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			nstest.New(b)
			d := open(b, testConfig())
			fd := kernelSocket(b)
			payload := make([]byte, 8+36*records)
			stop, stopped := make(chan struct{}), make(chan error, 1)
			go func() {
				for {
					select {
					case <-stop:
						stopped <- nil
						return
					default:
					}
					for range 64 {
						// ENOBUFS: the queue is full.
						if err := unix.Send(fd, payload, 0); err != nil && err != unix.ENOBUFS {
							stopped <- err
							return
						}
					}
				}
			}()
			buf := make([]byte, 65536)
			b.ReportAllocs()
			b.SetBytes(int64(28 + len(payload)))
			for b.Loop() {
				if _, err := readUDP(d, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
			close(stop)
			if err := <-stopped; err != nil {
				b.Fatal(err)
			}
			_ = unix.Close(fd)
		})
	}
}

// BenchmarkWrite measures injection into a stack in which a socket takes the messages.
func BenchmarkWrite(b *testing.B) {
	for _, records := range benchSizes {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			nstest.New(b)
			d := open(b, testConfig())
			fd := kernelReceiver(b, d.Index())
			defer func() { _ = unix.Close(fd) }()
			pkt := datagram(peer, group, make([]byte, 8+36*records))
			buf := make([]byte, 65536)
			n := 0
			b.ReportAllocs()
			b.SetBytes(int64(len(pkt)))
			for b.Loop() {
				if _, err := d.Write(pkt); err != nil {
					b.Fatal(err)
				}
				if n++; n == 32 { // before the socket's buffer overflows
					for n = 0; ; {
						if _, err := unix.Read(fd, buf); err != nil {
							break
						}
					}
				}
			}
			b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// kernelReceiver returns a non-blocking socket that is bound to the group on the device.
func kernelReceiver(tb testing.TB, index int) int {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	mreq := &unix.IPMreqn{Multiaddr: group.Addr().As4(), Ifindex: int32(index)}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}); err != nil {
		tb.Fatal(err)
	}
	return fd
}
