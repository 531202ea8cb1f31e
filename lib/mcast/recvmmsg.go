package mcast

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiver calls recvmmsg without allocating. golang.org/x/net's ReadBatch makes two objects for each datagram's source
// address, which is why only its WriteBatch is used.
type receiver struct {
	hdrs  []unix.Mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6 // also large enough for IPv4

	fn    func(fd uintptr) bool // made once: a closure per call would be allocated
	want  int
	n     int
	errno syscall.Errno
}

func (r *receiver) init() {
	r.fn = func(fd uintptr) bool {
		for {
			n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(r.want),
				unix.MSG_DONTWAIT, 0, 0)
			r.n, r.errno = int(n), errno
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	}
}

// recvmmsg waits until the socket is readable and fills in as many elements of msgs as there are datagrams.
func (r *receiver) recvmmsg(raw syscall.RawConn, msgs []Message) (int, error) {
	if len(msgs) == 0 {
		return 0, nil
	}
	r.prepare(msgs)
	if err := raw.Read(r.fn); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	for i := range msgs[:r.n] {
		h := &r.hdrs[i]
		msgs[i].N = min(int(h.Len), len(msgs[i].Buf))
		msgs[i].Truncated = h.Hdr.Flags&unix.MSG_TRUNC != 0
		msgs[i].Src = source(&r.names[i])
	}
	return r.n, nil
}

func (r *receiver) prepare(msgs []Message) {
	if len(r.hdrs) < len(msgs) {
		r.hdrs = make([]unix.Mmsghdr, len(msgs))
		r.iovs = make([]unix.Iovec, len(msgs))
		r.names = make([]unix.RawSockaddrInet6, len(msgs))
	}
	for i := range msgs {
		r.iovs[i].Base = unsafe.SliceData(msgs[i].Buf)
		r.iovs[i].SetLen(len(msgs[i].Buf))
		h := &r.hdrs[i].Hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Flags = 0
	}
	r.want = len(msgs)
}

// source reads a socket address. The kernel keeps the port in network byte order.
func source(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// dropped reads the socket's counter of dropped datagrams. SO_MEMINFO (Linux 4.12) can be asked at any time, while
// SO_RXQ_OVFL tells the same number only with the next datagram that does arrive.
func (s *rxSocket) dropped() uint64 {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	err := control(s.raw, func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0 // closed
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}
