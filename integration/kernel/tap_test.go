package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/ipvs"
	"saru/lib/tun"
	"saru/lib/tun/nstest"
	"saru/netfilter/guard"
	"saru/proto/ipvssync"
)

var (
	local = netip.MustParseAddr("169.254.81.1")
	peer  = netip.MustParseAddr("169.254.81.2")
	group = ipvssync.DefaultGroup()
)

const device = "syncd0"

// kernelTap is a TUN device with both sync threads on it.
type kernelTap struct {
	dev     *tun.Device
	daemons ipvs.Daemons
}

func openTap(t testing.TB) *kernelTap {
	t.Helper()
	dev, err := tun.Open(tun.Config{Name: device, Local: local, Peer: peer})
	must(t, err)
	d, err := ipvs.OpenDaemons()
	must(t, err)
	t.Cleanup(func() { _ = errors.Join(dev.Close(), d.Close()) })
	must(t, d.Start(ipvs.Daemon{State: ipvs.Master, Interface: device, SyncID: 7, MaxLen: 1}))
	must(t, d.Start(ipvs.Daemon{State: ipvs.Backup, Interface: device}))
	return &kernelTap{dev, d}
}

// inject writes records to the kernel, each in a message of its own.
func (k *kernelTap) inject(t *testing.T, records ...ipvssync.Record) {
	t.Helper()
	for i := range records {
		msg := ipvssync.AppendHeaderV1(nil, 9)
		msg, err := ipvssync.AppendRecordV1(msg, 0, &records[i])
		must(t, err)
		must(t, ipvssync.FinishV1(msg, 0, 1))
		_, err = k.dev.Write(datagram(peer, group, msg))
		must(t, err)
	}
}

// datagram makes an IPv4 packet with a UDP datagram without checksum.
func datagram(from netip.Addr, to netip.AddrPort, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 1, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, 4711)
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// conns reads the connections until there are n of them, the same ones twice in a row: while the kernel inserts or removes, its list may
// have an entry twice or leave some out.
func conns(t *testing.T, n int) []ipvs.ProcConn {
	t.Helper()
	var last []ipvs.ProcConn
	same := func(a, b ipvs.ProcConn) bool { return a.Client == b.Client && a.Virtual == b.Virtual }
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var list []ipvs.ProcConn
		for c, err := range ipvs.ReadConns(proc) {
			must(t, err)
			list = append(list, c)
		}
		slices.SortFunc(list, func(a, b ipvs.ProcConn) int {
			return cmp.Or(a.Client.Compare(b.Client), a.Virtual.Compare(b.Virtual))
		})
		list = slices.CompactFunc(list, same)
		if len(list) == n && slices.EqualFunc(list, last, same) {
			return list
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, want %d: %+v", len(list), n, list)
		}
		last = list
	}
}

func TestDaemons(t *testing.T) {
	nstest.New(t)
	d, err := ipvs.OpenDaemons()
	must(t, err)
	defer func() { _ = d.Close() }()
	if list, err := d.List(); err != nil || len(list) != 0 {
		t.Fatalf("at first: %v, %v", list, err)
	}
	for _, state := range []ipvs.DaemonState{ipvs.Master, ipvs.Backup} {
		if err := d.Stop(state); !errors.Is(err, ipvs.ErrNotRunning) {
			t.Errorf("stop what does not run: %v", err)
		}
	}
	if err := d.Start(ipvs.Daemon{State: ipvs.Master, Interface: "nosuchif"}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("unknown interface: %v", err)
	}
	k := openTap(t)
	want := []ipvs.Daemon{
		{State: ipvs.Master, Interface: device, SyncID: 7, MaxLen: 1, Group: group.Addr(), Port: 8848, TTL: 1},
		{State: ipvs.Backup, Interface: device, MaxLen: 9188, Group: group.Addr(), Port: 8848, TTL: 1},
	}
	got, err := k.daemons.List()
	must(t, err)
	if diff := gocmp.Diff(want, got, sameAddr); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if out := tool(t, "ipvsadm", "-L", "--daemon"); !strings.Contains(out, "mcast=syncd0, syncid=7") || !strings.Contains(out, "mcast=syncd0, syncid=0") {
		t.Errorf("ipvsadm says:\n%s", out)
	}
	if err := d.Start(ipvs.Daemon{State: ipvs.Backup, Interface: device}); !errors.Is(err, ipvs.ErrExists) {
		t.Errorf("second backup: %v", err)
	}
	must(t, errors.Join(d.Stop(ipvs.Master), d.Stop(ipvs.Backup)))
	six := ipvs.Daemon{State: ipvs.Backup, Interface: device, SyncID: 255, MaxLen: 2000, Group: netip.MustParseAddr("ff02::81"), Port: 9999, TTL: 7}
	must(t, d.Start(six))
	if got, err := d.List(); err != nil || gocmp.Diff([]ipvs.Daemon{six}, got, sameAddr) != "" {
		t.Errorf("IPv6 group: %+v, %v", got, err)
	}
	must(t, d.Stop(ipvs.Backup))
	tool(t, "ip", "link", "set", device, "down")
	if err := d.Start(ipvs.Daemon{State: ipvs.Master, Interface: device}); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("interface down: %v", err)
	}
}

