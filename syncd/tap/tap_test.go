package tap

import (
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"saru/lib/tun"
	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// The headers are read by somebody else's decoder, checksums included.
func TestFrames(t *testing.T) {
	src, dst := netip.MustParseAddrPort("169.254.81.2:8849"), netip.MustParseAddrPort("169.254.81.1:8848")
	b := appendTCP(nil, src, dst, tcpFIN|tcpACK)
	p := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default)
	ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if ip == nil || tcp == nil || p.ErrorLayer() != nil {
		t.Fatalf("does not decode: %v", p)
	}
	if !ip.SrcIP.Equal(src.Addr().AsSlice()) || tcp.SrcPort != 8849 || tcp.DstPort != 8848 || !tcp.FIN || !tcp.ACK || tcp.SYN || tcp.RST {
		t.Errorf("decodes as %v", p)
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	if err, mismatches := p.VerifyChecksums(); err != nil || len(mismatches) > 0 {
		t.Errorf("checksums: %v, %v", err, mismatches)
	}

	u := append(make([]byte, headersLen), "payload"...)
	putUDP(u, src, group)
	p = gopacket.NewPacket(u, layers.LayerTypeIPv4, gopacket.Default)
	if ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ip == nil || !ip.SrcIP.Equal(src.Addr().AsSlice()) || ip.Checksum == 0 {
		t.Errorf("UDP decodes as %v", p)
	}
	gotSrc, gotDst, payload, ok := parseUDP(u)
	if !ok || gotSrc != src || gotDst != group || string(payload) != "payload" {
		t.Errorf("parseUDP: %v %v %q %v", gotSrc, gotDst, payload, ok)
	}
	for n := range len(u) {
		if _, _, _, ok := parseUDP(u[:n]); ok {
			t.Errorf("parseUDP takes %d of %d bytes", n, len(u))
		}
	}
	if _, _, _, ok := parseUDP(b); ok {
		t.Error("parseUDP takes TCP")
	}
	u[6] = 0x20
	if _, _, _, ok := parseUDP(u); ok {
		t.Error("parseUDP takes a fragment")
	}
}

const procUDP = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 0151FEA9:C6CC 510000E0:2290 01 00000000:00000000 00:00000000 00000000     0        0 17 2 0000000000000000 0
  101: 510000E0:2290 00000000:0000 07 00000000:00001200 00:00000000 00000000     0        0 16 2 0000000000000000 42
  102: bad line
  103: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 15 2 0000000000000000 7
`

func TestReadSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "udp")
	if err := os.WriteFile(path, []byte(procUDP), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []procSocket
	if err := readSockets(path, func(s procSocket) bool { got = append(got, s); return true }); err != nil {
		t.Fatal(err)
	}
	want := []procSocket{
		{local: netip.MustParseAddrPort("169.254.81.1:50892"), remote: group, inode: 17},
		{local: group, remote: netip.MustParseAddrPort("0.0.0.0:0"), queued: 0x1200, drops: 42, inode: 16},
		{local: netip.MustParseAddrPort("0.0.0.0:68"), remote: netip.MustParseAddrPort("0.0.0.0:0"), drops: 7, uid: 1000, inode: 15},
	}
	if len(got) != len(want) {
		t.Fatalf("sockets %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("socket %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestSequenceBroken(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-50-cloud-amd64": true, "6.12.48+deb13": true, "7.1.9": true, "7.2.13-1": false, "8.0.0": false, "10.1": false, "strange": true,
	} {
		if got := sequenceBroken(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}

// Messages pass both ways over a real TUN device; only those of the one socket that is the master's are delivered.
func TestTUN(t *testing.T) {
	nstest.New(t)
	local := netip.MustParseAddr("169.254.81.1")
	dev, err := tun.Open(tun.Config{Name: "syncd0", Local: local, Peer: local.Next()})
	if err != nil {
		t.Fatal(err)
	}
	tap, err := NewTUN(dev, local, "/proc/thread-self/net/udp", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Remove()
	backup := socket(t, dev.Index(), true)
	master := socket(t, dev.Index(), false)
	if err := unix.Connect(master, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}); err != nil {
		t.Fatal(err)
	}
	other := socket(t, dev.Index(), false)
	stopped := socket(t, dev.Index(), false) // of a thread that is not quite gone
	if err := unix.Connect(stopped, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}); err != nil {
		t.Fatal(err)
	}

	if err := unix.Sendto(other, []byte("forged"), 0, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one", "two"} {
		if err := unix.Send(master, []byte(s), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := dev.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var got []string
	msgs := []Message{{Buf: make([]byte, MaxPacket)}, {Buf: make([]byte, MaxPacket)}, {Buf: make([]byte, MaxPacket)}}
	for len(got) < 2 {
		n, err := tap.Read(msgs)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs[:n] {
			got = append(got, string(m.Data))
		}
	}
	if strings.Join(got, " ") != "one two" || tap.Ignored() == 0 {
		t.Errorf("read %q, ignored %d", got, tap.Ignored())
	}

	tap.syncID.Store(0x77)
	for range 3 {
		if err := tap.Inject([]byte{0, 1, 0, 4}); err != nil {
			t.Fatal(err)
		}
	}
	if queued, _, err := tap.Queued(); err != nil || queued == 0 {
		t.Errorf("queued %d, error %v", queued, err)
	}
	buf := make([]byte, 100)
	n, from, err := unix.Recvfrom(backup, buf, 0)
	if err != nil || hex.EncodeToString(buf[:n]) != "00770004" {
		t.Errorf("injected %x, error %v", buf[:n], err)
	}
	if a, ok := from.(*unix.SockaddrInet4); !ok || netip.AddrFrom4(a.Addr) != local.Next() {
		t.Errorf("injected from %v", from)
	}
	if err := tap.Inject(make([]byte, MaxInject+1)); err == nil {
		t.Error("a message that is too long is injected")
	}
	if err := tap.Tick(3); err != nil {
		t.Error(err)
	}
}

// socket makes a UDP socket on the device, with the group joined if it is to receive.
func socket(t testing.TB, index int, receive bool) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	mreq := &unix.IPMreqn{Multiaddr: group.Addr().As4(), Ifindex: int32(index)}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0); err != nil {
		t.Fatal(err)
	}
	if receive {
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())}); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}
