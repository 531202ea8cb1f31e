package scenarios

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/ipvs"
	"saru/netfilter/guard"
	"saru/proto/ipvssync"
)

// tapGuard is what syncd installs with its default options.
var tapGuard = guard.Config{
	Table: guard.DefaultTable, Device: "syncd0", Group: ipvssync.DefaultGroup(),
	Local: netip.MustParseAddr("169.254.81.1"), Peer: netip.MustParseAddr("169.254.81.2"), TickPort: ipvssync.Port,
}

// otherUser is argv[0] of a process that tries to forge sync messages without
// being root; nobody is who it runs as.
const (
	otherUser = "farm-other-user"
	nobody    = 1000
)

// beOtherUser does what such a process is told: a way to send, an address, and
// messages in hexadecimal. It returns false in any other process.
func beOtherUser() bool {
	if os.Args[0] != otherUser || len(os.Args) < 3 {
		return false
	}
	to, err := netip.ParseAddrPort(os.Args[2])
	if err != nil {
		fmt.Println(err)
		return true
	}
	if os.Args[1] == "tick" {
		d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{Port: tickIntruder}}
		_, err := d.Dial("tcp", to.String())
		fmt.Printf("uid %d: connect: %v\n", os.Getuid(), err)
		return true
	}
	sent := 0
	var refused error
	s, err := otherSocket(os.Args[1], to)
	for _, text := range os.Args[3:] {
		if err != nil {
			break
		}
		msg, bad := hex.DecodeString(text)
		if bad != nil {
			fmt.Println(bad)
			return true
		}
		if err := s.send(msg); err != nil {
			refused = err
		} else {
			sent++
		}
	}
	fmt.Printf("uid %d: sent %d of %d, open: %v, send: %v\n", os.Getuid(), sent, len(os.Args)-3, err, refused)
	return true
}

// userSocket sends to one address.
type userSocket struct {
	fd      int
	to      *unix.SockaddrInet4 // nil: connected
	control []byte
}

func (s userSocket) send(msg []byte) error {
	if s.to == nil {
		return unix.Send(s.fd, msg, 0)
	}
	return unix.Sendmsg(s.fd, msg, s.control, s.to, 0)
}

// otherSocket opens a UDP socket as any user may.
func otherSocket(way string, to netip.AddrPort) (s userSocket, err error) {
	if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, err
	}
	s.to = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	name := tapGuard.Device
	if way == "loopback" {
		name = "lo"
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return s, err
	}
	choose := func() error {
		return unix.SetsockoptIPMreqn(s.fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)})
	}
	switch way {
	case "unconnected", "loopback":
		return s, choose()
	case "connected":
		if err := choose(); err != nil {
			return s, err
		}
		err, s.to = unix.Connect(s.fd, s.to), nil
		return s, err
	case "bound to device":
		return s, unix.SetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name)
	case "packet info":
		s.control = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(link.Index)})
		return s, nil
	case "free bind":
		if err := choose(); err != nil {
			return s, err
		}
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
			return s, err
		}
		return s, unix.Bind(s.fd, &unix.SockaddrInet4{Addr: tapGuard.Peer.As4(), Port: ipvssync.Port})
	}
	return s, fmt.Errorf("no way %q", way)
}

// Ways in which the other user tries. Those that reach the kernel's backup
// thread where nothing guards the tap are marked.
var userWays = []struct {
	name   string
	works  bool
	to     netip.AddrPort
	reason string
}{
	{"unconnected", true, ipvssync.DefaultGroup(), "IP_MULTICAST_IF"},
	{"connected", true, ipvssync.DefaultGroup(), "IP_MULTICAST_IF, connect"},
	{"bound to device", true, ipvssync.DefaultGroup(), "SO_BINDTODEVICE"},
	{"packet info", true, ipvssync.DefaultGroup(), "IP_PKTINFO"},
	{"free bind", false, ipvssync.DefaultGroup(), "IP_FREEBIND to the peer's address"},
	{"loopback", false, ipvssync.DefaultGroup(), "on lo"},
	{"unconnected", false, netip.AddrPortFrom(tapGuard.Local, ipvssync.Port), "to the tap's address"},
	{"unconnected", false, netip.AddrPortFrom(tapGuard.Peer, ipvssync.Port), "to syncd's end of the tap"},
	{"tick", true, netip.AddrPortFrom(tapGuard.Local, ipvssync.Port), "TCP to the tick's service"},
}

