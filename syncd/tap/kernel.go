package tap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"saru/lib/ipvs"
	"saru/lib/sysctl"
	"saru/lib/tun"
	"saru/netfilter/guard"
)

const (
	// port of the sync threads' group on the tap (include/uapi/linux/ip_vs.h: IP_VS_SYNC_PORT), and of the tick's service.
	port = 8848
	// TickPorts is how many connections the ticks use in turn: as many as ticks may be on their way at the same time.
	TickPorts = 16
	// tickClientPort is the first of their client ports.
	tickClientPort = 8849
	// masterMaxLen makes each record a message of its own: it leaves as soon as the next one comes, which may be the tick's
	// (ip_vs_sync.c, ip_vs_sync_conn: a message is queued when the next record does not fit).
	masterMaxLen = 1
	// guardTable is the name of the nftables table that guards the device.
	guardTable = "syncd"
	udpTable   = "/proc/self/net/udp"
)

// group is IP_VS_SYNC_GROUP (include/uapi/linux/ip_vs.h).
var group = netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 81}), port)

// Settings returns the sysctls that the threads need, relative to /proc/sys. See Documentation/networking/ipvs-sysctl.rst.
func Settings() []sysctl.Setting {
	const vs = "net/ipv4/vs/"
	return []sysctl.Setting{
		{Name: vs + "sync_version", Value: "1"},
		{Name: vs + "sync_ports", Value: "1"},           // one thread of each kind: the order of one connection's records is kept
		{Name: vs + "sync_threshold", Value: "0 0"},     // from the first packet of an established connection on,
		{Name: vs + "sync_refresh_period", Value: "10"}, // again every 10 s of traffic,
		{Name: vs + "sync_retries", Value: "0"},         // once each time: nothing is lost on the way to us
		{Name: vs + "sync_persist_mode", Value: "0"},    // connections of persistent clients too
		{Name: vs + "sync_sock_size", Value: "4194304"},
	}
}

// Config describes the tap on the kernel.
type Config struct {
	Device string     // name of the TUN device
	Local  netip.Addr // the kernel's end; the other end has the next address
	// Sysctl: Apply sets what differs and remembers it, Check refuses when something differs, Off does not look.
	Sysctl SysctlMode
	// StatePath is the file that keeps the sysctls' old values until Stop, so that they outlive SIGKILL.
	StatePath string
	Log       *slog.Logger
}

// SysctlMode is the value of --sysctl.
type SysctlMode uint8

// The modes.
const (
	SysctlApply SysctlMode = iota
	SysctlCheck
	SysctlOff
)

func (c *Config) peer() netip.Addr { return c.Local.Next() }

func (c *Config) store() *sysctl.Store { return sysctl.Open("/proc/sys", c.StatePath) }

// TickService returns the virtual service of the tap's own connection.
func (c *Config) TickService() netip.AddrPort { return netip.AddrPortFrom(c.Local, port) }

func (c *Config) guard() guard.Config {
	return guard.Config{Table: guardTable, Device: c.Device, Group: group, Peer: c.peer(), Local: c.Local, TickPort: port}
}

// Kernel is the tap on the kernel of this network namespace, with everything that it needs there.
type Kernel struct {
	*TUN
	cfg      Config
	daemons  ipvs.Daemons
	services ipvs.Services
	lock     net.Listener
	began    bool // Open has changed something
}

// hold makes this process the only one that uses the device, by a name that the network namespace has once: an abstract unix socket,
// which ends with its process (unix(7)).
func (c *Config) hold() (net.Listener, error) {
	l, err := net.Listen("unix", "@saru-syncd-tap-"+c.Device)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("device %s: %w: another syncd runs", c.Device, tun.ErrBusy)
	}
	if err != nil {
		return nil, fmt.Errorf("hold device %s: %w", c.Device, err)
	}
	return l, nil
}

// Open connects to the kernel: sysctls, guard, device, threads and the tick's service, in this order. What a killed syncd has left is
// used again. On an error everything that this call made is taken away again.
func Open(cfg Config) (*Kernel, error) {
	k := &Kernel{cfg: cfg}
	if err := k.open(); err != nil {
		if k.began {
			err = errors.Join(err, cfg.clean(k.daemons, k.services))
		}
		if k.TUN != nil {
			_ = k.TUN.Close()
		}
		k.closeHandles()
		return nil, err
	}
	return k, nil
}

