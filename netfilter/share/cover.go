package share

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// coverTable names the table that stands beside one while that is replaced.
func coverTable(table string) string { return table + "-cover" }

// covered calls replace, which replaces the table, behind a cover: a second table with the same rules, closed, that neither begins nor ends together with the one that is replaced.
//
// One transaction that deletes a table and makes it anew lets packets through that are in the middle of it, some hundred replacements under a flood suffice. The hooks of a packet are those that
// were registered when it came (nf_hook_slow), and each base chain is judged by the rules of the moment in which the packet comes to it (nft_do_chain). So one packet passes by the new chain, which
// is empty still and in front (netfilter/core.c, nf_hook_entries_grow), and then by the old one, which is empty by then; another one came before the new chain was registered, and meets the old one alone.
func covered(s *socket, cover content, replace func() error) error {
	if err := putCover(s, cover); err != nil {
		return fmt.Errorf("cover nftables table: %w", err)
	}
	err := passBy() // what came before the cover was there is judged by the old table as a whole
	if err == nil {
		if err = replace(); err == nil {
			err = passBy() // what came before the new table was there is judged by the cover
		}
	}
	return errors.Join(err, deleteTable(s, cover.table.Name))
}

// putCover makes the cover. It belongs to the socket, so that it is gone with it, if the kernel knows owners (Linux 5.12). One that a process that was killed left behind elsewhere is replaced: the
// table behind it stands.
func putCover(s *socket, cover content) error {
	err := create(s, cover, flagOwner, false)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		err = create(s, cover, 0, false)
	}
	if exists(err) {
		err = create(s, cover, 0, true)
	}
	return err
}

// deleteTable deletes a table, if it is there.
func deleteTable(s *socket, name string) error {
	msgs, err := encode(func(c *nftables.Conn) error {
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.commit(msgs); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

// passBy waits until all packets have passed by that are on their way through the network stack: the kernel does so when a packet socket is closed (af_packet.c, packet_release: synchronize_net). It
// takes some 10 ms. membarrier(2) would wait as well, but not on hosts with nohz_full.
func passBy() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("wait for packets on their way by a packet socket: %w", err)
	}
	return nil
}
