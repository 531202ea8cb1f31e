package share

import (
	"context"
	"errors"
	"fmt"

	"saru/netfilter/mend"
)

// Watch looks after the table until ctx ends, and then returns nil. When somebody has deleted or changed the table, as "nft flush ruleset" does on kernels that cannot
// protect it, it installs the table anew, closed, within milliseconds, and then calls onMend with what had happened: nothing is owned then, and there is no lease; the caller
// applies and grants again. It returns an error when it cannot listen, or when the table could not be put right for about 10 s.
func (f *Filter) Watch(ctx context.Context, onMend func(why string)) error {
	f.mu.Lock()
	t := mend.Table{Name: f.cfg.Table, Namespace: f.namespace, Own: f.sock.pid, Mend: f.mend, OnMend: onMend}
	f.mu.Unlock()
	return t.Run(ctx)
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
		if real, err := f.listing().owned(); err == nil {
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
