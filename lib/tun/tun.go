package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultMTU lets the kernel's largest useful message through: 8 + 255 records of 36 bytes = 9188 bytes and 28 bytes
	// of IP and UDP headers. The kernel also derives the receive buffer of its backup thread from it
	// (net/netfilter/ipvs/ip_vs_sync.c, start_sync_thread).
	DefaultMTU = 9216
	// DefaultQueueLen is the transmit queue in packets. The kernel's default of 500 (drivers/net/tun.c,
	// TUN_READQ_SIZE) is 0.5 ms of a busy farm with one record a message.
	DefaultQueueLen = 5000

	minMTU = 576   // RFC 791: what every host must accept
	maxMTU = 65535 // drivers/net/tun.c: MAX_MTU

	// maxQueueLen bounds the memory of the ring: 8 bytes an entry, allocated at once.
	maxQueueLen = 1 << 20
)

var (
	// ErrForeign says that an interface of that name exists and is not ours: another kind of interface, a TAP, or a TUN with
	// other addresses. The message tells the operator what to do.
	ErrForeign = errors.New("not a device of this program")
	// ErrBusy says that another process is attached to the device.
	ErrBusy = errors.New("another process is attached to the device")
	// ErrGone is what Read and Write return when somebody has deleted the device. Close it and Open anew.
	ErrGone = errors.New("the device was deleted")
)

// Config describes a device.
type Config struct {
	// Name is the interface's name, at most 15 bytes.
	Name string
	// Local is the kernel's address, Peer that of the process. Both IPv4.
	Local, Peer netip.Addr
	// MTU in bytes; 0 stands for DefaultMTU.
	MTU int
	// QueueLen is the kernel's queue towards the process in packets; 0 stands for DefaultQueueLen.
	QueueLen int
}

// check returns the configuration with its defaults.
func (c Config) check() (Config, error) {
	if err := checkName(c.Name); err != nil {
		return c, err
	}
	c.Local, c.Peer = c.Local.Unmap(), c.Peer.Unmap()
	switch {
	case !c.Local.Is4() || !c.Peer.Is4():
		return c, fmt.Errorf("addresses %v and %v: both must be IPv4", c.Local, c.Peer)
	case c.Local == c.Peer:
		return c, fmt.Errorf("address %v: both ends of the device have it", c.Local)
	case c.Local.IsUnspecified() || c.Peer.IsUnspecified(), c.Local.IsMulticast() || c.Peer.IsMulticast(),
		c.Local.IsLoopback() || c.Peer.IsLoopback():
		return c, fmt.Errorf("addresses %v and %v: both must be unicast and not loopback", c.Local, c.Peer)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		return c, fmt.Errorf("MTU %d is not in %d..%d", c.MTU, minMTU, maxMTU)
	}
	if c.QueueLen == 0 {
		c.QueueLen = DefaultQueueLen
	}
	if c.QueueLen < 1 || c.QueueLen > maxQueueLen {
		return c, fmt.Errorf("queue length %d is not in 1..%d", c.QueueLen, maxQueueLen)
	}
	return c, nil
}

