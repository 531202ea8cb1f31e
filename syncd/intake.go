package syncd

import (
	"sync"
	"time"

	"saru/syncd/engine"
)

// intake is the account of what was injected and did not come into the kernel: an injection failed, the backup thread's receive buffer had
// no room, no thread was there, or a firewall drops it all. Until that was made good, and until it is known that no firewall does, nothing is
// confirmed, and this director does not call itself synced.
type intake struct {
	mu      sync.Mutex
	losses  uint64 // how often something was lost
	mended  uint64 // how many of them, the first, were made good
	dropped uint64 // the kernel's count when it was last looked at
	known   bool   // it has been looked at
	blocked bool   // a firewall drops everything
	unknown bool   // it has yet to be found out whether one does
}

// lose says that something that was injected is lost.
func (i *intake) lose() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.losses++
}

// look takes what Tap.Queued says.
func (i *intake) look(dropped uint64, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil || i.known && dropped != i.dropped {
		i.losses++
	}
	if err == nil {
		i.dropped, i.known = dropped, true
	}
}

// lost returns how often something was lost, to be given to mend, and whether any of it is still to be made good.
func (i *intake) lost() (losses uint64, open bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.losses, i.unknown || i.blocked || i.mended < i.losses
}

// mend says that the first so many losses are made good as soon as the kernel has entered what is waiting for it.
func (i *intake) mend(losses uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mended = max(i.mended, losses)
}

// block says whether a firewall drops everything.
func (i *intake) block(is bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.blocked = is
}

// probe says that it is to be found out whether a firewall drops everything, or that it has been.
func (i *intake) probe(unknown bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.unknown = unknown
}

// isBlocked reports what block last said.
func (i *intake) isBlocked() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.blocked
}

// reachable reports whether no firewall drops everything, as far as is known.
func (i *intake) reachable() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.unknown && !i.blocked
}

// overflowed looks at the kernel's count and reports whether anything that the kernel could be given now is still to be made good.
func (m *Mirrorer) overflowed() bool {
	_, dropped, err := m.tap.Queued()
	m.intake.look(dropped, err)
	_, open := m.intake.lost()
	return err == nil && open && m.intake.reachable()
}

// reinjectPause is how long after everything was injected again it is not done once more: that may be a million entries, and if
// injections go on failing it helps nobody.
const reinjectPause = 10 * time.Second

// reinject makes good whatever was lost by injecting everything again, and reports whether it does: not while it is at it already, or it
// would never come to an end, and not too soon. The engine confirms nothing before it has come to an end.
func (m *Mirrorer) reinject() (begins bool) {
	m.With(func(e *engine.Engine) {
		now := time.Now()
		if e.Reinjecting() || now.Sub(m.reinjected) < reinjectPause {
			return
		}
		m.reinjected, begins = now, true
		losses, _ := m.intake.lost()
		e.Reinject()
		m.intake.mend(losses)
	})
	return begins
}
