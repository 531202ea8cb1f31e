package tap

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"saru/proto/ipvssync"
)

// ErrBlocked says that what is injected does not arrive at the kernel's socket, as when a firewall drops in INPUT by default.
var ErrBlocked = errors.New("a firewall of this host drops what syncd injects")

// probeTime is how long a probe may take. The packet is delivered before the write to the device returns, or by the processor's backlog.
const probeTime = 300 * time.Millisecond

// Probe finds out whether what is injected passes the host's firewall: it injects a message without records and looks whether
// a socket beside the backup thread's gets it, as multicast goes to every socket of the group (net/ipv4/udp.c, __udp4_lib_mcast_deliver).
func (k *Kernel) Probe() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the probe's socket: %w", err)
	}
	defer unix.Close(fd)
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.BindToDevice(fd, k.cfg.Device),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: port}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: probeTime.Microseconds() / 4}),
	} {
		if err != nil {
			return fmt.Errorf("set up the probe's socket: %w", err)
		}
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	msg := append(ipvssync.AppendHeaderV1(nil, 0), nonce[:]...) // bytes behind the last record are not looked at
	if err := ipvssync.FinishV1(msg, 0, 0); err != nil {
		return err
	}
	if err := k.Inject(msg); err != nil {
		return err
	}
	var buf [MaxPacket]byte
	for end := time.Now().Add(probeTime); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("read the probe: %w", err)
		}
		if err == nil && bytes.Contains(buf[:n], nonce[:]) {
			return nil
		}
	}
	return fmt.Errorf("%w: accept it in the chain with hook input, such as `iifname %q udp dport %d accept`, and the tick with `iifname %q tcp dport %d accept`",
		ErrBlocked, k.cfg.Device, port, k.cfg.Device, port)
}
