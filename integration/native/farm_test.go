package native

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"saru/lib/control"
	"saru/lib/tun/nstest"
)

// program is the real saru, built for these tests.
var program string

func TestMain(m *testing.M) {
	if os.Getenv("SARU_NATIVE_PROGRAM") == "" { // not in the second start, in a user namespace
		dir, err := os.MkdirTemp("", "saru-native")
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err == nil {
			cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "saru"), "saru/cmd/saru")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			var out []byte
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "build saru:", err)
			os.Exit(1)
		}
		os.Setenv("SARU_NATIVE_PROGRAM", filepath.Join(dir, "saru"))
	}
	program = os.Getenv("SARU_NATIVE_PROGRAM")
	nstest.Main(m)
}

var (
	vip       = netip.MustParseAddr("10.1.0.100")
	sharedMAC = net.HardwareAddr{0x02, 0, 0, 0x5a, 0, 0x01}
	port      = uint16(9000)
)

// director is a director: a namespace, a saru, a responder.
type director struct {
	farm    *farm
	index   int
	name    string
	ns      *nstest.NS
	socket  string
	logFile string
	args    []string
	conn    *net.UDPConn

	mu   sync.Mutex
	proc *exec.Cmd
	done chan struct{}
}

// farm is some directors with one MAC on a flooding segment, a heartbeat segment, and a client.
type farm struct {
	t         testing.TB
	dir       string
	keys      string
	hub       *nstest.NS
	client    *nstest.NS
	directors []*director
}

// newFarm builds a farm and starts its saru processes with further options.
func newFarm(t testing.TB, n int, args ...string) *farm {
	t.Helper()
	f := prepareFarm(t, n, args...)
	for _, d := range f.directors {
		d.start()
	}
	return f
}

// prepareFarm builds a farm without processes.
func prepareFarm(t testing.TB, n int, args ...string) *farm {
	t.Helper()
	f := &farm{t: t, hub: nstest.New(t), dir: t.TempDir()}
	f.keys = filepath.Join(f.dir, "keys")
	must(t, os.WriteFile(f.keys, []byte("1 "+strings.Repeat("5a", 32)+"\n"), 0o600))
	nstest.Bridge(t, "front")
	nstest.Bridge(t, "beat")
	for _, name := range []string{"front", "beat"} {
		link, err := netlink.LinkByName(name)
		must(t, err)
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, Index: link.Attrs().Index}, AgeingTime: new(uint32)}
		must(t, netlink.LinkModify(br)) // a hub: every station is forgotten at once
	}
	f.client = nstest.Other(t)
	nstest.Plug(t, "front", "fc", f.client, "eth0", []string{"10.1.0.200/16"})
	f.client.Do(t, func() { neighbour(t, "eth0", vip, sharedMAC) })
	for i := range n {
		d := &director{farm: f, index: i, name: fmt.Sprintf("d%d", i+1), ns: nstest.Other(t), args: args}
		d.socket = filepath.Join(f.dir, d.name+".sock")
		d.logFile = filepath.Join(f.dir, d.name+".log")
		nstest.Plug(t, "front", fmt.Sprintf("f%d", i+1), d.ns, "eth0", nil)
		nstest.Plug(t, "beat", fmt.Sprintf("b%d", i+1), d.ns, "eth1", []string{fmt.Sprintf("10.2.0.%d/24", i+1)})
		d.ns.Do(t, func() {
			link, err := netlink.LinkByName("eth0")
			must(t, err)
			must(t, netlink.LinkSetDown(link))
			must(t, netlink.LinkSetHardwareAddr(link, sharedMAC))
			nstest.Up(t, "eth0", fmt.Sprintf("10.1.0.%d/16", i+1), vip.String()+"/32")
			d.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: vip.AsSlice(), Port: int(port)})
			must(t, err)
			must(t, d.conn.SetReadBuffer(8<<20))
		})
		t.Cleanup(func() { _ = d.conn.Close() })
		f.directors = append(f.directors, d)
	}
	t.Cleanup(func() {
		for _, d := range f.directors {
			d.signal(syscall.SIGCONT)
			d.kill()
			if t.Failed() {
				text, _ := os.ReadFile(d.logFile)
				t.Logf("--- %s\n%s", d.name, text[max(0, len(text)-6000):])
			}
		}
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func neighbour(t testing.TB, name string, a netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}))
}