// tickIntruder is the port from which the other user connects to the tick's
// service: not one of the tick's own.
const tickIntruder = 33333

// intruder is the client of the connection that is forged in a phase by a way.
func intruder(phase, way int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(phase), byte(way + 1)}), 4321)
}

func isIntruder(client netip.AddrPort) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51}), 16).Contains(client.Addr()) || client.Port() == tickIntruder
}

// stockMessage is a kernel's sync message with one record.
func stockMessage(t *testing.T, syncID uint8, r *ipvssync.Record) []byte {
	t.Helper()
	msg, err := ipvssync.AppendRecordV1(ipvssync.AppendHeaderV1(nil, syncID), 0, r)
	must(t, err)
	must(t, ipvssync.FinishV1(msg, 0, 1))
	return msg
}

// trespass runs a process of another user on the director for each way, and
// logs what it says.
func trespass(t *testing.T, d *farm.Node, phase int, real netip.Addr) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	for i, w := range userWays {
		r := ipvssync.Record{
			Protocol: unix.IPPROTO_TCP, State: ipvssync.TCPEstablished, Timeout: 900,
			Client: intruder(phase, i), Virtual: netip.AddrPortFrom(farm.VIP, natPort), Real: netip.AddrPortFrom(real, natPort),
		}
		args := []string{otherUser, w.name, w.to.String()}
		if w.name != "tick" {
			for id := range 256 { // the backup thread's syncid is not known to the user
				args = append(args, hex.EncodeToString(stockMessage(t, uint8(id), &r)))
			}
		}
		var out strings.Builder
		p, err := d.StartCmd(func(cmd *exec.Cmd) {
			cmd.Args = args
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		}, self)
		must(t, err)
		must(t, p.Wait())
		if !strings.Contains(out.String(), fmt.Sprint("uid ", nobody)) {
			t.Fatalf("process of another user: %s", out.String())
		}
		t.Logf("  %-40s %s", w.name+" ("+w.reason+")", strings.TrimSpace(out.String()))
	}
}

// allConns is the director's connection table with the tick's own.
func allConns(t *testing.T, d *farm.Node) (all []ipvs.ProcConn) {
	t.Helper()
	proc, err := d.Proc()
	must(t, err)
	for c, err := range ipvs.ReadConns(proc) {
		must(t, err)
		all = append(all, c)
	}
	return all
}

