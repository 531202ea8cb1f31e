// Command capture makes golden messages on a real kernel: it sets up a director with every sort of service in network namespaces, runs
// the kernel's master thread, sends traffic and writes down what the kernel multicasts. See ../README.md for how it is run.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"saru/proto/ipvssync"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "capture:", err)
		os.Exit(1)
	}
}

// setup makes a client C, a director D, a real server R and a segment D-S for sync messages. The second client address and the second
// virtual address are for direct routing: replies go from R to C past D.
const setup = `
for m in ip_vs ip_vs_rr ip_vs_pe_sip veth; do modprobe $m; done
for n in C D R S; do ip netns add $n; ip -n $n link set lo up; ip netns exec $n sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad'; done
ip link add c0 netns C type veth peer name d0 netns D
ip link add r0 netns R type veth peer name d1 netns D
ip link add c1 netns C type veth peer name r1 netns R
ip link add s0 netns S type veth peer name d2 netns D
ip -n C addr add 10.1.0.2/24 dev c0; ip -n C addr add fd01::2/64 dev c0 nodad; ip -n C addr add 10.4.0.2/32 dev lo; ip -n C addr add 10.3.0.2/24 dev c1
ip -n D addr add 10.1.0.1/24 dev d0; ip -n D addr add fd01::1/64 dev d0 nodad
ip -n D addr add 10.2.0.1/24 dev d1; ip -n D addr add fd02::1/64 dev d1 nodad
ip -n D addr add 192.0.2.1/24 dev d2; ip -n S addr add 192.0.2.2/24 dev s0
ip -n D addr add 10.0.0.254/32 dev lo; ip -n D addr add 10.0.0.253/32 dev lo; ip -n D addr add fd00::fe/128 dev lo nodad
ip -n R addr add 10.2.0.3/24 dev r0; ip -n R addr add fd02::3/64 dev r0 nodad; ip -n R addr add 10.0.0.253/32 dev lo; ip -n R addr add 10.3.0.3/24 dev r1
for l in "C c0" "C c1" "D d0" "D d1" "D d2" "R r0" "R r1" "S s0"; do set -- $l; ip -n $1 link set $2 up; done
ip -n C route add default via 10.1.0.1; ip -n C -6 route add default via fd01::1
ip -n R route add default via 10.2.0.1; ip -n R -6 route add default via fd02::1
ip -n R route add 10.4.0.2 via 10.3.0.2; ip -n D route add 10.4.0.2 via 10.1.0.2
ip netns exec D sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
echo "0 0" > /proc/sys/net/ipv4/vs/sync_threshold; echo 10 > /proc/sys/net/ipv4/vs/sync_refresh_period
nft add table ip m; nft add chain ip m p "{ type filter hook prerouting priority -150; }"; nft add rule ip m p ip daddr 10.0.0.254 tcp dport 7000 meta mark set 7
ipvsadm -A -t 10.0.0.254:80 -s rr; ipvsadm -a -t 10.0.0.254:80 -r 10.2.0.3:8080 -m
ipvsadm -A -t 10.0.0.253:80 -s rr; ipvsadm -a -t 10.0.0.253:80 -r 10.2.0.3:80 -g
ipvsadm -A -t 10.0.0.254:8000 -s rr -p 60; ipvsadm -a -t 10.0.0.254:8000 -r 10.2.0.3:8080 -m
ipvsadm -A -f 7 -s rr -p 120; ipvsadm -a -f 7 -r 10.2.0.3:0 -m
ipvsadm -A -u 10.0.0.254:5353 -s rr; ipvsadm -a -u 10.0.0.254:5353 -r 10.2.0.3:53 -m
ipvsadm -A -u 10.0.0.254:5060 -s rr -p 60 --pe sip; ipvsadm -a -u 10.0.0.254:5060 -r 10.2.0.3:5060 -m
ipvsadm -A -t [fd00::fe]:80 -s rr; ipvsadm -a -t [fd00::fe]:80 -r [fd02::3]:8080 -m
ipvsadm -A -u [fd00::fe]:53 -s rr -p 60; ipvsadm -a -u [fd00::fe]:53 -r [fd02::3]:53 -m
ipvsadm --start-daemon master --mcast-interface d2 --syncid 7
ipvsadm --start-daemon backup --mcast-interface d2 --syncid 9'
`

func sh(script string) error {
	cmd := exec.Command("/bin/sh", "-e", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%.60q: %w", strings.TrimSpace(script), err)
	}
	return nil
}

// in runs fn, which opens sockets, in a network namespace.
func in(ns string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open(filepath.Join("/run/netns", ns))
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// messages collects what the kernel multicasts.
type messages struct {
	mu  sync.Mutex
	all [][]byte
}

func (m *messages) receive(c *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if from.Addr().Unmap() == netip.MustParseAddr("192.0.2.1") {
			m.mu.Lock()
			m.all = append(m.all, append([]byte(nil), buf[:n]...))
			m.mu.Unlock()
		}
	}
}

func (m *messages) take() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.all
	m.all = nil
	return all
}