// TestMasterSource has another interface with a global address, which the kernel would choose for its socket if the
// tap's address had link scope.
func TestMasterSource(t *testing.T) {
	nstest.New(t)
	other := nstest.Other(t)
	nstest.Veth(t, "eth0", []string{"10.9.0.1/24"}, other, "eth1", nil)
	openTap(t)
	b, err := os.ReadFile(proc + "/net/udp")
	must(t, err)
	const want = "0151FEA9:" // 169.254.81.1 as a little-endian machine shows it
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[2] == "510000E0:2290" {
			if !strings.HasPrefix(f[1], want) {
				t.Errorf("the master's socket is bound to %s, not %s", f[1], want)
			}
			return
		}
	}
	t.Errorf("no socket of the master thread in\n%s", b)
}

// TestReadConns injects records of every kind and reads them back from /proc. It keeps the lists for the golden files of
// lib/ipvs.
func TestReadConns(t *testing.T) {
	nstest.New(t)
	tool(t, "modprobe", "ip_vs_pe_sip")
	s := openServices(t)
	tcp := ipvs.Service{Protocol: 6, Address: netip.MustParseAddr("10.0.0.100"), Port: 80, Scheduler: "rr"}
	rs := ipvs.Destination{Address: netip.MustParseAddr("10.1.0.2"), Port: 8080, Weight: 1}
	must(t, errors.Join(s.AddService(tcp), s.AddDestination(tcp, rs)))
	k := openTap(t)
	ap := netip.MustParseAddrPort
	records := []ipvssync.Record{
		{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Client: ap("192.168.1.1:54321"), Virtual: ap("10.0.0.100:80"), Real: ap("10.1.0.2:8080")},
		{Protocol: 6, State: ipvssync.TCPFinWait, Flags: ipvssync.FlagInactive, Timeout: 120, Client: ap("192.168.1.2:1"), Virtual: ap("10.0.0.100:80"), Real: ap("10.1.0.3:8080")},
		{Protocol: 17, Timeout: 300, Client: ap("192.168.1.3:53"), Virtual: ap("10.0.0.100:53"), Real: ap("10.1.0.2:53")},
		{Protocol: 6, Flags: ipvssync.FlagTemplate, State: 1, Timeout: 360, Client: ap("192.168.1.4:0"), Virtual: ap("10.0.0.100:443"), Real: ap("10.1.0.2:443")},
		{Protocol: 0, Flags: ipvssync.FlagTemplate, Timeout: 360, Client: ap("192.168.1.5:0"), Virtual: ap("0.0.0.7:0"), Real: ap("10.1.0.2:0")},
		{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Client: ap("[fd00::1]:50000"), Virtual: ap("[fd00::64]:443"), Real: ap("[fd01::2]:443")},
		{Protocol: 0, Flags: ipvssync.FlagTemplate, State: 1, Timeout: 360, Client: ap("[fd00::2]:0"), Virtual: ap("[0:7::]:0"), Real: ap("[fd01::2]:0")},
		{Protocol: 17, Flags: ipvssync.FlagTemplate, Timeout: 360, Client: ap("192.168.1.6:0"), Virtual: ap("10.0.0.100:5060"), Real: ap("10.1.0.2:5060"),
			PEName: []byte("sip"), PEData: []byte("1-2987@192.168.1.6")},
	}
	k.inject(t, records...)
	got := conns(t, len(records))
	var want []ipvs.ProcConn
	for _, r := range records {
		c := ipvs.ProcConn{
			Protocol: r.Protocol, Client: r.Client, Virtual: r.Virtual, Real: r.Real, Synced: true, Template: r.Flags&ipvssync.FlagTemplate != 0,
			State: ipvssync.StateName(r.Protocol, r.State, r.Flags&ipvssync.FlagTemplate != 0), Expires: time.Duration(r.Timeout) * time.Second,
		}
		if r.Protocol == 0 {
			c.FwmarkService = 7
		}
		want = append(want, c)
	}
	slices.SortFunc(want, func(a, b ipvs.ProcConn) int { return a.Client.Compare(b.Client) })
	expires := gocmp.FilterPath(func(p gocmp.Path) bool { return p.Last().String() == ".Expires" },
		gocmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() < 20*time.Second }))
	if diff := gocmp.Diff(want, got, expires, gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	engines := map[string]string{}
	for c, err := range ipvs.ReadConnsPE(proc) {
		must(t, err)
		if c.PEName != "" {
			engines[c.Client.Addr().String()] = c.PEName + " " + c.PEData
		}
	}
	if diff := gocmp.Diff(map[string]string{"192.168.1.6": "sip 1-2987@192.168.1.6"}, engines); diff != "" {
		t.Errorf("persistence engines (-want +got)\n%s", diff)
	}

	// A client on the director itself, of a persistent service. Its template came by sync and has no server here: the
	// kernel gives it up and makes another.
	https := ipvs.Service{Protocol: 6, Address: tcp.Address, Port: 443, Scheduler: "rr", Flags: ipvs.ServicePersistent, Timeout: 5 * time.Minute}
	server := ipvs.Destination{Address: rs.Address, Port: 443, Weight: 1}
	must(t, errors.Join(s.AddService(https), s.AddDestination(https, server)))
	orphan := ipvssync.Record{Protocol: 6, Flags: ipvssync.FlagTemplate, Timeout: 360, Client: ap("10.0.0.100:0"), Virtual: ap("10.0.0.100:443"), Real: ap("10.1.0.99:443")}
	k.inject(t, orphan)
	conns(t, len(records)+1)
	tool(t, "ip", "addr", "add", "10.0.0.100/32", "dev", "lo")
	nstest.Veth(t, "d0", []string{"10.1.0.1/24"}, nstest.Other(t), "d1", nil)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 0, 100}, Port: 443}); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	var made []string
	for c, err := range ipvs.ReadConns(proc) {
		must(t, err)
		if c.Client.Addr() == orphan.Client.Addr() {
			made = append(made, fmt.Sprintf("%s %s template=%v invalidated=%v synced=%v", c.Real, c.State, c.Template, c.Invalidated, c.Synced))
		}
	}
	slices.Sort(made)
	wantMade := []string{
		"10.1.0.2:443 NONE template=true invalidated=false synced=false",
		"10.1.0.2:443 SYN_RECV template=false invalidated=false synced=false",
		"10.1.0.99:65535 NONE template=true invalidated=true synced=true",
	}
	if diff := gocmp.Diff(wantMade, made); diff != "" {
		t.Errorf("local client (-want +got)\n%s", diff)
	}
	keep(t, "ip_vs_conn", "ip_vs_conn_sync")
}

