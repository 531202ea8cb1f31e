package share

import (
	"fmt"
	"math/bits"
	"net"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"saru/lib/tun/nstest"
)

// sender sends frames at the other end of the veth. The kernel works on each of them within the system call, on the same core.
type sender struct {
	fd       int
	messages []message // one for each frame
	vectors  []unix.Iovec
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

func newSender(b *testing.B, peer *nstest.NS, flows []tuple) *sender {
	b.Helper()
	dev, err := net.InterfaceByName(vethName)
	must(b, err)
	frames := framesTo(dev.HardwareAddr, flows)
	s := &sender{messages: make([]message, len(frames)), vectors: make([]unix.Iovec, len(frames))}
	for i, frame := range frames {
		s.vectors[i].Base = &frame[0]
		s.vectors[i].SetLen(len(frame))
		s.messages[i].header.Iov = &s.vectors[i]
		s.messages[i].header.SetIovlen(1)
	}
	peer.Do(b, func() {
		out, err := net.InterfaceByName("bench1")
		must(b, err)
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(b, err)
		b.Cleanup(func() { _ = unix.Close(s.fd) })
		must(b, unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: out.Index}))
		must(b, unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	})
	return s
}

func (s *sender) run(tb testing.TB, n int) {
	for n > 0 {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages[0])), uintptr(min(n, len(s.messages))), 0, 0, 0)
		if errno != 0 {
			tb.Fatal(errno)
		}
		n -= int(sent)
	}
	runtime.KeepAlive(s)
}

// BenchmarkFilterByVeth measures foreign packets that go through the stack one by one, with what it costs to send them: the instructions and data that one needs are not as near from the one before as in
// BenchmarkFilter's batches. The price of an arrangement is the difference to "drop at ingress".
func BenchmarkFilterByVeth(b *testing.B) {
	for _, is4 := range []bool{true, false} {
		owned, flows := benchFlows(is4)
		for _, a := range arrangements {
			b.Run(fmt.Sprintf("%s/%s", familyName("IPv", is4), a.name), func(b *testing.B) {
				s := newSender(b, benchWorld(b), flows[false])
				oneCore(b)
				a.measure(b, is4, owned, false, s.run, wallTime)
			})
		}
	}
}

// oneCore keeps the thread, which is the test's own, on the core on which it is.
func oneCore(b *testing.B) {
	b.Helper()
	var all, one unix.CPUSet
	must(b, unix.SchedGetaffinity(0, &all))
	for cpu := range len(all) * bits.UintSize {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	must(b, unix.SchedSetaffinity(0, &one))
	b.Cleanup(func() { _ = unix.SchedSetaffinity(0, &all) })
}

// wallTime tells the time: what the kernel does in a softirq is nobody's processor time where it is accounted apart.
func wallTime(testing.TB) int64 { return time.Now().UnixNano() }
