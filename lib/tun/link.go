package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Exists says whether an interface of that name exists, of whatever kind.
func Exists(name string) (bool, error) {
	link, err := find(name)
	return link != nil, err
}

// Remove deletes the TUN device of that name, also while a process is attached to it. A missing one is not an error; an
// interface that is no TUN device is left alone (ErrForeign).
func Remove(name string) error {
	link, err := find(name)
	if err != nil || link == nil {
		return err
	}
	if t, ok := link.(*netlink.Tuntap); !ok || t.Mode != netlink.TUNTAP_MODE_TUN {
		return foreign(name, "it is a "+kind(link))
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// foreign makes the error for an interface that is not ours.
func foreign(name, why string) error {
	return fmt.Errorf("interface %s exists, but %s: %w; give another name, or delete it: ip link delete %s", name, why, ErrForeign, name)
}

// find returns nil when there is no such interface.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}

// kind names an interface's type as iproute2 does.
func kind(link netlink.Link) string {
	if t, ok := link.(*netlink.Tuntap); ok && t.Mode == netlink.TUNTAP_MODE_TAP {
		return "TAP device"
	}
	if t := link.Type(); t != "" {
		return t + " interface"
	}
	return "plain interface"
}

// findOurs says whether the device exists, and returns ErrForeign when it is not the one that cfg describes. It changes
// nothing.
func findOurs(cfg Config) (bool, error) {
	link, err := find(cfg.Name)
	if err != nil || link == nil {
		return false, err
	}
	if t, ok := link.(*netlink.Tuntap); !ok || t.Mode != netlink.TUNTAP_MODE_TUN {
		return false, foreign(cfg.Name, "it is a "+kind(link))
	}
	addrs, err := addresses(link)
	if err != nil {
		return false, err
	}
	if len(addrs) != 1 || !isOurs(addrs[0], cfg) {
		return false, foreign(cfg.Name, fmt.Sprintf("its addresses are %s and not %s peer %s", listed(addrs), cfg.Local, cfg.Peer))
	}
	return true, nil
}

// addresses lists the interface's addresses without IPv6 link-local ones, which the kernel adds by itself.
func addresses(link netlink.Link) ([]netlink.Addr, error) {
	var all []netlink.Addr
	err := retryDump(func() (err error) {
		all, err = netlink.AddrList(link, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	var addrs []netlink.Addr
	for _, a := range all {
		if a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// retryDump repeats a listing that was changed while it was read: netlink says so instead of returning half of it.
func retryDump(list func() error) error {
	var err error
	for range 5 {
		if err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

func isOurs(a netlink.Addr, cfg Config) bool {
	local, _ := netip.AddrFromSlice(a.IP.To4())
	if a.Peer == nil {
		return false
	}
	peer, _ := netip.AddrFromSlice(a.Peer.IP.To4())
	ones, bits := a.Peer.Mask.Size()
	return local == cfg.Local && peer == cfg.Peer && ones == bits
}

func listed(addrs []netlink.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	s := ""
	for i, a := range addrs {
		if i > 0 {
			s += ", "
		}
		s += a.IP.String()
		if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
			s += " peer " + a.Peer.IP.String()
		}
	}
	return s
}

// setUp brings the interface into the state of cfg and returns its index.
func setUp(cfg Config, fresh bool) (int, error) {
	link, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return 0, fmt.Errorf("look up the interface: %w", err)
	}
	// Before it comes up: no router solicitations and no multicast listener reports in our stream.
	if err := disableIPv6(cfg.Name); err != nil {
		return 0, err
	}
	attrs := link.Attrs()
	if attrs.MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return 0, fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
		}
	}
	if attrs.TxQLen != cfg.QueueLen {
		// This also resizes the ring that is read from (drivers/net/tun.c, tun_queue_resize).
		if err := netlink.LinkSetTxQLen(link, cfg.QueueLen); err != nil {
			return 0, fmt.Errorf("set queue length %d: %w", cfg.QueueLen, err)
		}
	}
	if fresh {
		if err := netlink.AddrAdd(link, address(cfg)); err != nil {
			return 0, fmt.Errorf("add address %s peer %s: %w", cfg.Local, cfg.Peer, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bring the interface up: %w", err)
	}
	return attrs.Index, nil
}

// address has global scope on purpose. The kernel's master thread binds its socket to inet_select_addr(dev, 0,
// RT_SCOPE_UNIVERSE) (net/netfilter/ipvs/ip_vs_sync.c, bind_mcastif_addr). That passes over an address of link scope and
// falls back to the first global address of any interface, which may be a VIP: when that leaves the host, each of the
// thread's sends fails with EINVAL.
func address(cfg Config) *netlink.Addr {
	host := net.CIDRMask(32, 32)
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: cfg.Local.AsSlice(), Mask: host},
		Peer:  &net.IPNet{IP: cfg.Peer.AsSlice(), Mask: host},
		Scope: unix.RT_SCOPE_UNIVERSE,
	}
}

// disableIPv6 goes through the calling thread's network namespace.
func disableIPv6(name string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
	err := os.WriteFile(path, []byte("1\n"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return fmt.Errorf("disable IPv6: %w", err)
	}
	return nil
}
