package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/proto/transfer"
)

// stranger connects to where a director teaches.
type stranger struct {
	node *farm.Node
	to   string
}

func (s stranger) connect(ctx context.Context) (c net.Conn, err error) {
	err = s.node.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		c, err = d.DialContext(ctx, "tcp", s.to)
		return err
	})
	return c, err
}

// strangerLimit is how long a connection may live that does not prove itself: two seconds, and what a slow guest needs.
const strangerLimit = 6 * time.Second

// ended reads until the director closes the connection, and returns what it said.
func ended(c net.Conn) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(strangerLimit)); err != nil {
		return nil, err
	}
	said, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return said, fmt.Errorf("still open after %v", strangerLimit)
	}
	return said, nil // a reset is an end as well
}

// attempt is what a stranger does on a connection, and the counter that it raises.
type attempt struct {
	name, counter string
	do            func(net.Conn) error
}

// say sends bytes at once.
func say(b []byte) func(net.Conn) error {
	return func(c net.Conn) error {
		_, err := c.Write(b)
		return err
	}
}

// refusals picks the counters of what a director was asked and did not answer.
func refusals(st control.SyncStatus) map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range st.Counters {
		good := name == "teach_finished" || name == "teach_entries" || name == "teach_bytes" || name == "teach_stopped"
		if strings.HasPrefix(name, "teach_") && !good {
			out[name] = n
		}
	}
	return out
}

// recordedClient is everything that clients other than the stranger said on their first connection to a director, as a capture on the segment has
// it.
func recordedClient(t *testing.T, file, to string) []byte {
	t.Helper()
	at, err := netip.ParseAddrPort(to)
	must(t, err)
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	must(t, err)
	var said []byte
	var first layers.TCPPort
	next := uint32(0)
	for {
		data, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return said
		}
		must(t, err)
		p := gopacket.NewPacket(data, r.LinkType(), gopacket.Default)
		ip, is4 := p.NetworkLayer().(*layers.IPv4)
		tcp, isTCP := p.TransportLayer().(*layers.TCP)
		if !is4 || !isTCP || uint16(tcp.DstPort) != at.Port() || ip.DstIP.String() != at.Addr().String() || first != 0 && tcp.SrcPort != first {
			continue
		}
		if tcp.SYN {
			first, next = tcp.SrcPort, tcp.Seq+1
		}
		if first != 0 && len(tcp.Payload) > 0 && tcp.Seq == next { // nothing else is lost or doubled here
			said = append(said, tcp.Payload...)
			next += uint32(len(tcp.Payload))
		}
	}
}

// usage is what a process has used.
type usage struct {
	resident int // KiB
	cpu      time.Duration
	files    int
}

func (u usage) String() string {
	return fmt.Sprintf("%d KiB resident, %v of CPU, %d descriptors", u.resident, u.cpu, u.files)
}

// used reads /proc/PID.
func (s *daemon) used(t *testing.T) (u usage) {
	t.Helper()
	dir := filepath.Join("/proc", itoa(s.Pid()))
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			u.resident, err = strconv.Atoi(f[1])
			must(t, err)
		}
	}
	text, err = os.ReadFile(filepath.Join(dir, "stat"))
	must(t, err)
	// proc(5): fields 14 and 15 are utime and stime in hundredths of a second; the name may have spaces.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	for _, v := range f[11:13] {
		n, err := strconv.Atoi(v)
		must(t, err)
		u.cpu += time.Duration(n) * 10 * time.Millisecond
	}
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	must(t, err)
	u.files = len(files)
	return u
}

// knows is everything that a director's kernel and replica have, of a farm in which nothing happens.
func knows(t *testing.T, s *daemon) map[string]string {
	t.Helper()
	all := map[string]string{}
	kernel, _ := survey(t, []*farm.Node{s.node})
	for k, h := range kernel[0] {
		all[fmt.Sprintf("kernel %d %v>%v", k.protocol, k.client, k.virtual)] = fmt.Sprintf("%v %s synced=%v", h.real, h.state, h.synced)
	}
	for _, c := range s.connections(t) {
		all[fmt.Sprintf("replica %s %s>%s", c.Protocol, c.Client, c.Virtual)] = fmt.Sprintf("%s %s %v of %s", c.Real, c.State, c.Flags, c.Origin)
	}
	return all
}

// Bounds of a flood's effect.
const (
	floodTime     = 3 * time.Second
	floodMemory   = 32 << 10 // KiB: buffers and garbage of what was refused
	floodFiles    = 32       // connections that have not proved themselves, two sessions, and those that are being closed
	floodStranger = 24       // connections that a stranger holds at a time
)

