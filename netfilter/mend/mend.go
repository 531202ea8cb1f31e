// Package mend keeps an nftables table right that somebody else may delete or change at any time, as "nft flush ruleset" does: it listens to the kernel's reports of changes, and
// has the table looked at and mended within milliseconds.
package mend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// pollInterval finds what events did not tell.
	pollInterval = 5 * time.Second
	// After an attempt that did not help, the next one waits, doubling from minBackoff to maxBackoff.
	minBackoff = 10 * time.Millisecond
	maxBackoff = time.Second
	// maxAttempts without success end Run: 10 + 20 + ... + 640 ms and then 1 s each, about 10 s.
	maxAttempts = 15
)

// Table is a table of the family inet that is looked after.
type Table struct {
	Name string
	// Namespace is a descriptor of the network namespace; 0: that of the caller's thread.
	Namespace int
	// Own is the netlink port of the socket whose changes are no reason to look; 0: all are.
	Own uint32
	// Mend looks at the table and puts it right. It says what was wrong; "": nothing. It must have looked again after it has changed the table: if the kernel should
	// show it in a way that is not understood, it must not be installed for ever.
	Mend func() (why string, err error)
	// OnMend is called with what was wrong after the table has been put right.
	OnMend func(why string)
}

// Run looks after the table until ctx ends, and then returns nil: at once, with each event, and every 5 seconds. It returns an error when it cannot listen, or when the table
// could not be put right for about 10 s.
func (t Table) Run(ctx context.Context) error {
	conn, err := t.listen()
	if err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	failed := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { failed <- t.receive(conn, events) })
	defer receiver.Wait()
	defer func() { _ = conn.Close() }() // ends receive

	s := steps{table: &t}
	for {
		wait, err := s.next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case err := <-failed:
			timer.Stop()
			return err
		case <-events:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// steps is how often in a row the table could not be put right.
type steps struct {
	table    *Table
	attempts int
}

// next looks at the table and mends it. It returns how long to wait for an event before the next step.
func (s *steps) next() (time.Duration, error) {
	why, err := s.table.Mend()
	if err == nil {
		s.attempts = 0
		if why != "" {
			s.table.OnMend(why)
		}
		return pollInterval, nil
	}
	if s.attempts++; s.attempts >= maxAttempts {
		return 0, fmt.Errorf("watch nftables table %s: %w", s.table.Name, err)
	}
	return min(minBackoff<<(s.attempts-1), maxBackoff), nil
}

// listen joins the group in which the kernel reports changes of nftables.
func (t Table) listen() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.Namespace})
	if err != nil {
		return nil, fmt.Errorf("open nftables events: %w", err)
	}
	// Large transactions come as one burst. Without the right to exceed the host's limit the default has to do: an overflow is reported, and leads to a look.
	_ = conn.SetReadBuffer(1 << 20)
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("join nftables events: %w", err)
	}
	return conn, nil
}

// receive puts a token into events when somebody has done something to the table, until conn is closed.
func (t Table) receive(conn *netlink.Conn, events chan<- struct{}) error {
	for {
		msgs, err := conn.Receive()
		relevant := errors.Is(err, unix.ENOBUFS) // events were lost: anything may have happened
		if err != nil && !relevant {
			return fmt.Errorf("receive nftables events: %w", err)
		}
		for _, m := range msgs {
			relevant = relevant || concerns(m, t.Name) && (t.Own == 0 || m.Header.PID != t.Own)
		}
		if relevant {
			select {
			case events <- struct{}{}:
			default: // a look is due anyhow
			}
		}
	}
}

// concerns says whether an event is about the table or something in it. google/nftables has a Monitor, but its filters lose events of deletion in v0.3.0.
func concerns(m netlink.Message, table string) bool {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	const header = 4 // struct nfgenmsg: family, version, resource id
	if m.Header.Type&^0xff != subsystem || m.Header.Type == subsystem|unix.NFT_MSG_NEWGEN ||
		len(m.Data) < header || m.Data[0] != byte(nftables.TableFamilyINet) {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return true // not understood: better one look too many
	}
	for ad.Next() {
		// 1 in all messages: NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, NFTA_OBJ_TABLE.
		if ad.Type() == unix.NFTA_TABLE_NAME {
			return ad.String() == table
		}
	}
	return false
}
