package share

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// defaultSlack is Config.Slack if it is 0.
const defaultSlack = 50 * time.Millisecond

// attempts is how often a lease is tried again because the fence had timed out. A host on which it always has is too slow to hold anything.
const attempts = 5

// ErrLapsed is returned when the lease has ended: nothing is accepted until Grant. The caller must find out first whether it may hold anything.
var ErrLapsed = errors.New("the lease has ended")

// The elements of lease and fence. Both families end together.
var (
	leaseKeys = bytesElements(unix.NFPROTO_IPV4, unix.NFPROTO_IPV6)
	fenceKeys = bytesElements(unix.NFPROTO_IPV4)
)

func timed(keys []nftables.SetElement, d time.Duration) []nftables.SetElement {
	var out []nftables.SetElement
	for _, k := range keys {
		out = append(out, nftables.SetElement{Key: k.Key, Timeout: d})
	}
	return out
}

// Grant gives the share a lease when there is none, or another one. remaining tells how long it lasts from the moment in which it is called, which is after the fence
// has been set: so a delay between the two and the kernel prolongs the lease by at most Config.Slack, or the lease is not given.
func (f *Filter) Grant(remaining func() time.Duration) error {
	return f.lease(remaining, false)
}

// Renew prolongs the lease, one period after the last renewal. A lease that has ended is not given again: ErrLapsed; the set of owned buckets then stays as it is. When remaining tells that
// nothing remains, the share is closed: ErrLapsed as well. With another error the lease is as it was; Renew may be called again.
//
// The clock is read, by remaining, no sooner than one period after the kernel has confirmed the renewal before. If Renew is called sooner, or the
// fence has timed out because it is called late, the fence is set again, by a transaction of its own, before the clock is read.
func (f *Filter) Renew(remaining func() time.Duration) error {
	return f.lease(remaining, true)
}

func (f *Filter) lease(remaining func() time.Duration, renew bool) error {
	done, err := f.use()
	if err != nil {
		return err
	}
	defer done()
	ready := renew && !f.fenced.IsZero() && time.Since(f.fenced) >= f.cfg.Period
	for range attempts {
		if !ready {
			if err := f.setFence(); err != nil {
				return fmt.Errorf("set the fence: %w", err)
			}
		}
		ready = false
		lasts := remaining().Truncate(time.Millisecond) // what the kernel takes; 0 would last for ever
		if lasts <= 0 {
			return errors.Join(ErrLapsed, f.closeShare())
		}
		f.fenced = time.Time{}
		switch err = f.setLease(lasts, renew); {
		case err == nil:
			f.fenced = time.Now()
			return nil
		case refusedAt(err, 0, unix.ENOENT): // the fence
		case renew && refusedAt(err, 1, unix.ENOENT):
			return ErrLapsed
		default:
			return fmt.Errorf("set the lease: %w", err)
		}
		// In a renewal the kernel names the fence first even if the lease has ended as well: then the next attempt finds that out.
	}
	return fmt.Errorf("set the lease: the fence timed out %d times: %w", attempts, err)
}

// setLease is the transaction whose first message fails if the fence has timed out, and its second, of a renewal, if the lease has.
func (f *Filter) setLease(lasts time.Duration, renew bool) error {
	lease, fence := f.content.set(setLease), f.content.set(setFence)
	return f.commit(func(c *nftables.Conn) error {
		err := c.SetDeleteElements(fence, fenceKeys)
		if renew {
			err = errors.Join(err, c.SetDeleteElements(lease, leaseKeys))
		} else {
			c.FlushSet(lease)
		}
		return errors.Join(err,
			c.SetAddElements(fence, timed(fenceKeys, f.cfg.Period+f.cfg.Slack)),
			c.SetAddElements(lease, timed(leaseKeys, lasts)))
	})
}

// setFence sets the fence for Config.Slack, whether there is one or not. An element that is there keeps its timeout when it is added again, so it is deleted.
func (f *Filter) setFence() error {
	f.fenced = time.Time{}
	fence := f.content.set(setFence)
	add := func(c *nftables.Conn) error { return c.SetAddElements(fence, timed(fenceKeys, f.cfg.Slack)) }
	err := f.commit(func(c *nftables.Conn) error { return errors.Join(c.SetDeleteElements(fence, fenceKeys), add(c)) })
	if refusedAt(err, 0, unix.ENOENT) {
		err = f.commit(add)
	}
	return err
}

// CloseShare closes everything at once: nothing is owned, and there is no lease. With an error it could not be made certain; the lease then ends by
// itself.
func (f *Filter) CloseShare() error {
	done, err := f.use()
	if err != nil {
		return err
	}
	defer done()
	return f.closeShare()
}

func (f *Filter) closeShare() error {
	f.fenced = time.Time{}
	err := f.commit(func(c *nftables.Conn) error {
		c.FlushSet(f.content.set(setLease))
		c.FlushSet(f.content.set(setFence))
		c.FlushSet(f.content.set(setOwned))
		return nil
	})
	// There are reports that a flush leaves elements (google/nftables #305).
	var st State
	if err == nil {
		err = f.listing().read(&st)
	}
	if err == nil && st.Lease == 0 && none(st.Owned) {
		f.owned, f.doubt = st.Owned, false
		return nil
	}
	if again := f.install(); again != nil {
		return fmt.Errorf("close the share: %w", errors.Join(err, again))
	}
	return nil
}

func none(set []uint64) bool {
	for _, w := range set {
		if w != 0 {
			return false
		}
	}
	return true
}
