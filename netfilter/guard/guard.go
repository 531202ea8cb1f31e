package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// DefaultTable is the name of syncd's table.
const DefaultTable = "syncd"

// timeout bounds each exchange with the kernel. A transaction waits for others and for RCU, some 10 ms on a busy host.
const timeout = 5 * time.Second

// Config names what is guarded.
type Config struct {
	// Table is the name of the table, of family inet; empty stands for DefaultTable.
	Table string
	// Device is the tap.
	Device string
	// Group is where the kernel's threads send and listen.
	Group netip.AddrPort
	// Peer is syncd's address on the tap, Local the kernel's.
	Peer, Local netip.Addr
	// TickPort is the TCP port of the tick's virtual service on Local; 0: there is none.
	TickPort uint16
}

func (c Config) check() (Config, error) {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	c.Group = netip.AddrPortFrom(c.Group.Addr().Unmap(), c.Group.Port())
	c.Peer, c.Local = c.Peer.Unmap(), c.Local.Unmap()
	switch {
	case c.Device == "" || len(c.Device) >= unix.IFNAMSIZ:
		return c, fmt.Errorf("guard: device name %q must have 1 to %d bytes", c.Device, unix.IFNAMSIZ-1)
	case !c.Group.Addr().Is4() || !c.Group.Addr().IsMulticast() || c.Group.Port() == 0:
		return c, fmt.Errorf("guard: group %v must be an IPv4 multicast address with a port", c.Group)
	case !c.Peer.Is4() || !c.Local.Is4() || c.Peer == c.Local:
		return c, fmt.Errorf("guard: addresses %v and %v must be two IPv4 addresses", c.Local, c.Peer)
	}
	return c, nil
}

// connect prepares a connection to nftables in the network namespace of the calling thread. Each exchange opens a socket of its
// own, with a deadline.
func connect() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(timeout))
	}))
}

// Install puts the table in place in one transaction. One of the same name stays if it is right, or is replaced; a packet in the middle of the replacement can pass. It needs CAP_NET_ADMIN.
func Install(cfg Config) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	if why, err := inspect(cfg); why == "" && err == nil {
		return nil
	}
	return install(cfg)
}

func install(cfg Config) error {
	c, err := connect()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that the deletion does not fail
	c.DelTable(t)
	c.AddTable(t)
	for _, ch := range chains(cfg, t) {
		c.AddChain(ch.chain)
		for _, r := range ch.rules {
			c.AddRule(r.rule(t, ch.chain))
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install nftables table %s: %w", cfg.Table, err)
	}
	return nil
}

// Remove deletes the table. A missing one is no error.
func Remove(table string) error {
	if table == "" {
		table = DefaultTable
	}
	c, err := connect()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", table, err)
	}
	return nil
}

// Check says whether the table is there as Install makes it. It does not look at what other tables do.
func Check(cfg Config) (bool, error) {
	cfg, err := cfg.check()
	if err != nil {
		return false, err
	}
	why, err := inspect(cfg)
	return why == "" && err == nil, err
}
