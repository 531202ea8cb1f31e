// Package nstest runs tests in network namespaces of their own.
//
// It is for tests only. A test that cannot get its namespace fails; it is never skipped, because a test that
// silently did not run proves nothing.
//
// A namespace belongs to a thread, not to a goroutine: New locks the calling goroutine to its thread, and only what
// that goroutine does itself happens in the namespace. Sockets stay in the namespace in which they were opened, so a
// goroutine may use a socket that the test has opened. /proc/net follows the process's first thread; use
// /proc/thread-self/net in tests.
package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inUserNamespace marks the process that Main has started again as root of a user namespace.
const inUserNamespace = "SARU_NSTEST_USERNS"

// Main runs a package's tests, for use in TestMain. Without root rights it starts the test binary again as root of a new
// user namespace, which may make network namespaces too.
func Main(m *testing.M) {
	if os.Geteuid() == 0 || os.Getenv(inUserNamespace) != "" {
		os.Exit(m.Run())
	}
	// The flags are a test binary's own: the same ones are given again.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inUserNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root, or a user namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// NS is a network namespace.
type NS struct {
	handle netns.NsHandle
}

// New makes a network namespace with its loopback up and moves the calling goroutine into it, until the test ends.
func New(tb testing.TB) *NS {
	tb.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		tb.Fatalf("find own network namespace: %v", err)
	}
	ns, err := enterNew()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = ns.handle.Close()
		// A thread that cannot go back stays locked, so that the runtime ends it with the goroutine.
		if err := netns.Set(before); err != nil {
			tb.Errorf("return to the first network namespace: %v", err)
			return
		}
		_ = before.Close()
		runtime.UnlockOSThread()
	})
	return ns
}

// Other makes one more network namespace and stays in the present one. The caller must be in a namespace of New.
func Other(tb testing.TB) *NS {
	tb.Helper()
	here, err := netns.Get()
	if err != nil {
		tb.Fatalf("find own network namespace: %v", err)
	}
	defer func() { _ = here.Close() }()
	ns, err := enterNew()
	if err != nil {
		tb.Fatal(err)
	}
	if err := netns.Set(here); err != nil {
		tb.Fatalf("return to the test's network namespace: %v", err)
	}
	tb.Cleanup(func() { _ = ns.handle.Close() })
	return ns
}

// Do runs fn in the namespace, on the calling goroutine.
func (n *NS) Do(tb testing.TB, fn func()) {
	tb.Helper()
	here, err := netns.Get()
	if err != nil {
		tb.Fatalf("find own network namespace: %v", err)
	}
	defer func() { _ = here.Close() }()
	if err := netns.Set(n.handle); err != nil {
		tb.Fatalf("enter network namespace: %v", err)
	}
	defer func() {
		if err := netns.Set(here); err != nil {
			tb.Errorf("leave network namespace: %v", err)
		}
	}()
	fn()
}

// Veth makes a pair of Ethernet interfaces, one end in the present namespace, the other in peer, and brings both up.
// Addresses are in CIDR notation; they may be empty. IPv6 addresses come without duplicate address detection.
func Veth(tb testing.TB, name string, addrs []string, peer *NS, peerName string, peerAddrs []string) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.handle)}
	if err := netlink.LinkAdd(link); err != nil {
		tb.Fatalf("add veth %s: %v", name, err)
	}
	Up(tb, name, addrs...)
	peer.Do(tb, func() { Up(tb, peerName, peerAddrs...) })
}

// Bridge makes a bridge in the present namespace that floods multicast to every port, and brings it up.
func Bridge(tb testing.TB, name string) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false // nobody would query (RFC 4541 section 2.1.2)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		tb.Fatalf("add bridge %s: %v", name, err)
	}
	Up(tb, name)
}

// Plug makes a pair of Ethernet interfaces as Veth does, whose end in the present namespace is a port of a bridge.
func Plug(tb testing.TB, bridge, name string, peer *NS, peerName string, peerAddrs []string) {
	tb.Helper()
	Veth(tb, name, nil, peer, peerName, peerAddrs)
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		tb.Fatalf("find %s: %v", bridge, err)
	}
	port, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMaster(port, master)
	}
	if err != nil {
		tb.Fatalf("make %s a port of %s: %v", name, bridge, err)
	}
}

// Up gives an interface of the present namespace addresses and brings it up.
func Up(tb testing.TB, name string, addrs ...string) {
	tb.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		tb.Fatalf("find %s: %v", name, err)
	}
	// The link-local address is usable at once then.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			tb.Fatal(err)
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			tb.Fatalf("add %s to %s: %v", a, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		tb.Fatalf("bring %s up: %v", name, err)
	}
}

// enterNew makes a namespace and enters it.
func enterNew() (*NS, error) {
	h, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("make a network namespace (root or a user namespace is needed): %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	return &NS{handle: h}, nil
}

// Fd returns the namespace's descriptor, which belongs to the NS.
func (n *NS) Fd() int { return int(n.handle) }

// Go runs fn in the namespace, on a goroutine and a thread of its own; the thread ends with fn. The returned function
// waits for it.
func (n *NS) Go(tb testing.TB, fn func()) (wait func()) {
	tb.Helper()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime throws the thread away.
		runtime.LockOSThread()
		err := netns.Set(n.handle)
		if err == nil {
			fn()
		}
		done <- err
	}()
	return func() {
		tb.Helper()
		if err := <-done; err != nil {
			tb.Errorf("enter network namespace: %v", err)
		}
	}
}
