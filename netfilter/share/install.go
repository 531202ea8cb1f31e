package share

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Flags of a table (include/uapi/linux/netfilter/nf_tables.h): only the socket that made it can change it (Linux 5.12); it stays when that is closed (6.9).
	flagOwner, flagPersist = 1 << 1, 1 << 2
	protectedFlags         = flagOwner | flagPersist
	flagDormant            = 1 << 0
)

// elementsPerMessage keeps a list of elements below the 64 KiB that a netlink attribute can have; a bucket has 20 bytes.
const elementsPerMessage = 1000

// chunks calls do with parts of elements.
func chunks(elements []nftables.SetElement, do func([]nftables.SetElement) error) error {
	for len(elements) > 0 {
		n := min(len(elements), elementsPerMessage)
		if err := do(elements[:n]); err != nil {
			return err
		}
		elements = elements[n:]
	}
	return nil
}

// add asks for all of the content but the table itself. Chains come before the maps that lead to them, rules last.
func (ct content) add(c *nftables.Conn) error {
	for _, name := range ct.counters {
		c.AddObj(&nftables.CounterObj{Table: ct.table, Name: name})
	}
	for _, ch := range ct.chains {
		c.AddChain(ch.chain)
	}
	for _, s := range ct.sets {
		if err := addSet(c, s); err != nil {
			return err
		}
	}
	ct.addRules(c)
	return nil
}

func addSet(c *nftables.Conn, s set) error {
	fresh := *s.set // the library gives it a number
	fresh.ID = 0
	if err := c.AddSet(&fresh, nil); err != nil {
		return err
	}
	return chunks(s.elements, func(part []nftables.SetElement) error { return c.SetAddElements(&fresh, part) })
}

func (ct content) addRules(c *nftables.Conn) {
	for _, ch := range ct.chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: ct.table, Chain: ch.chain, Exprs: r.exprs, UserData: r.userData()})
		}
	}
}

// withFlags gives each new table in a transaction its flags, which google/nftables v0.3.0 sends as 0.
func withFlags(msgs []netlink.Message, flags uint32) error {
	for i, m := range msgs {
		if m.Header.Type != netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE) {
			continue
		}
		const header = 4 // struct nfgenmsg
		ad, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return err
		}
		ae := netlink.NewAttributeEncoder()
		for ad.Next() {
			if ad.Type() == unix.NFTA_TABLE_NAME {
				ae.String(unix.NFTA_TABLE_NAME, ad.String())
			}
		}
		ae.ByteOrder = binary.BigEndian
		ae.Uint32(unix.NFTA_TABLE_FLAGS, flags)
		data, err := ae.Encode()
		if err = errors.Join(err, ad.Err()); err != nil {
			return err
		}
		msgs[i].Data = append(append([]byte{}, m.Data[:header]...), data...)
	}
	return nil
}

// create makes the table, with nothing owned and no lease, in one transaction; with again it replaces the one that is there.
func create(s *socket, ct content, flags uint32, again bool) error {
	msgs, err := encode(func(c *nftables.Conn) error {
		if again {
			c.DelTable(ct.table)
		}
		c.AddTable(ct.table)
		return ct.add(c)
	})
	if err == nil {
		err = withFlags(msgs, flags)
	}
	if err != nil {
		return err
	}
	// A table that exists must not just get more rules.
	newTable := 0
	if again {
		newTable = 1
	}
	msgs[newTable].Header.Flags |= netlink.Excl
	return s.commit(msgs)
}

// exists says whether create failed because there is such a table, which nobody else owns.
func exists(err error) bool { return refusedAt(err, 0, unix.EEXIST) }

// install puts the table in place, with nothing owned and no lease. One of the same name is replaced, behind a cover, so that it lets nothing through meanwhile.
func install(s *socket, ct, cover content, flags uint32) error {
	var err error
	for range 4 { // somebody else may make or delete it between two attempts
		if err = create(s, ct, flags, false); !exists(err) {
			break
		}
		if err = covered(s, cover, func() error { return create(s, ct, flags, true) }); !refusedAt(err, 0, unix.ENOENT) {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case refusedAt(err, 0, unix.EPERM):
		return fmt.Errorf("install nftables table %s: another process owns it, or no right to: %w", ct.table.Name, err)
	case refusedAt(err, 0, unix.ENOENT):
		return fmt.Errorf("install nftables table %s: somebody else makes and deletes it", ct.table.Name) // without err: ENOENT tells installBest of a missing module
	}
	return fmt.Errorf("install nftables table %s: %w", ct.table.Name, err)
}

// installBest installs with the best protection that the kernel knows, and says which. The chain for defragmentation is left out where the kernel cannot do it.
func installBest(s *socket, cfg Config, protect bool) (ct content, flags uint32, err error) {
	if protect {
		flags = protectedFlags
	}
	defragment := true
	for {
		if ct, err = build(cfg, defragment); err != nil {
			return ct, flags, err
		}
		beside := cfg
		beside.Table = coverTable(cfg.Table)
		cover, err := build(beside, defragment)
		if err != nil {
			return ct, flags, err
		}
		err = install(s, ct, cover, flags)
		switch {
		case err == nil:
			return ct, flags, nil
		case flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)):
			flags = 0
		case defragment && errors.Is(err, unix.ENOENT): // no module nft_tproxy
			cfg.Log.Warn("the kernel cannot defragment before the filter: fragmented datagrams will be dropped", "missing", "nft_tproxy")
			defragment = false
		default:
			return ct, flags, err
		}
	}
}

// InstallClosed installs the table closed and returns: for the time before a daemon runs. A table that a running daemon owns stays as it is, with an error.
func InstallClosed(cfg Config) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	_, _, err = installBest(s, cfg, false)
	return err
}

// Remove deletes the table, so that everything is accepted. A missing one is no error.
func Remove(table string) error {
	if table == "" {
		table = DefaultTable
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	// A cover may have been left behind where the kernel knows no owners.
	return errors.Join(deleteTable(s, table), deleteTable(s, coverTable(table)))
}