// checkName applies the kernel's rules (net/core/dev.c, dev_valid_name) and refuses "%", which would make the kernel
// choose a number.
func checkName(name string) error {
	bad := name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".."
	for _, r := range name {
		bad = bad || r <= ' ' || r > '~' || r == '/' || r == ':' || r == '%'
	}
	if bad {
		return fmt.Errorf("interface name %q: 1 to %d printable characters without / : %% are allowed", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// Device is an attached TUN device. Its methods may be called from several goroutines; each Read and each Write is one
// packet.
type Device struct {
	file       *os.File
	name       string
	index      int
	reattached bool
}

// Open creates the device, or attaches to it when it exists and is ours, and brings it up with its address, MTU and queue
// length. It needs CAP_NET_ADMIN and /dev/net/tun, and works in the network namespace of the calling thread.
//
// It returns ErrForeign when the name is taken by something else (nothing has been changed then), and ErrBusy when
// another process is attached.
func Open(cfg Config) (*Device, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	found, err := findOurs(cfg)
	if err != nil {
		return nil, err
	}
	file, err := attach(cfg.Name, !found)
	if err != nil {
		return nil, err
	}
	d := &Device{file: file, name: cfg.Name, reattached: found}
	if err := d.configure(cfg); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("device %s: %w", cfg.Name, err)
	}
	return d, nil
}

// configure addresses the device, brings it up and makes it persistent.
func (d *Device) configure(cfg Config) error {
	index, err := setUp(cfg, !d.reattached)
	if err != nil {
		return err
	}
	d.index = index
	return d.control("make the device persistent", func(fd int) error {
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	})
}

// attach opens a descriptor for the device and creates the device if fresh is set.
func attach(name string, fresh bool) (*os.File, error) {
	const path = "/dev/net/tun"
	// O_NONBLOCK must be set before os.NewFile, which only then hands the descriptor to the runtime's poller; without it
	// there are no deadlines and Close does not unblock a Read.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := attachFd(fd, name, fresh); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func attachFd(fd int, name string, fresh bool) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if fresh {
		// Somebody may have created the name since we looked: better an error than a foreign device.
		flags |= unix.IFF_TUN_EXCL
	}
	req.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	switch {
	case errors.Is(err, unix.EBUSY) && fresh:
		return fmt.Errorf("create TUN device %s: it appeared meanwhile: %w", name, ErrBusy)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("attach to TUN device %s: %w", name, ErrBusy)
	case errors.Is(err, unix.EINVAL) && !fresh:
		return foreign(name, "it does not accept a TUN descriptor")
	case err != nil && fresh:
		return fmt.Errorf("create TUN device %s: %w", name, err)
	case err != nil:
		return fmt.Errorf("attach to TUN device %s: %w", name, err)
	}
	got, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, got); err != nil {
		return fmt.Errorf("read mode of TUN device %s: %w", name, err)
	}
	const mode = unix.IFF_TUN | unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if have := got.Uint16() & mode; have != unix.IFF_TUN|unix.IFF_NO_PI || got.Name() != name {
		return foreign(name, fmt.Sprintf("its mode is %#x", have))
	}
	// An earlier owner of a persistent device may have switched segmentation offload on; we want single datagrams.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return fmt.Errorf("switch off offloads of TUN device %s: %w", name, err)
	}
	return nil
}

// Name returns the interface's name.
func (d *Device) Name() string { return d.name }

// Index returns the interface's index. It stays the same as long as the device exists, across processes.
func (d *Device) Index() int { return d.index }

// Reattached says whether the device existed already when it was opened: an earlier process has left it.
func (d *Device) Reattached() bool { return d.reattached }

// Read reads one packet. A packet longer than b is cut off. It returns os.ErrDeadlineExceeded past the read deadline,
// os.ErrClosed after Close, and ErrGone when the device was deleted.
func (d *Device) Read(b []byte) (int, error) {
	n, err := d.file.Read(b)
	if err != nil {
		return 0, d.ioError("read from", err)
	}
	return n, nil
}

// Write writes one packet, which must begin with its IP header. It does not block: the kernel has processed the packet, or
// put it on the processor's backlog, when it returns. EIO means that the interface is down.
func (d *Device) Write(b []byte) (int, error) {
	n, err := d.file.Write(b)
	if err != nil {
		return 0, d.ioError("write to", err)
	}
	return n, nil
}

// ioError adds the step and maps what the kernel says about a device that was deleted.
func (d *Device) ioError(step string, err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err // not a failure, and on the fast way out
	}
	// Read gets an error of the runtime's poller that has no name, so ask the kernel.
	if errors.Is(d.control("read mode", func(fd int) error {
		req, err := unix.NewIfreq(d.name)
		if err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
	}), unix.EBADFD) {
		err = ErrGone // drivers/net/tun.c: no device behind the descriptor
	}
	return fmt.Errorf("%s device %s: %w", step, d.name, err)
}

// SetReadDeadline sets the time at which a Read that blocks returns os.ErrDeadlineExceeded. The zero time means never.
func (d *Device) SetReadDeadline(t time.Time) error {
	return d.file.SetReadDeadline(t)
}

// Close detaches from the device, which stays. A Read that blocks returns os.ErrClosed.
func (d *Device) Close() error {
	return d.file.Close()
}

// Remove deletes the device and closes it.
func (d *Device) Remove() error {
	// A device that is not persistent goes with its descriptor, and that also works when the thread is in another
	// network namespace by now.
	err := d.control("make the device temporary", func(fd int) error {
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	})
	// EBADFD: it has been deleted already, which is what was wanted.
	if errors.Is(err, unix.EBADFD) {
		err = nil
	}
	return errors.Join(err, d.file.Close())
}

// control runs fn on the descriptor.
func (d *Device) control(step string, fn func(fd int) error) error {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if ferr != nil {
		return fmt.Errorf("%s: %w", step, ferr)
	}
	return nil
}
