package farm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a machine of the farm. Its methods may be used by several
// goroutines; PowerOff makes those that are under way return errors.
type Node struct {
	Name  string
	farm  *Farm
	role  Role
	index int
	dir   string // logs and captures

	mu     sync.Mutex
	anchor *anchorProcess // nil: switched off
	procs  []*Process
	lives  int // witnesses so far
}

// ErrOff is returned for a node that is switched off.
var ErrOff = errors.New("node is switched off")

func (f *Farm) newNode(r Role, name string, index int) *Node {
	return &Node{Name: name, farm: f, role: r, index: index, dir: filepath.Join(f.out, name)}
}

// boot starts the anchor: an empty machine without links.
func (n *Node) boot() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.anchor != nil {
		return fmt.Errorf("node %s is switched on already", n.Name)
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	a, err := startAnchor(n.Name)
	if err != nil {
		return err
	}
	n.anchor = a
	return nil
}

// PowerOn starts the node with its links and addresses and nothing else: no
// process, no service, no connection, as after a boot.
func (n *Node) PowerOn() error {
	if err := n.boot(); err != nil {
		return err
	}
	if before := n.farm.spec.BeforeLinks; before != nil && n.role == Director {
		if err := before(n); err != nil {
			return errors.Join(fmt.Errorf("node %s: %w", n.Name, err), n.PowerOff())
		}
	}
	if err := n.plug(); err != nil {
		return errors.Join(fmt.Errorf("node %s: %w", n.Name, err), n.PowerOff())
	}
	return nil
}

// PowerOff cuts the node's links and then kills all of its processes, so that
// nothing of it is heard any more: no reset, no farewell. It is nothing for a
// node that is off.
func (n *Node) PowerOff() error {
	n.mu.Lock()
	a, procs := n.anchor, n.procs
	n.anchor, n.procs = nil, nil
	n.mu.Unlock()
	if a == nil {
		return nil
	}
	err := n.cut()
	a.kill()
	for _, p := range procs {
		<-p.done
	}
	if err := errors.Join(err, n.unplug()); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// On tells whether the node is switched on.
func (n *Node) On() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.anchor != nil
}

// Pid is the process that holds the node's namespaces, for /proc/PID/...: the
// node's /run is /proc/PID/root/run, its connection table /proc/PID/net/ip_vs_conn.
func (n *Node) Pid() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.anchor == nil {
		return 0, fmt.Errorf("%s: %w", n.Name, ErrOff)
	}
	return n.anchor.pid(), nil
}

// Path returns where this process finds the node's file name, a control
// socket for instance.
func (n *Node) Path(name string) (string, error) {
	pid, err := n.Pid()
	if err != nil {
		return "", err
	}
	return filepath.Join("/proc", strconv.Itoa(pid), "root", name), nil
}

// ReadFile reads a file of the node.
func (n *Node) ReadFile(name string) ([]byte, error) {
	p, err := n.Path(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p)
}

// WriteFile writes a file of the node, with its folder.
func (n *Node) WriteFile(name string, text []byte, perm os.FileMode) error {
	p, err := n.Path(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, text, perm)
}

// Proc returns the folder that shows the node's network below net, fit for
// readers that take another /proc: /proc/PID/net/ip_vs_conn is the node's table.
func (n *Node) Proc() (string, error) {
	pid, err := n.Pid()
	if err != nil {
		return "", err
	}
	return filepath.Join("/proc", strconv.Itoa(pid)), nil
}

// Do runs fn in the node's network namespace, on a thread of its own. Sockets
// that fn makes stay in the node wherever they are used later; goroutines that
// it starts are not in the node. Files are those of the caller, except that
// /proc/sys/net and /proc/thread-self/net are the node's.
func (n *Node) Do(fn func() error) error {
	pid, err := n.Pid()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
	there.Close() // an open descriptor would keep the namespace after a PowerOff
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	defer func() {
		// A thread that cannot go back stays locked and dies with its goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// withNetlink gives fn a netlink handle in the node.
func (n *Node) withNetlink(fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", n.Name, err)
	}
	defer h.Close()
	return fn(h)
}

// Sysctl sets a value of the node's network; name is relative to /proc/sys,
// as in net/ipv4/vs/sync_threshold.
func (n *Node) Sysctl(name, value string) error {
	return n.Do(func() error {
		// O_CREATE would be refused by proc: no os.WriteFile.
		f, err := os.OpenFile(filepath.Join("/proc/sys", name), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("sysctl in %s: %w", n.Name, err)
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// ReadSysctl returns a value of the node's network, with single spaces.
func (n *Node) ReadSysctl(name string) (string, error) {
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	return strings.Join(strings.Fields(string(text)), " "), err
}