func (k *Kernel) open() (err error) {
	if k.lock, err = k.cfg.hold(); err != nil {
		return err
	}
	if k.daemons, err = ipvs.OpenDaemons(); err != nil {
		return err
	}
	if k.services, err = ipvs.OpenServices(); err != nil {
		return err
	}
	if err := checkDaemons(k.daemons, k.cfg.Device); err != nil {
		return err
	}
	if err := k.cfg.checkBackupOnly(); err != nil {
		return err
	}
	k.began = true
	if err := k.cfg.applySysctls(); err != nil {
		return err
	}
	// The guard is there before the device, and matches by its name.
	if err := guard.Install(k.cfg.guard()); err != nil {
		return fmt.Errorf("guard device %s: %w", k.cfg.Device, err)
	}
	dev, err := tun.Open(tun.Config{Name: k.cfg.Device, Local: k.cfg.Local, Peer: k.cfg.peer()})
	if err != nil {
		return err
	}
	if k.TUN, err = NewTUN(dev, k.cfg.Local, udpTable, k.cfg.Log); err != nil {
		return errors.Join(err, dev.Close())
	}
	k.receivers.own = ownSockets
	if err := k.startThreads(!dev.Reattached()); err != nil {
		return err
	}
	return k.addTickService()
}

// Close detaches from the device and leaves everything as it is: the kernel's threads go on, and the next Open finds them.
func (k *Kernel) Close() error {
	err := k.TUN.Close()
	k.closeHandles()
	return err
}

func (k *Kernel) closeHandles() {
	if k.daemons != nil {
		_ = k.daemons.Close() // netlink sockets, nothing to lose
	}
	if k.services != nil {
		_ = k.services.Close()
	}
	if k.lock != nil {
		_ = k.lock.Close()
	}
}

// Cleanup takes away what Open made, also what a killed syncd has left: threads on the device, the tick's service, guard, device, and it restores the
// sysctls. What is not there is no error; a living syncd on the device is (tun.ErrBusy).
func Cleanup(cfg Config) error {
	k := &Kernel{cfg: cfg}
	defer k.closeHandles()
	var err error
	if k.lock, err = cfg.hold(); err != nil {
		return err
	}
	if k.daemons, err = ipvs.OpenDaemons(); err == nil {
		k.services, err = ipvs.OpenServices()
	}
	if errors.Is(err, ipvs.ErrNotAvailable) { // then there are neither threads nor services
		return cfg.clean(nil, nil)
	}
	if err != nil {
		return err
	}
	return cfg.clean(k.daemons, k.services)
}

// clean goes on after errors, so that one obstacle does not leave everything behind.
func (c *Config) clean(daemons ipvs.Daemons, services ipvs.Services) error {
	var errs []error
	if daemons != nil {
		running, err := daemons.List()
		errs = append(errs, err)
		for _, d := range running {
			if d.Interface != c.Device {
				continue
			}
			if err := daemons.Stop(d.State); err != nil && !errors.Is(err, ipvs.ErrNotRunning) {
				errs = append(errs, err)
			}
		}
	}
	if services != nil {
		s, _ := c.tick()
		if err := services.DeleteService(s); err != nil && !errors.Is(err, ipvs.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, guard.Remove(guardTable))
	if err := tun.Remove(c.Device); !errors.Is(err, tun.ErrForeign) { // somebody else's device of that name is not ours to remove
		errs = append(errs, err)
	}
	changes, err := c.store().Restore()
	errs = append(errs, err)
	for _, ch := range changes {
		c.Log.Info("sysctl restored", "name", ch.Name, "old", ch.Old, "new", ch.New)
	}
	return errors.Join(errs...)
}

// SequenceBroken reports whether this kernel's master thread sends version 1 records with sequence numbers that are not the
// connection's: up to 7.1, ip_vs_sync_conn calls hton_seq with its arguments exchanged, and what was in the buffer's memory goes out
// (found by capture on 6.1 and 6.12; 7.2 is right). Nothing in these kernels sets such numbers by itself.
func SequenceBroken() (bool, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, fmt.Errorf("read the kernel's version: %w", err)
	}
	return sequenceBroken(unix.ByteSliceToString(u.Release[:])), nil
}

func sequenceBroken(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return true // numbers that may be wrong are worse than none
	}
	return major < 7 || major == 7 && minor < 2
}

// Guard watches the device's guard and mends it until ctx ends.
func (k *Kernel) Guard(ctx context.Context) error {
	return guard.Watch(ctx, k.cfg.guard(), func(why string) {
		k.cfg.Log.Warn("the guard of the device was put back", "device", k.cfg.Device, "why", why)
	})
}