// floodEntries is what directors have in a flood, so that a join has something to do.
const floodEntries = 2000

// TestHostileJoin: what a stranger says on the TCP port of a director raises one counter each time, changes nothing and costs little, and
// a newcomer is taught in the middle of a flood of connects.
func TestHostileJoin(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 4, RealServers: 2, SyncSegment: true})
	for _, d := range f.Directors {
		must(t, d.AddServices(churnService))
	}
	d1, d2, late, evil := f.Directors[0], f.Directors[1], f.Directors[2], f.Directors[3]
	c := newChurn(t, d1)
	c.burst(t, 0, floodEntries)
	keys := genkey(t, d1)
	capture, err := evil.Capture("join", string(farm.Sync), "tcp")
	must(t, err)
	s1, s2 := launchSyncd(t, d1, keys), launchSyncd(t, d2, keys)
	s1.waitSynced(t)
	s2.waitSynced(t)
	peers := s2.waitPeers(t, d1.Name).Peers
	if len(peers) != 1 || peers[0].Teaches == "" {
		t.Fatalf("%s does not say where it teaches: %+v", d1.Name, peers)
	}
	x := stranger{evil, peers[0].Teaches}
	eventually(t, auditLimit, func() string {
		if n := s1.ask(t).Counters["teach_finished"]; n == 0 {
			return "nobody has pulled yet"
		}
		return ""
	})
	must(t, capture.Stop())
	tape := recordedClient(t, capture.File, x.to)
	if len(tape) < transfer.HelloLen+transfer.HeaderLen+transfer.RequestLen+transfer.TagLen {
		t.Fatalf("the recorded session has %d bytes", len(tape))
	}
	real, err := transfer.ParseHello(tape[:transfer.HelloLen])
	must(t, err)
	hello := func(change func(*transfer.Hello)) []byte {
		h := real
		h.Node, h.Incarnation, h.Nonce = 4711, 4712, [transfer.NonceLen]byte{1, 2, 3}
		if change != nil {
			change(&h)
		}
		return transfer.AppendHello(nil, &h)
	}
	frame := func(kind transfer.Type, payload []byte, tag byte) []byte {
		b, err := transfer.EndFrame(append(transfer.BeginFrame(nil, kind), payload...), 0)
		must(t, err)
		b[len(b)-1] = tag
		return b
	}
	asking := transfer.AppendRequest(nil, &transfer.Request{Purpose: transfer.Join, Node: real.Node, Incarnation: real.Incarnation})
	random := rand.New(rand.NewPCG(8848, 81))
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	version := hello(nil)
	version[4]++
	header := frame(transfer.TypeRequest, asking, 1)[:transfer.HeaderLen]
	header[1] = 1 // 64 KiB, as far as the header says

	before, leave := refusals(s1.ask(t)), s1.used(t)
	known := knows(t, s1)
	want := maps.Clone(before)
	for _, a := range []attempt{
		{"says nothing", "teach_timeout", func(net.Conn) error { return nil }},
		{"hangs up", "teach_closed", func(c net.Conn) error { return c.(*net.TCPConn).CloseWrite() }},
		{"half a hello", "teach_timeout", say(hello(nil)[:20])},
		{"a byte every 100 ms", "teach_timeout", func(c net.Conn) error {
			for _, b := range hello(nil) {
				if _, err := c.Write([]byte{b}); err != nil {
					return nil //nolint:nilerr // refused at last
				}
				time.Sleep(100 * time.Millisecond)
			}
			return errors.New("it could say it all")
		}},
		{"noise", "teach_malformed", say(noise)},
		{"HTTP", "teach_malformed", say([]byte("GET / HTTP/1.1\r\nHost: director\r\nAccept: everything and more of it\r\n\r\n"))},
		{"another version", "teach_wrong_version", say(version)},
		{"another group", "teach_wrong_group", say(hello(func(h *transfer.Hello) { h.Group++ }))},
		{"unsigned", "teach_unsigned", say(hello(func(h *transfer.Hello) { h.KeyID = 0 }))},
		{"a key that nobody has", "teach_unknown_key", say(hello(func(h *transfer.Hello) { h.KeyID = 99 }))},
		{"its own hello", "teach_reflected", func(c net.Conn) error {
			if _, err := c.Write(hello(nil)); err != nil {
				return err
			}
			own := make([]byte, transfer.HelloLen)
			if _, err := io.ReadFull(c, own); err != nil {
				return err
			}
			again, err := x.connect(t.Context())
			if err != nil {
				return err
			}
			defer again.Close()
			if err := c.(*net.TCPConn).CloseWrite(); err != nil { // counts as another one that hangs up
				return err
			}
			want["teach_closed"]++
			if _, err := again.Write(own); err != nil {
				return err
			}
			_, err = ended(again)
			return err
		}},
		{"a forged request", "teach_forged", say(append(hello(nil), frame(transfer.TypeRequest, asking, 1)...))},
		{"a request of 64 KiB", "teach_malformed", say(append(hello(nil), header...))},
		{"a hello as the other director, no request", "teach_timeout", say(tape[:transfer.HelloLen])},
		{"a recorded session", "teach_forged", say(tape)},
		{"a recorded session once more", "teach_forged", say(tape)},
	} {
		conn, err := x.connect(t.Context())
		must(t, err)
		if err := a.do(conn); err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
		if said, err := ended(conn); len(said) > transfer.HelloLen || err != nil {
			t.Errorf("%s: the director said %d bytes, %v", a.name, len(said), err)
		}
		conn.Close()
		want[a.counter]++
		eventually(t, readyLimit, func() string {
			if got := refusals(s1.ask(t)); !maps.Equal(got, want) {
				return fmt.Sprintf("%s: counters are %v, want %v", a.name, raised(got, before), raised(want, before))
			}
			return ""
		})
	}
	t.Logf("strangers' attempts, each refused with its own counter: %v", raised(want, before))
	if diff := cmp.Diff(known, knows(t, s1)); diff != "" {
		t.Errorf("strangers changed what %s knows (-before +after):\n%s", d1.Name, diff)
	}

	// A flood, and a newcomer in the middle of it.
	start := s1.used(t)
	t.Logf("%s before: %v; after the attempts: %v", d1.Name, leave, start)
	stop, count := flood(t, x, [][]byte{nil, noise[:100], hello(nil), tape})
	s3 := launchSyncd(t, late, keys)
	began := time.Now()
	most := start
	st := s3.waitStatus(t, func(st control.SyncStatus) string {
		u := s1.used(t)
		most.resident, most.files = max(most.resident, u.resident), max(most.files, u.files)
		if !st.Synced {
			return fmt.Sprintf("not synced: %+v", st.Join)
		}
		return ""
	})
	took := time.Since(began)
	for time.Since(began) < floodTime {
		u := s1.used(t)
		most.resident, most.files = max(most.resident, u.resident), max(most.files, u.files)
		time.Sleep(50 * time.Millisecond)
	}
	flooded := time.Since(began)
	attempts := count()
	end := s1.used(t)
	stop()
	t.Logf("RESULT flood of %d TCP connections in %v: %s used %v of CPU (%v each), at most %d KiB resident and %d descriptors, before %v; a newcomer joined in %v: %+v",
		attempts, flooded.Round(100*time.Millisecond), d1.Name, end.cpu-start.cpu, (end.cpu-start.cpu)/time.Duration(max(1, attempts)),
		most.resident, most.files, start, took.Round(100*time.Millisecond), st.Join)
	if st.Join.State != control.JoinSynced || st.Connections.Local+st.Connections.Remote != floodEntries {
		t.Errorf("the newcomer has %+v after %+v", st.Connections, st.Join)
	}
	if most.resident > start.resident+floodMemory || most.files > start.files+floodFiles {
		t.Errorf("the flood costs too much: at most %d KiB and %d descriptors, before %v", most.resident, most.files, start)
	}
	if diff := cmp.Diff(known, knows(t, s1)); diff != "" {
		t.Errorf("the flood changed what %s knows (-before +after):\n%s", d1.Name, diff)
	}
	t.Logf("counters of %s: %v", d1.Name, raised(refusals(s1.ask(t)), want))
	for _, s := range []*daemon{s1, s2, s3} {
		s.stopSyncd(t)
	}
}

// flood connects again and again until stop is called. Each connection says one of the texts and is then left to the director.
func flood(t *testing.T, x stranger, texts [][]byte) (stop func(), count func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var n atomic.Int64
	for i := range floodStranger {
		wg.Go(func() {
			for k := i; ctx.Err() == nil; k++ {
				c, err := x.connect(ctx)
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
					continue
				}
				n.Add(1)
				_, _ = c.Write(texts[k%len(texts)]) // refused, perhaps, as it should be
				end := context.AfterFunc(ctx, func() { c.Close() })
				_, _ = ended(c)
				end()
				c.Close()
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop, func() int { return int(n.Load()) }
}
