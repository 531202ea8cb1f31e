package share

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

// Watch looks after the table until ctx ends, and then returns nil. When somebody has deleted or changed the table, as "nft flush ruleset" does on kernels that cannot
// protect it, it installs the table anew, closed, within milliseconds, and then calls onMend with what had happened: nothing is owned then, and there is no lease; the caller
// applies and grants again. It returns an error when it cannot listen, or when the table could not be put right for about 10 s.
func (f *Filter) Watch(ctx context.Context, onMend func(why string)) error {
	conn, err := f.listen()
	if err != nil {
		return err
	}
	f.mu.Lock()
	name, own := f.cfg.Table, f.sock.pid
	f.mu.Unlock()
	events := make(chan struct{}, 1)
	failed := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { failed <- receive(conn, name, own, events) })
	defer receiver.Wait()
	defer func() { _ = conn.Close() }() // ends receive

	w := watcher{f: f, table: name, onMend: onMend}
	for {
		wait, err := w.step()
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

type watcher struct {
	f        *Filter
	table    string
	onMend   func(string)
	attempts int
}

// step looks at the table and mends it. It returns how long to wait for an event before the next step.
func (w *watcher) step() (time.Duration, error) {
	why, err := w.f.mend()
	if err == nil {
		w.attempts = 0
		if why != "" {
			w.onMend(why)
		}
		return pollInterval, nil
	}
	if w.attempts++; w.attempts >= maxAttempts {
		return 0, fmt.Errorf("watch nftables table %s: %w", w.table, err)
	}
	return min(minBackoff<<(w.attempts-1), maxBackoff), nil
}

// want returns what the table should be now.
func (f *Filter) want() (desired, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wantLocked()
}

func (f *Filter) wantLocked() (desired, error) {
	d := desired{content: f.content, flags: f.flags, owned: f.owned, changes: f.changes}
	switch {
	case f.closed:
		return d, errors.New("the filter is closed")
	case f.doubt:
		// When it cannot be read, the table is missing, for instance: that is found when it is looked at.
		if real, err := f.readOwned(); err == nil {
			d.owned = real
		}
	}
	return d, nil
}

// mend looks at the table, and replaces it if it is not right. It says what was wrong.
func (f *Filter) mend() (why string, err error) {
	want, err := f.want()
	if err != nil {
		return "", err
	}
	// Without the lock: renewals must not wait for listings.
	if why, err = inspect(f.namespace, want); why == "" && err == nil {
		return "", nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if want, err = f.wantLocked(); err != nil {
		return "", err
	}
	if why, err = inspect(f.namespace, want); why == "" {
		return "", err
	}
	if err := f.install(); err != nil {
		return "", fmt.Errorf("%s: %w", why, err)
	}
	if want, err = f.wantLocked(); err != nil {
		return "", err
	}
	still, err := inspect(f.namespace, want)
	if err != nil {
		return "", err
	}
	if still != "" { // it must not be installed for ever
		return "", fmt.Errorf("right after it was installed: %s", still)
	}
	return why, nil
}

// listen joins the group in which the kernel reports changes of nftables.
func (f *Filter) listen() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: f.namespace})
	if err != nil {
		return nil, fmt.Errorf("open nftables events: %w", err)
	}
	// Large transactions come as one burst. Without the right to exceed the host's limit the default has to do: an overflow is reported, and leads to a check.
	_ = conn.SetReadBuffer(1 << 20)
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("join nftables events: %w", err)
	}
	return conn, nil
}

// receive puts a token into events when somebody else than the socket own has done something to the table, until conn is closed.
func receive(conn *netlink.Conn, table string, own uint32, events chan<- struct{}) error {
	for {
		msgs, err := conn.Receive()
		relevant := errors.Is(err, unix.ENOBUFS) // events were lost: anything may have happened
		if err != nil && !relevant {
			return fmt.Errorf("receive nftables events: %w", err)
		}
		for _, m := range msgs {
			relevant = relevant || concerns(m, table) && m.Header.PID != own
		}
		if relevant {
			select {
			case events <- struct{}{}:
			default: // a check is due anyhow
			}
		}
	}
}

// concerns says whether an event is about the table or something in it.
func concerns(m netlink.Message, table string) bool {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	const header = 4 // struct nfgenmsg: family, version, resource id
	if m.Header.Type&^0xff != subsystem || m.Header.Type == subsystem|unix.NFT_MSG_NEWGEN ||
		len(m.Data) < header || m.Data[0] != byte(nftables.TableFamilyINet) {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return true // not understood: better one check too many
	}
	for ad.Next() {
		// 1 in all messages: NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, NFTA_OBJ_TABLE.
		if ad.Type() == unix.NFTA_TABLE_NAME {
			return ad.String() == table
		}
	}
	return false
}
