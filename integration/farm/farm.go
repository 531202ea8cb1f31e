package farm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// Segment names an Ethernet segment; nodes call their interface to it by the
// same name.
type Segment string

// The segments of a farm.
const (
	Front  Segment = "front"  // clients and directors, and real servers that answer clients directly (DR)
	Inside Segment = "inside" // directors and real servers
	Sync   Segment = "sync"   // directors only, optional
)

// Method is a forwarding method of IPVS, as ipvsadm spells it.
type Method string

// The forwarding methods.
const (
	NAT Method = "-m"
	DR  Method = "-g"
	TUN Method = "-i"
)

// Role is what a node is for.
type Role int

// The roles.
const (
	Director Role = iota
	RealServer
	Client
	hub // carries the bridges
)

// Spec describes a farm.
type Spec struct {
	Name                            string // folder of the logs; default "farm"
	Directors, RealServers, Clients int
	SyncSegment                     bool // a segment of their own for the directors
	DirectReturn                    bool // real servers have a link to Front and the VIP on lo, for DR
	SharedMAC                       bool // all directors have the virtual addresses, and one MAC address on Front and on Inside
	// BeforeLinks is done to a director that is switched on, before it has any link: what a machine does at boot before its network comes up.
	BeforeLinks func(*Node) error
	Out         string // folder for logs and captures; default $LAB_OUT, else a temporary folder
}

// Addresses that every farm uses. Each segment is 10.0.N.0/24 and fd00:N::/64.
var (
	VIP      = netip.MustParseAddr("10.0.1.100")
	VIP6     = netip.MustParseAddr("fd00:1::100")
	Gateway  = netip.MustParseAddr("10.0.2.254") // inside address that moves with the VIP: the real servers' way out
	Gateway6 = netip.MustParseAddr("fd00:2::fe")
)

// segmentNumber is N of a segment's addresses.
var segmentNumber = map[Segment]byte{Front: 1, Inside: 2, Sync: 3}

// roleBase is the host number of a role's first node.
var roleBase = map[Role]byte{Director: 1, RealServer: 51, Client: 151}

// Farm is a farm that runs.
type Farm struct {
	spec Spec
	out  string
	hub  *Node

	Directors, RealServers, Clients []*Node
}

// Start builds the farm. Close it also when a test fails.
func Start(spec Spec) (f *Farm, err error) {
	if spec.Name == "" {
		spec.Name = "farm"
	}
	f = &Farm{spec: spec}
	if f.out, err = outFolder(spec); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			f = nil
		}
	}()
	f.hub = f.newNode(hub, "hub", 0)
	if err := f.hub.boot(); err != nil {
		return f, err
	}
	segments := []Segment{Front, Inside}
	if spec.SyncSegment {
		segments = append(segments, Sync)
	}
	for _, s := range segments {
		if err := f.hub.addBridge(s); err != nil {
			return f, err
		}
	}
	for _, part := range []struct {
		role   Role
		prefix string
		count  int
		list   *[]*Node
	}{{Director, "d", spec.Directors, &f.Directors}, {RealServer, "r", spec.RealServers, &f.RealServers}, {Client, "c", spec.Clients, &f.Clients}} {
		for i := range part.count {
			*part.list = append(*part.list, f.newNode(part.role, fmt.Sprintf("%s%d", part.prefix, i+1), i))
		}
	}
	// Starting the anchors is most of the work; two CPUs can share it.
	var wg sync.WaitGroup
	errs := make([]error, len(f.Nodes()))
	for i, n := range f.Nodes() {
		wg.Go(func() { errs[i] = n.PowerOn() })
	}
	wg.Wait()
	return f, errors.Join(errs...)
}

// Nodes lists directors, real servers and clients.
func (f *Farm) Nodes() []*Node { return slices.Concat(f.Directors, f.RealServers, f.Clients) }

// Out is the folder of logs and captures.
func (f *Farm) Out() string { return f.out }

// Close switches every node off. What they wrote to the log folder stays.
func (f *Farm) Close() error {
	var errs []error
	for _, n := range f.Nodes() {
		errs = append(errs, n.PowerOff())
	}
	if f.hub != nil {
		errs = append(errs, f.hub.PowerOff())
	}
	return errors.Join(errs...)
}

// TB is what New needs of a *testing.T.
type TB interface {
	Helper()
	Name() string
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// New starts a farm for a test and closes it at its end. When the test fails,
// the ends of the directors' logs are shown and the folder is named.
func New(tb TB, spec Spec) *Farm {
	tb.Helper()
	if spec.Name == "" {
		spec.Name = filepath.Clean(tb.Name())
	}
	f, err := Start(spec)
	if err != nil {
		tb.Fatalf("start farm: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			f.showLogs(tb)
		}
		if err := f.Close(); err != nil {
			tb.Errorf("close farm: %v", err)
		}
	})
	return f
}

// showLogs prints the end of each director's logs.
func (f *Farm) showLogs(tb TB) {
	const last = 4096
	for _, n := range f.Directors {
		logs, err := filepath.Glob(filepath.Join(n.dir, "*.log"))
		if err != nil {
			continue
		}
		for _, l := range logs {
			text, err := os.ReadFile(l)
			if err == nil && len(text) > 0 {
				tb.Logf("--- %s of %s\n%s", filepath.Base(l), n.Name, text[max(0, len(text)-last):])
			}
		}
	}
	tb.Logf("all logs: %s (labrun copies them to out/)", f.out)
}

func outFolder(spec Spec) (string, error) {
	base := spec.Out
	if base == "" {
		base = os.Getenv("LAB_OUT")
	}
	if base == "" {
		base = filepath.Join(os.TempDir(), "saru-farm")
	}
	dir := filepath.Join(base, spec.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("log folder: %w", err)
	}
	return dir, nil
}

// address returns the node's addresses on a segment.
func address(s Segment, r Role, index int) (v4, v6 netip.Addr) {
	net, host := segmentNumber[s], roleBase[r]+byte(index)
	v4 = netip.AddrFrom4([4]byte{10, 0, net, host})
	v6 = netip.AddrFrom16([16]byte{0: 0xfd, 3: net, 15: host})
	return v4, v6
}

// mac returns the node's address on a segment: the same after each PowerOn.
func mac(s Segment, r Role, index int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0, 0, segmentNumber[s], byte(r), byte(index + 1)}
}

// addBridge makes the bridge of a segment in the hub.
func (n *Node) addBridge(s Segment) error {
	return n.withNetlink(func(h *netlink.Handle) error {
		off := false
		ageing := uint32(0) // forget every station at once: all frames are flooded
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: string(s)}, MulticastSnooping: &off, AgeingTime: &ageing}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("bridge %s: %w", s, err)
		}
		if err := h.LinkSetUp(br); err != nil {
			return fmt.Errorf("bridge %s: %w", s, err)
		}
		return nil
	})
}
