package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/tun"
	"saru/lib/tun/nstest"
)

// world is a director with a tap, and a host outside.
type world struct {
	t       *testing.T
	dev     *tun.Device
	outside *nstest.NS
	group   int // a socket as the kernel's backup thread has it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nstest.New(t)
	w := &world{t: t, outside: nstest.Other(t)}
	nstest.Veth(t, "in0", []string{"10.9.0.1/24"}, w.outside, "out0", []string{"10.9.0.2/24"})
	cfg := testConfig()
	dev, err := tun.Open(tun.Config{Name: cfg.Device, Local: cfg.Local, Peer: cfg.Peer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	w.dev = dev
	// The worst case: a director that forwards, without reverse path filter, with connection tracking.
	w.sysctl("net/ipv4/ip_forward", "1")
	w.sysctl("net/ipv4/conf/all/rp_filter", "0")
	w.sysctl("net/ipv4/conf/"+cfg.Device+"/rp_filter", "0")
	nft(t, "add table inet track; add counter inet track fresh; add chain inet track in { type filter hook input priority 10; };"+
		"add rule inet track in iifname syncd0 ct state new counter name fresh")
	w.group = w.listen(cfg.Group)
	w.outside.Do(t, func() { run(t, "ip", "route", "add", "169.254.81.0/24", "via", "10.9.0.1") })
	return w
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (w *world) sysctl(name, value string) {
	w.t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		w.t.Fatal(err)
	}
}

// listen returns a UDP socket with a receive time limit; for a group it is a member on the tap.
func (w *world) listen(at netip.AddrPort) int {
	w.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Close(fd) })
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}),
	)
	if err == nil && at.Addr().IsMulticast() {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: at.Addr().As4(), Ifindex: int32(w.dev.Index())})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return fd
}

// got says whether the socket receives the text within its time limit.
func (w *world) got(fd int, text string) bool {
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return false
		}
		if string(buf[:n]) == text {
			return true
		}
	}
}

// onTap says whether a packet comes out of the tap of which find approves.
func (w *world) onTap(find func(pkt []byte) bool) bool {
	buf := make([]byte, 65536)
	_ = w.dev.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	for {
		n, err := w.dev.Read(buf)
		if err != nil {
			return false
		}
		if n >= 20 && buf[0]>>4 == 4 && find(buf[:n]) {
			return true
		}
	}
}

func (w *world) textOnTap(text string) bool {
	return w.onTap(func(pkt []byte) bool { return strings.HasSuffix(string(pkt), text) })
}

// write puts a packet into the tap, as syncd does.
func (w *world) write(pkt []byte) {
	w.t.Helper()
	if _, err := w.dev.Write(pkt); err != nil {
		w.t.Fatal(err)
	}
}

// root sends a datagram from a socket of root.
func (w *world) root(to, text string) error { return send(to, text) }

// user sends a datagram as a user who is nobody.
func (w *world) user(to, text string) error {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), senderEnv+"="+to+" "+text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitEPERM {
		return unix.EPERM
	}
	if err != nil {
		w.t.Fatalf("send as another user (this test needs real root): %v\n%s", err, out)
	}
	return nil
}

const (
	senderEnv = "SARU_GUARD_TEST_SENDER"
	exitEPERM = 77
)

// sendAsUser is what the test binary does when it is started by user.
func sendAsUser(spec string) int {
	to, text, _ := strings.Cut(spec, " ")
	err := send(to, text)
	if errors.Is(err, unix.EPERM) {
		return exitEPERM
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// send sends a datagram, multicast over the tap.
func send(to, text string) error {
	dst := netip.MustParseAddrPort(to)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if dst.Addr().IsMulticast() {
		if err := unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, testConfig().Local.As4()); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, []byte(text), 0, &unix.SockaddrInet4{Addr: dst.Addr().As4(), Port: int(dst.Port())})
}

// packet makes an IPv4 packet around a UDP or TCP segment.
func packet(from, to string, protocol byte, segment []byte) []byte {
	f, d := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	binary.BigEndian.PutUint16(segment, f.Port())
	binary.BigEndian.PutUint16(segment[2:], d.Port())
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
	b = append(append(b, f.Addr().AsSlice()...), d.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(segment)))
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	if protocol == unix.IPPROTO_TCP {
		pseudo := slices.Concat(b[12:20], []byte{0, protocol}, binary.BigEndian.AppendUint16(nil, uint16(len(segment))), segment)
		binary.BigEndian.PutUint16(segment[16:], checksum(pseudo))
	}
	return append(b, segment...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func udp(from, to, text string) []byte {
	seg := append(make([]byte, 8), text...)
	binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)))
	return packet(from, to, unix.IPPROTO_UDP, seg)
}

func syn(from, to string) []byte {
	seg := make([]byte, 20)
	seg[7], seg[12], seg[13], seg[14] = 1, 5<<4, 0x02, 0xff
	return packet(from, to, unix.IPPROTO_TCP, seg)
}