// keep copies lists to the host, as out/.../conn_KERNEL.txt.
func keep(t *testing.T, names ...string) {
	t.Helper()
	out := os.Getenv("LAB_OUT")
	if out == "" {
		return
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(proc, "net", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(out, name+".txt"), b, 0o644))
	}
}

const forgeEnv = "SARU_KERNEL_TEST_FORGE"

// forged is what another user tries to put into the kernel.
func forged() ipvssync.Record {
	ap := netip.MustParseAddrPort
	return ipvssync.Record{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900,
		Client: ap("6.6.6.6:6666"), Virtual: ap("10.0.0.100:80"), Real: ap("66.66.66.66:80")}
}

// forgeAsUser is what the test binary does when it is started as another user: it sends a message to the group on the tap.
func forgeAsUser() int {
	r := forged()
	msg, err := ipvssync.AppendRecordV1(ipvssync.AppendHeaderV1(nil, 0), 0, &r)
	if err == nil {
		err = ipvssync.FinishV1(msg, 0, 1)
	}
	fd := -1
	if err == nil {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	}
	if err == nil {
		err = unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, local.As4())
	}
	if err == nil {
		err = unix.Sendto(fd, msg, 0, &unix.SockaddrInet4{Addr: group.Addr().As4(), Port: int(group.Port())})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func forge(t *testing.T) error {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), forgeEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// TestForgery: any user can put a connection into the kernel's table, until the guard is there; syncd still can.
func TestForgery(t *testing.T) {
	nstest.New(t)
	k := openTap(t)
	must(t, forge(t))
	list := conns(t, 1)
	if list[0].Client != forged().Client {
		t.Fatalf("%+v", list)
	}
	gone := forged()
	gone.State, gone.Flags, gone.Timeout = ipvssync.TCPClose, ipvssync.FlagInactive, 1
	k.inject(t, gone)
	conns(t, 0)

	must(t, guard.Install(guard.Config{Device: device, Group: group, Peer: peer, Local: local, TickPort: 8849}))
	if err := forge(t); err == nil || !strings.Contains(err.Error(), "operation not permitted") {
		t.Errorf("with the guard: %v", err)
	}
	r := forged()
	r.Client = netip.MustParseAddrPort("192.168.1.1:1")
	k.inject(t, r)
	if list := conns(t, 1); list[0].Client != r.Client {
		t.Errorf("with the guard: %+v", list)
	}
}

// TestStopAtOnce stops threads that have hardly begun. In some of these cases the kernel gives no answer (EINTR).
func TestStopAtOnce(t *testing.T) {
	nstest.New(t)
	dev, err := tun.Open(tun.Config{Name: device, Local: local, Peer: peer})
	must(t, err)
	defer func() { _ = dev.Close() }()
	d, err := ipvs.OpenDaemons()
	must(t, err)
	defer func() { _ = d.Close() }()
	silent := 0
	for range 30 {
		must(t, d.Start(ipvs.Daemon{State: ipvs.Backup, Interface: device}))
		start := time.Now()
		must(t, d.Stop(ipvs.Backup))
		if time.Since(start) > 250*time.Millisecond {
			silent++
		}
		if list, err := d.List(); err != nil || len(list) != 0 {
			t.Fatalf("still there: %v, %v", list, err)
		}
	}
	t.Logf("without an answer: %d of 30", silent)
}
