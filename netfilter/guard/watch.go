package guard

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
	// maxAttempts without success end Watch: 10 + 20 + ... + 640 ms and then 1 s each, about 10 s.
	maxAttempts = 15
)

// Watch looks after the table until ctx ends, and then returns nil. It installs it at once when it is missing, and
// again within milliseconds after somebody has deleted or changed it, as "nft flush ruleset" does. Each time it calls
// onMend with what had happened, after the table is right again. It returns an error when it cannot listen, or when the
// table could not be put right for about 10 s.
func Watch(ctx context.Context, cfg Config, onMend func(why string)) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	conn, err := listen()
	if err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	var reader sync.WaitGroup
	failed := make(chan error, 1)
	reader.Go(func() { failed <- receive(conn, cfg.Table, events) })
	defer reader.Wait()
	defer func() { _ = conn.Close() }() // ends receive

	w := watcher{cfg: cfg, onMend: onMend}
	for {
		wait, err := w.step()
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

// watcher is the state of Watch.
type watcher struct {
	cfg      Config
	onMend   func(string)
	attempts int
}

// step checks the table and mends it. It returns how long to wait for an event before the next step.
func (w *watcher) step() (time.Duration, error) {
	why, err := inspect(w.cfg)
	if err == nil && why == "" {
		w.attempts = 0
		return pollInterval, nil
	}
	if err == nil {
		err = w.mend(why)
	}
	if err == nil {
		w.attempts = 0
		w.onMend(why)
		return pollInterval, nil
	}
	if w.attempts++; w.attempts >= maxAttempts {
		return 0, fmt.Errorf("guard the tap: %w", err)
	}
	return min(minBackoff<<(w.attempts-1), maxBackoff), nil
}

// mend installs the table and reads it back: if the kernel should show it in a way that Check does not know, Watch must not
// install it for ever.
func (w *watcher) mend(why string) error {
	if err := install(w.cfg); err != nil {
		return fmt.Errorf("%s: %w", why, err)
	}
	still, err := inspect(w.cfg)
	if err != nil {
		return err
	}
	if still != "" {
		return fmt.Errorf("right after it was installed: %s", still)
	}
	return nil
}

// listen joins the group in which the kernel reports changes of nftables.
func listen() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nftables events: %w", err)
	}
	// Large transactions of others come as one burst. Without the right to exceed the host's limit the default has to do:
	// an overflow is reported, and leads to a check.
	_ = conn.SetReadBuffer(1 << 20)
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("join nftables events: %w", err)
	}
	return conn, nil
}

// receive puts a token into events when something has happened to the table, until conn is closed.
func receive(conn *netlink.Conn, table string, events chan<- struct{}) error {
	for {
		msgs, err := conn.Receive()
		relevant := errors.Is(err, unix.ENOBUFS) // events were lost: anything may have happened
		if err != nil && !relevant {
			return fmt.Errorf("receive nftables events: %w", err)
		}
		for _, m := range msgs {
			relevant = relevant || concerns(m, table)
		}
		if relevant {
			select {
			case events <- struct{}{}:
			default: // a check is due anyhow
			}
		}
	}
}

// concerns says whether an event is about the table, a chain or a rule of it. google/nftables has a Monitor, but its
// filters lose events of deletion in v0.3.0.
func concerns(m netlink.Message, table string) bool {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	switch m.Header.Type {
	case subsystem | unix.NFT_MSG_NEWTABLE, subsystem | unix.NFT_MSG_DELTABLE,
		subsystem | unix.NFT_MSG_NEWCHAIN, subsystem | unix.NFT_MSG_DELCHAIN,
		subsystem | unix.NFT_MSG_NEWRULE, subsystem | unix.NFT_MSG_DELRULE:
	default:
		return false
	}
	const header = 4 // struct nfgenmsg: family, version, resource id
	if len(m.Data) < header || m.Data[0] != byte(nftables.TableFamilyINet) {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return true // not understood: better one check too many
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME { // 1, as NFTA_CHAIN_TABLE and NFTA_RULE_TABLE
			return ad.String() == table
		}
	}
	return false
}