// resets says whether the kernel answers on the tap with a TCP reset, which it does for a port without a listener.
func (w *world) resets(port uint16) bool {
	return w.onTap(func(pkt []byte) bool {
		return len(pkt) >= 40 && pkt[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(pkt[20:]) == port && pkt[33]&0x04 != 0
	})
}

var packets = regexp.MustCompile(`packets (\d+)`)

// tracked is the number of packets from the tap that began an entry of connection tracking. (The number of entries is
// no measure: a reset ends one at once.)
func (w *world) tracked() int {
	w.t.Helper()
	m := packets.FindStringSubmatch(nft(w.t, "list", "counter", "inet", "track", "fresh"))
	if m == nil {
		w.t.Fatal("nft shows no counter")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// observe does everything that the guard is about, and says what went through.
func (w *world) observe() map[string]bool {
	t := w.t
	t.Helper()
	const (
		group, otherGroup = "224.0.0.81:8848", "224.0.0.82:8848"
		peer, local, tick = "169.254.81.2:5555", "169.254.81.1:7777", "169.254.81.1:8849"
	)
	got := map[string]bool{}
	localSocket := w.listen(netip.MustParseAddrPort(local))
	otherSocket := w.listen(netip.MustParseAddrPort(otherGroup))

	// Forgery by local users.
	err := w.user(group, "forged by user")
	got["user may send to the group on the tap"] = err == nil
	got["user's datagram is read from the tap"] = w.textOnTap("forged by user")
	got["user's datagram is looped to the kernel's thread"] = w.got(w.group, "forged by user")
	got["user may send to the peer"] = w.user(peer, "to peer") == nil
	got["user may use the tick's service"] = w.user(local, "user to local") == nil
	if err := w.root(group, "sent by root"); err != nil {
		t.Fatal(err)
	}
	got["root's datagram is read from the tap"] = w.textOnTap("sent by root")
	got["root's datagram is looped to the kernel's thread"] = w.got(w.group, "sent by root")

	// What syncd writes.
	before := w.tracked()
	w.write(udp(peer, group, "from syncd"))
	got["syncd's datagram arrives"] = w.got(w.group, "from syncd")
	got["syncd's datagram is tracked"] = w.tracked() > before
	before = w.tracked()
	w.write(syn(peer, tick))
	got["the tick arrives and the kernel's answer leaves"] = w.resets(8849)
	got["the tick is tracked"] = w.tracked() > before

	// What nobody should be able to write, or what would be a mistake.
	w.write(udp("10.1.2.3:5555", group, "other source"))
	got["a datagram from another source arrives"] = w.got(w.group, "other source")
	w.write(udp(peer, otherGroup, "other group"))
	got["another group arrives"] = w.got(otherSocket, "other group")
	w.write(udp(peer, local, "other port"))
	got["another port arrives"] = w.got(localSocket, "other port")
	w.write(syn(peer, "169.254.81.1:22"))
	got["another TCP port answers"] = w.resets(22)
	outsideSocket := -1
	w.outside.Do(t, func() { outsideSocket = w.listen(netip.MustParseAddrPort("10.9.0.2:9999")) })
	w.write(udp(peer, "10.9.0.2:9999", "out of the tap"))
	got["the tap is forwarded to the outside"] = w.got(outsideSocket, "out of the tap")

	// From outside.
	w.outside.Do(t, func() {
		for _, to := range []string{peer, local, "10.9.0.1:7778"} {
			c, err := net.Dial("udp4", to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("outside to " + to)); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		}
	})
	got["outside is forwarded into the tap"] = w.textOnTap("outside to " + peer)
	got["outside reaches the tap's local address"] = w.got(localSocket, "outside to "+local)
	return got
}

// TestTraffic shows the holes first, then the guard: only what syncd needs goes through.
func TestTraffic(t *testing.T) {
	open, closed := true, false
	want := map[string][2]bool{ // without and with the guard
		"user may send to the group on the tap":            {open, closed},
		"user's datagram is read from the tap":             {open, closed},
		"user's datagram is looped to the kernel's thread": {open, closed},
		"user may send to the peer":                        {open, closed},
		"user may use the tick's service":                  {open, closed},
		"root's datagram is read from the tap":             {open, open},
		"root's datagram is looped to the kernel's thread": {open, closed},
		"syncd's datagram arrives":                         {open, open},
		"syncd's datagram is tracked":                      {open, closed},
		"the tick arrives and the kernel's answer leaves":  {open, open},
		"the tick is tracked":                              {open, closed},
		"a datagram from another source arrives":           {open, closed},
		"another group arrives":                            {open, closed},
		"another port arrives":                             {open, closed},
		"another TCP port answers":                         {open, closed},
		"the tap is forwarded to the outside":              {open, closed},
		"outside is forwarded into the tap":                {open, closed},
		"outside reaches the tap's local address":          {open, closed},
	}
	for i, name := range []string{"without the guard", "with the guard"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if i == 1 {
				mustInstall(t)
			}
			expect := map[string]bool{}
			for what, both := range want {
				expect[what] = both[i]
			}
			if diff := cmp.Diff(expect, w.observe()); diff != "" {
				t.Errorf("(-want +got)\n%s\n%s", diff, nft(t, "list", "ruleset"))
			}
		})
	}
}