// intruders lists what the director's kernel has of the other user's forgeries.
func intruders(t *testing.T, d *farm.Node) (found []netip.AddrPort) {
	t.Helper()
	for range 3 { // what the kernel lists is no snapshot: it may miss one
		for _, c := range allConns(t, d) {
			if isIntruder(c.Client) {
				found = append(found, c.Client)
			}
		}
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	return slices.Compact(found)
}

// noIntruders fails if a replica has a forgery.
func noIntruders(t *testing.T, daemons ...*daemon) {
	t.Helper()
	for _, s := range daemons {
		for _, c := range s.connections(t) {
			if client, err := netip.ParseAddrPort(c.Client); err != nil || isIntruder(client) {
				t.Errorf("the replica of %s has %+v (%v)", s.node.Name, c, err)
			}
		}
	}
}

// fenceServices gives all directors a service at each director's own address, so
// that a scenario can make a connection at whichever it wants.
func fenceServices(t *testing.T, f *farm.Farm) {
	t.Helper()
	var b strings.Builder
	for _, d := range f.Directors {
		at := netip.AddrPortFrom(d.Addr(farm.Front), natPort)
		fmt.Fprintf(&b, "-A -u %v -s rr\n-a -u %v -r %v -m\n", at, at, netip.AddrPortFrom(f.RealServers[0].Addr(farm.Inside), natPort))
	}
	for _, d := range f.Directors {
		_, err := d.RunInput(b.String(), "ipvsadm", "-R")
		must(t, err)
	}
}

// fence makes a connection at one director and waits until it has reached the
// kernel of another one. Whatever was under way there before is then done with:
// messages do not overtake each other.
func fence(t *testing.T, f *farm.Farm, from, to *farm.Node) {
	t.Helper()
	client := sayUDP(t, f.Clients[0], netip.AddrPortFrom(from.Addr(farm.Front), natPort))
	eventually(t, readyLimit, func() string {
		if !slices.ContainsFunc(kernelConns(t, to), func(c ipvs.ProcConn) bool { return c.Client == client }) {
			return fmt.Sprintf("connection %v made at %s is not in the kernel of %s", client, from.Name, to.Name)
		}
		return ""
	})
}

// guarded asks whether the guard is whole.
func guarded(t *testing.T, d *farm.Node) (ok bool) {
	t.Helper()
	must(t, d.Do(func() (err error) {
		ok, err = guard.Check(tapGuard)
		return err
	}))
	return ok
}

// TestOtherUser: a process of another user on a director can give the kernel
// connections where nothing guards the tap, and cannot beside syncd. The guard
// is mended when somebody removes it.
func TestOtherUser(t *testing.T) {
	f := farm.New(t, basic)
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	fenceServices(t, f)
	must(t, f.Directors[0].TakeVIP())
	daemons := startSyncds(t, f.Directors)
	d1, d2 := f.Directors[0], f.Directors[1]
	real := f.RealServers[0].Addr(farm.Inside)

	t.Log("beside syncd, with its guard:")
	trespass(t, d1, 1, real)
	settled := func() {
		t.Helper()
		fence(t, f, d2, d1) // d1's tap and kernel have seen all that came before
		fence(t, f, d1, d2)
		noIntruders(t, daemons...)
		if found := intruders(t, d2); len(found) > 0 {
			t.Errorf("forged connections have come to the other director: %v", found)
		}
	}
	settled()
	if found := intruders(t, d1); len(found) > 0 {
		t.Errorf("forged connections are in the kernel: %v", found)
	}
	out, err := d1.Run("nft", "list", "chain", "inet", guard.DefaultTable, "output")
	must(t, err)
	t.Logf("nothing is in kernel and replica of both directors; the guard has counted:\n%s", out)

	t.Log("the same without the guard (syncd stopped by SIGSTOP, its nft table deleted):")
	must(t, daemons[0].Signal(unix.SIGSTOP))
	_, err = d1.Run("nft", "delete", "table", "inet", guard.DefaultTable)
	must(t, err)
	trespass(t, d1, 2, real)
	want := []netip.AddrPort{netip.AddrPortFrom(tapGuard.Local, tickIntruder)}
	for i, w := range userWays {
		if w.works && w.name != "tick" {
			want = append(want, intruder(2, i))
		}
	}
	slices.SortFunc(want, netip.AddrPort.Compare)
	var found []netip.AddrPort
	eventually(t, readyLimit, func() string {
		if found = intruders(t, d1); !slices.Equal(found, want) {
			return fmt.Sprintf("without the guard the kernel has forged connections %v, want %v", found, want)
		}
		return ""
	})
	t.Logf("the kernel has the forged connections %v", found)
	must(t, daemons[0].Signal(unix.SIGCONT))
	eventually(t, readyLimit, func() string {
		if !guarded(t, d1) {
			return "the guard is not mended"
		}
		return ""
	})
	for i, s := range daemons {
		s.waitPeers(t, f.Directors[1-i].Name)
	}
	before := len(intruders(t, d1))
	t.Log("with the guard that syncd has put back:")
	trespass(t, d1, 3, real)
	settled()
	// The intruder at the tick's service may have expired, but nobody has come.
	if found := intruders(t, d1); len(found) > before || slices.ContainsFunc(found, func(a netip.AddrPort) bool { return a.Addr().As4()[2] == 3 }) {
		t.Errorf("forged connections are in the kernel after the guard was put back: %v", found)
	}

	var took []time.Duration
	for range 5 {
		var d time.Duration
		must(t, d1.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.FlushRuleset()
			began := time.Now()
			if err := c.Flush(); err != nil {
				return err
			}
			for time.Since(began) < readyLimit {
				ok, err := guard.Check(tapGuard)
				if err != nil {
					return err
				}
				if d = time.Since(began); ok {
					return nil
				}
			}
			return fmt.Errorf("the guard is not mended after %v", d)
		}))
		took = append(took, d.Round(100*time.Microsecond))
	}
	t.Logf("after `flush ruleset` the guard is whole again within %v", took)
	// Found by polling it would have taken up to 5 s.
	if slices.Sort(took); took[len(took)/2] > time.Second {
		t.Errorf("mending takes %v", took)
	}
	_, err = d1.Run("nft", "flush", "ruleset")
	must(t, err)
	eventually(t, readyLimit, func() string {
		if !guarded(t, d1) {
			return "the guard is not mended after nft flush ruleset"
		}
		return ""
	})
	settled()
	for _, s := range daemons {
		s.stopSyncd(t)
	}
}