func run() error {
	if err := sh(setup); err != nil {
		return err
	}
	var got messages
	var inject *net.UDPConn
	err := in("S", func() error {
		ifi, err := net.InterfaceByName("s0")
		if err != nil {
			return err
		}
		group := net.UDPAddrFromAddrPort(ipvssync.DefaultGroup())
		c, err := net.ListenMulticastUDP("udp4", ifi, group)
		if err != nil {
			return err
		}
		go got.receive(c)
		inject, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2)}, group)
		return err
	})
	if err == nil {
		err = in("R", servers)
	}
	if err != nil {
		return err
	}
	name := unix.Utsname{}
	if err := unix.Uname(&name); err != nil {
		return err
	}
	release := unix.ByteSliceToString(name.Release[:])
	version := unix.ByteSliceToString(name.Version[:])

	var out strings.Builder
	fmt.Fprintf(&out, "# Captured from Linux %s (%s) by testdata/capture; see README.md.\n", release, version)
	section := func(name string) {
		time.Sleep(4 * time.Second) // a kernel sends a partly filled message after 2 to 3 s
		for i, b := range got.take() {
			fmt.Fprintf(&out, "\n== %s, message %d\n", name, i+1)
			for ; len(b) > 0; b = b[min(36, len(b)):] {
				fmt.Fprintf(&out, "%x\n", b[:min(36, len(b))])
			}
		}
	}

	conns, err := open()
	if err != nil {
		return err
	}
	section("v1 established TCP, UDP, templates, fwmark, SIP engine, IPv6")
	closeAll(conns[1:])
	section("v1 closing")
	if err := sequence(inject, conns[0]); err != nil {
		return err
	}
	section("v1 sequence deltas, of an entry that an injected record gave them")
	if err := sh("ip netns exec D sh -c 'echo 0 > /proc/sys/net/ipv4/vs/sync_version'"); err != nil {
		return err
	}
	if conns, err = open(); err != nil {
		return err
	}
	section("v0 established TCP, UDP, templates")
	if err := sequence(inject, conns[0]); err != nil {
		return err
	}
	section("v0 sequence deltas, of an entry that an injected record gave them")
	closeAll(conns)
	section("v0 closing")

	dir := os.Getenv("LAB_OUT")
	major := strings.Join(strings.SplitN(release, ".", 3)[:2], ".")
	return os.WriteFile(filepath.Join(dir, "captured-"+major+".hex"), []byte(out.String()), 0o644)
}

// servers echo on R.
func servers() error {
	for _, addr := range []string{":80", ":8080", ":7000"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					buf := make([]byte, 1500)
					for {
						n, err := c.Read(buf)
						if err != nil {
							break
						}
						if _, err := c.Write(buf[:n]); err != nil {
							break
						}
					}
					_ = c.Close()
				}()
			}
		}()
	}
	for _, addr := range []string{":53", ":5060"} {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:n], from)
			}
		}()
	}
	return nil
}

// open makes a connection of every sort from C and exchanges a few bytes; the first is TCP by LVS-NAT.
func open() ([]net.Conn, error) {
	invite := "INVITE sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.0.2:5070\r\nFrom: <sip:b@example.com>\r\nTo: <sip:a@example.com>\r\n" +
		"Call-ID: a84b4c76e66710@pc33.example.com\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
	var conns []net.Conn
	err := in("C", func() error {
		for _, s := range []struct{ network, local, remote, data string }{
			{"tcp", "", "10.0.0.254:80", "hello"},
			{"tcp", "10.4.0.2:0", "10.0.0.253:80", "hello"},
			{"tcp", "", "10.0.0.254:8000", "hello"},
			{"tcp", "", "10.0.0.254:7000", "hello"},
			{"udp", "", "10.0.0.254:5353", "hello"},
			{"udp", "", "10.0.0.254:5060", invite},
			{"tcp", "", "[fd00::fe]:80", "hello"},
			{"udp", "", "[fd00::fe]:53", "hello"},
		} {
			d := net.Dialer{Timeout: 5 * time.Second}
			if s.local != "" {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s.local))
			}
			c, err := d.Dial(s.network, s.remote)
			if err != nil {
				return err
			}
			if err := exchange(c, s.data); err != nil {
				return fmt.Errorf("%s %s: %w", s.network, s.remote, err)
			}
			conns = append(conns, c)
		}
		return nil
	})
	return conns, err
}

func exchange(c net.Conn, data string) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(data)); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != data {
		err = errors.New("other bytes came back")
	}
	return err
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// sequence gives D's entry of a connection sequence deltas, by a record for the backup thread, and closes the connection, so that the
// master thread sends the entry.
func sequence(inject *net.UDPConn, c net.Conn) error {
	rec := ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, Flags: ipvssync.FlagSeqMask, State: ipvssync.TCPEstablished, Timeout: 900,
		Client:  c.LocalAddr().(*net.TCPAddr).AddrPort(),
		Virtual: netip.MustParseAddrPort("10.0.0.254:80"), Real: netip.MustParseAddrPort("10.2.0.3:8080"),
		HasSeq: true, In: ipvssync.Seq{Init: 0x01020304, Delta: 5, PrevDelta: 6}, Out: ipvssync.Seq{Init: 0x0a0b0c0d, Delta: ^uint32(6), PrevDelta: 8},
	}
	rec.Client = netip.AddrPortFrom(rec.Client.Addr().Unmap(), rec.Client.Port())
	b := ipvssync.AppendHeaderV1(nil, 9)
	b, err := ipvssync.AppendRecordV1(b, 0, &rec)
	if err == nil {
		err = ipvssync.FinishV1(b, 0, 1)
	}
	if err == nil {
		_, err = inject.Write(b)
	}
	if err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	return c.Close()
}