// start starts the director's saru.
func (d *director) start() {
	t := d.farm.t
	t.Helper()
	args := append([]string{"--node", d.name, "--interface", "eth1", "--interface", "eth0", "--key_file", d.farm.keys, "--control", d.socket,
		"--virtual", vip.String(), "--syncd", "none", "--start_delay", "5s", "--log_facility", "-"}, d.args...)
	cmd := exec.Command(program, args...)
	log, err := os.OpenFile(d.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(t, err)
	defer log.Close()
	fmt.Fprintf(log, "--- saru %s\n", strings.Join(args, " "))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.ns.Do(t, func() { err = cmd.Start() })
	must(t, err)
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	d.mu.Lock()
	d.proc, d.done = cmd, done
	d.mu.Unlock()
}

func (d *director) signal(s syscall.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc != nil {
		_ = d.proc.Process.Signal(s)
	}
}

// kill ends the process at once; the director's kernel goes on.
func (d *director) kill() {
	d.signal(syscall.SIGKILL)
	d.wait(10 * time.Second)
}

func (d *director) wait(limit time.Duration) bool {
	d.mu.Lock()
	done := d.done
	d.mu.Unlock()
	if done == nil {
		return true
	}
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// plug connects or disconnects the director's links, all of them or those of one segment: "f" or "b".
func (d *director) plug(up bool, segments ...string) {
	t := d.farm.t
	if len(segments) == 0 {
		segments = []string{"f", "b"}
	}
	for _, s := range segments {
		link, err := netlink.LinkByName(s + strconv.Itoa(d.index+1))
		must(t, err)
		if up {
			err = netlink.LinkSetUp(link)
		} else {
			err = netlink.LinkSetDown(link)
		}
		must(t, err)
	}
}

// status asks saru; ok is false when it does not answer.
func (d *director) status() (s control.Status, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := control.NewClient(d.socket).Status(ctx)
	return s, err == nil
}

// settled waits until these directors are members of one table, own everything together, and hold it open.
func (f *farm) settled(directors ...*director) {
	f.t.Helper()
	if len(directors) == 0 {
		directors = f.directors
	}
	why := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		open, version := 0, uint32(0)
		why = ""
		for _, d := range directors {
			s, ok := d.status()
			switch {
			case !ok:
				why = d.name + " does not answer"
			case s.State != control.StateMember:
				why = fmt.Sprintf("%s is %s: %q", d.name, s.State, s.Alarms)
			case version != 0 && s.Version != version:
				why = fmt.Sprintf("versions %d and %d", version, s.Version)
			case members(s) != len(directors):
				why = fmt.Sprintf("%s has %d members", d.name, members(s))
			}
			version = s.Version
			open += s.Buckets.Open
		}
		if why == "" && open == 4096 {
			return
		}
		if why == "" {
			why = fmt.Sprintf("%d buckets are open", open)
		}
	}
	f.t.Fatalf("not settled: %s", why)
}

// members counts those that are in the table.
func members(s control.Status) (n int) {
	for i := range s.Members {
		if s.Members[i].State != control.StateJoining {
			n++
		}
	}
	return n
}

// responders answer every datagram with the director's number, and tell seen.
func (f *farm) responders(seen func(d *director, from netip.AddrPort, payload []byte)) {
	for _, d := range f.directors {
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := d.conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if seen != nil {
					seen(d, from, buf[:n])
				}
				_, _ = d.conn.WriteToUDPAddrPort(append([]byte{byte(d.index)}, buf[:n]...), from)
			}
		}()
	}
}

// which is a flow's bucket as saru tells it.
func (d *director) which(from netip.AddrPort) control.Which {
	d.farm.t.Helper()
	w, err := control.NewClient(d.socket).Which(d.farm.t.Context(), control.WhichRequest{Source: from})
	must(d.farm.t, err)
	return w
}

// order drains a director or lets it take part again.
func (d *director) order(drain bool) {
	d.farm.t.Helper()
	c := control.NewClient(d.socket)
	call := c.Undrain
	if drain {
		call = c.Drain
	}
	sum, err := call(d.farm.t.Context(), control.DrainRequest{Wait: true})
	must(d.farm.t, err)
	if !sum.Complete {
		d.farm.t.Fatalf("drain %v of %s: %s", drain, d.name, sum.Why)
	}
}

// rounds is how many rounds a test has: SARU_ROUNDS, or a few.
func rounds(t testing.TB, few int) int {
	text := os.Getenv("SARU_ROUNDS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SARU_ROUNDS=%q: a number of rounds", text)
	}
	return n
}

// patient is a bar as it is, when it is measured on an idle machine (SARU_ROUNDS is set), and three times that in `make test`, which shall not fail because a machine
// is slow.
func patient(bar time.Duration) time.Duration {
	if os.Getenv("SARU_ROUNDS") != "" {
		return bar
	}
	return 3 * bar
}

// logged shows what all directors have said between two times.
func (f *farm) logged(from, to time.Time) {
	for _, d := range f.directors {
		for line := range strings.Lines(d.logOf()) {
			stamp, text, _ := strings.Cut(line, " ")
			if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.After(from) && at.Before(to) {
				f.t.Logf("%s %s %s", d.name, stamp, strings.TrimSpace(text))
			}
		}
	}
}

// logOf returns what a director's saru has said.
func (d *director) logOf() string {
	text, _ := os.ReadFile(d.logFile)
	return string(bytes.TrimSpace(text))
}
