package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of a sync thread (include/uapi/linux/ip_vs.h, IPVS_DAEMON_ATTR_*). Those from attrMaxLen on exist since
// Linux 4.3.
const (
	attrState  = 1
	attrIfname = 2
	attrSyncID = 3
	attrMaxLen = 4
	attrGroup4 = 5
	attrGroup6 = 6
	attrPort   = 7
	attrTTL    = 8
)

type daemons struct {
	*genl
}

// OpenDaemons connects to the kernel's sync threads in the network namespace of the calling thread. ErrNotAvailable
// when the kernel has no IPVS.
func OpenDaemons() (Daemons, error) {
	g, err := openKernel()
	if err != nil {
		return nil, err
	}
	return daemons{g}, nil
}

func (d daemons) List() ([]Daemon, error) {
	replies, err := d.execute(cmdGetDaemon, list, nil)
	if err != nil {
		return nil, fmt.Errorf("list sync threads: %w", err)
	}
	var all []Daemon
	for _, m := range replies {
		one, err := decodeDaemon(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list sync threads: %w", err)
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Daemon) int { return cmp.Compare(a.State, b.State) })
	return all, nil
}

func (d daemons) Start(one Daemon) error {
	if err := one.Check(); err != nil {
		return err
	}
	data, err := encodeDaemon(one)
	if err != nil {
		return fmt.Errorf("start the %s sync thread: %w", one.State, err)
	}
	_, err = d.execute(cmdNewDaemon, change, data)
	if errors.Is(err, unix.EEXIST) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("start the %s sync thread on %q: %w", one.State, one.Interface, err)
	}
	return nil
}

func (d daemons) Stop(state DaemonState) error {
	data, err := encodeDaemon(Daemon{State: state})
	if err != nil {
		return fmt.Errorf("stop the %s sync thread: %w", state, err)
	}
	_, err = d.execute(cmdDelDaemon, change, data)
	if errors.Is(err, unix.ESRCH) {
		err = ErrNotRunning
	}
	// A thread that is stopped before it has first run makes kthread_stop return EINTR, and to EINTR netlink gives no
	// answer (kernel/kthread.c, kthread; net/netlink/af_netlink.c, netlink_rcv_skb). The thread is gone nevertheless.
	// Seen on 6.1 in up to 4 of 10 cases, not on 6.12 and 7.2.
	if errors.Is(err, os.ErrDeadlineExceeded) && d.gone(state) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop the %s sync thread: %w", state, err)
	}
	return nil
}

// gone says that no thread of the kind runs; not that one does, or that it could not be found out.
func (d daemons) gone(state DaemonState) bool {
	running, err := d.List()
	return err == nil && !slices.ContainsFunc(running, func(o Daemon) bool { return o.State == state })
}

// Check says what the kernel would refuse, in clearer words than EINVAL.
func (d Daemon) Check() error {
	switch {
	case d.State != Master && d.State != Backup:
		return fmt.Errorf("sync thread: state %d is neither master nor backup", d.State)
	case d.Interface == "" || len(d.Interface) >= unix.IFNAMSIZ:
		return fmt.Errorf("%s sync thread: interface name %q must have 1 to %d bytes", d.State, d.Interface, unix.IFNAMSIZ-1)
	case d.Group.IsValid() && !d.Group.IsMulticast():
		return fmt.Errorf("%s sync thread: group %v is not a multicast address", d.State, d.Group)
	}
	return nil
}

// encodeDaemon leaves out what is 0, for the kernel to choose. A backup's SyncID of 0 must be there.
func encodeDaemon(d Daemon) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDaemon, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(attrState, uint32(d.State))
		if d.Interface == "" {
			return nil // enough to stop it
		}
		ae.String(attrIfname, d.Interface)
		ae.Uint32(attrSyncID, uint32(d.SyncID))
		if d.MaxLen != 0 {
			ae.Uint16(attrMaxLen, d.MaxLen)
		}
		if g := d.Group.Unmap(); g.Is4() {
			ae.Bytes(attrGroup4, g.AsSlice())
		} else if g.Is6() {
			ae.Bytes(attrGroup6, g.AsSlice())
		}
		if d.Port != 0 {
			ae.Uint16(attrPort, d.Port) // in host order, unlike the port of a service
		}
		if d.TTL != 0 {
			ae.Uint8(attrTTL, d.TTL)
		}
		return nil
	})
	return ae.Encode()
}

func decodeDaemon(b []byte) (d Daemon, err error) {
	err = nested(b, attrDaemon, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case attrState:
			d.State = DaemonState(ad.Uint32())
		case attrIfname:
			d.Interface = ad.String()
		case attrSyncID:
			d.SyncID = uint8(ad.Uint32())
		case attrMaxLen:
			d.MaxLen = ad.Uint16()
		case attrGroup4, attrGroup6:
			d.Group, _ = netip.AddrFromSlice(ad.Bytes())
		case attrPort:
			d.Port = ad.Uint16()
		case attrTTL:
			d.TTL = ad.Uint8()
		}
	})
	return d, err
}

// nested calls fn for each attribute inside the attribute outer, and ignores all other ones. An attribute of an
// unexpected length is an error.
func nested(b []byte, outer uint16, fn func(ad *netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return fmt.Errorf("decode the kernel's reply: %w", err)
	}
	found := false
	for ad.Next() {
		if ad.Type() != outer {
			continue
		}
		found = true
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				fn(ad)
			}
			return ad.Err()
		})
	}
	if err := ad.Err(); err != nil {
		return fmt.Errorf("decode the kernel's reply: %w", err)
	}
	if !found {
		return fmt.Errorf("decode the kernel's reply: attribute %d is missing", outer)
	}
	return nil
}
