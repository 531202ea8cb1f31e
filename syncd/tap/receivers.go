package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// ErrNoThread says that no backup thread is there to take what is injected, which is lost.
var ErrNoThread = errors.New("the kernel's backup thread is not running")

// receivers knows which of the sockets of /proc/net/udp is the backup thread's. The file does not tell the device that a socket is bound to,
// and this process has sockets of the same group: those by which it hears the network, and a probe's.
type receivers struct {
	// own reports which sockets, by inode, are this process's, and not the thread's; nil: none is.
	own func() (map[uint64]bool, error)

	mu      sync.Mutex
	known   map[uint64]bool // by inode: whether it is the thread's
	present uint64          // sum of the inodes of the thread's sockets: an old one's may be there for a while beside the new one's
	drops   uint64          // of these sockets, the latest
	before  uint64          // of earlier ones, and one for each time that they changed
}

// queued is TUN.Queued.
func (r *receivers) queued(proc string) (queued, dropped uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sockets, err := groupSockets(proc)
	if err != nil {
		return 0, 0, err
	}
	for _, s := range sockets {
		if _, seen := r.known[s.inode]; !seen {
			if sockets, err = r.learn(proc); err != nil {
				return 0, 0, err
			}
			break
		}
	}
	present, found := uint64(0), false
	for _, s := range sockets {
		if r.known[s.inode] {
			found = true
			present += s.inode
			queued, dropped = max(queued, s.queued), max(dropped, s.drops)
		}
	}
	if !found {
		return 0, 0, ErrNoThread
	}
	if present != r.present && r.present != 0 {
		r.before += r.drops + 1
	}
	r.present, r.drops = present, dropped
	return queued, r.before + dropped, nil
}

// learn finds out whose sockets there are. It returns those of which it is known: whatever was there before and after the process's own ones
// were listed, and is not among them, is another's. What comes and goes meanwhile is a probe's.
func (r *receivers) learn(proc string) ([]procSocket, error) {
	before, err := groupSockets(proc)
	if err != nil {
		return nil, err
	}
	var own map[uint64]bool
	if r.own != nil {
		if own, err = r.own(); err != nil {
			return nil, err
		}
	}
	after, err := groupSockets(proc)
	if err != nil {
		return nil, err
	}
	there := map[uint64]bool{}
	for _, s := range before {
		there[s.inode] = true
	}
	r.known = map[uint64]bool{}
	var out []procSocket
	for _, s := range after {
		if there[s.inode] {
			r.known[s.inode] = !own[s.inode]
			out = append(out, s)
		}
	}
	return out, nil
}

// groupSockets returns root's and the kernel's sockets that receive what is sent to the group.
func groupSockets(proc string) (out []procSocket, err error) {
	err = readSockets(proc, func(s procSocket) bool {
		if s.local == group && s.uid == 0 {
			out = append(out, s)
		}
		return true
	})
	return out, err
}

// ownSockets returns the inodes of this process's sockets.
func ownSockets() (map[uint64]bool, error) {
	const dir = "/proc/self/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list own sockets: %w", err)
	}
	own := map[uint64]bool{}
	for _, fd := range fds {
		var inode uint64
		if target, err := os.Readlink(dir + "/" + fd.Name()); err == nil { // else it has been closed
			if _, err := fmt.Sscanf(target, "socket:[%d]", &inode); err == nil {
				own[inode] = true
			}
		}
	}
	return own, nil
}
