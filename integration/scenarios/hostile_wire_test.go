package scenarios

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// wire is a stranger on the segment: it hears everything and can send anything.
type wire struct {
	node  *farm.Node
	raw   int          // with IP_HDRINCL: any source address
	plain *net.UDPConn // for what needs fragments
	heard *net.UDPConn
	done  chan struct{}

	mu   sync.Mutex
	tape []taped
}

// taped is a datagram that was heard.
type taped struct {
	mirror.Trailer
	data []byte
}

func openWire(t *testing.T, n *farm.Node) *wire {
	t.Helper()
	w := &wire{node: n, done: make(chan struct{})}
	group := net.UDPAddrFromAddrPort(ipvssync.DefaultGroup())
	must(t, n.Do(func() error {
		link, err := net.InterfaceByName(string(farm.Sync))
		if err != nil {
			return err
		}
		if w.heard, err = net.ListenMulticastUDP("udp4", link, group); err != nil {
			return err
		}
		if err := w.heard.SetReadBuffer(4 << 20); err != nil {
			return err
		}
		if w.plain, err = net.ListenUDP("udp4", &net.UDPAddr{IP: n.Addr(farm.Sync).AsSlice()}); err != nil {
			return err
		}
		if w.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		plain, err := w.plain.SyscallConn()
		if err != nil {
			return err
		}
		mreq := &unix.IPMreqn{Ifindex: int32(link.Index)}
		var inner error
		err = plain.Control(func(fd uintptr) {
			inner = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq)
		})
		return errors.Join(err, inner,
			unix.SetsockoptIPMreqn(w.raw, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq),
			unix.SetsockoptByte(w.raw, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0))
	}))
	go w.listen()
	t.Cleanup(func() {
		w.heard.Close()
		w.plain.Close()
		unix.Close(w.raw)
		<-w.done
	})
	return w
}

// listen tapes syncd's datagrams until the socket is closed.
func (w *wire) listen() {
	defer close(w.done)
	buf := make([]byte, 65536)
	for {
		n, err := w.heard.Read(buf)
		if err != nil {
			return
		}
		data := slices.Clone(buf[:n])
		if tr, _, err := mirror.ParseTrailer(data); err == nil {
			w.mu.Lock()
			w.tape = append(w.tape, taped{tr, data})
			w.mu.Unlock()
		}
	}
}

// of returns what was heard of a node so far; records tells to leave out the
// datagrams without records.
func (w *wire) of(name string, records bool) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out [][]byte
	for _, d := range w.tape {
		if d.Sender == uint64(peer.IDOf(name)) && !(records && (d.Kind != mirror.KindRecords)) {
			out = append(out, d.data)
		}
	}
	return out
}

// send sends a datagram to the group from any address.
func (w *wire) send(from netip.Addr, data []byte) error {
	group := ipvssync.DefaultGroup()
	if len(data) > mirror.MaxDatagram { // the kernel does not fragment what has a header already
		_, err := w.plain.WriteToUDPAddrPort(data, group)
		return err
	}
	return unix.Sendto(w.raw, udpPacket(from, group, data), 0, &unix.SockaddrInet4{Addr: group.Addr().As4()})
}

// udpPacket is a datagram with its IPv4 header, for a raw socket with IP_HDRINCL (RFC 791, RFC 768). The kernel fills in identification and
// checksum of the IP header; UDP goes without.
func udpPacket(from netip.Addr, to netip.AddrPort, data []byte) []byte {
	b := make([]byte, 28, 28+len(data))
	b[0], b[8], b[9] = 0x45, 1, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(data)))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[20:], 50000)
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	return append(b, data...)
}

// playAll sends a recording again and again until stop is called, which
// returns how often.
func (w *wire) playAll(t *testing.T, from netip.Addr, recording [][]byte) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	rounds := make(chan int, 1)
	go func() {
		for n := 0; ; n++ {
			for _, d := range recording {
				if err := w.send(from, d); err != nil {
					t.Errorf("replay: %v", err)
				}
			}
			select {
			case <-ctx.Done():
				rounds <- n + 1
				return
			case <-time.After(50 * time.Millisecond): // well below the interval of heartbeats
			}
		}
	}()
	return sync.OnceValue(func() int {
		cancel()
		return <-rounds
	})
}

// drops picks the counters of datagrams that changed nothing.
func drops(st control.SyncStatus) map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range st.Counters {
		if strings.HasPrefix(name, "drop_") {
			out[name] = n
		}
	}
	return out
}

// known is everything that a director knows, in its kernel and in its replica,
// the fences left out: they come during an attack.
func known(t *testing.T, s *daemon, f *farm.Farm) []string {
	t.Helper()
	var out []string
	isFence := func(a netip.Addr) bool {
		return slices.ContainsFunc(f.Directors, func(d *farm.Node) bool { return d.Addr(farm.Front) == a })
	}
	for _, c := range kernelConns(t, s.node) {
		if !isFence(c.Virtual.Addr()) {
			out = append(out, fmt.Sprintf("kernel %v %s synced=%v", tuple{c.Protocol, c.Client, c.Virtual, c.Real}, c.State, c.Synced))
		}
	}
	for _, c := range s.connections(t) {
		if v, err := netip.ParseAddrPort(c.Virtual); err != nil || !isFence(v.Addr()) {
			out = append(out, fmt.Sprintf("replica %s %s>%s>%s %s %v of %s", c.Protocol, c.Client, c.Virtual, c.Real, c.State, c.Flags, c.Origin))
		}
	}
	slices.Sort(out)
	return out
}

// settled is known when two looks in a row find the same.
func settled(t *testing.T, s *daemon, f *farm.Farm) (now []string) {
	t.Helper()
	eventually(t, readyLimit, func() string {
		before := now
		if now = known(t, s, f); before == nil || !slices.Equal(before, now) {
			return fmt.Sprintf("what %s knows does not settle:\n%s", s.node.Name, cmp.Diff(before, now))
		}
		return ""
	})
	return now
}

// longest is the longest time that a UDP entry of the farm's service still has:
// nothing but a record can raise it.
func longest(t *testing.T, d *farm.Node) (left time.Duration) {
	t.Helper()
	for _, c := range kernelConns(t, d) {
		if c.Protocol == unix.IPPROTO_UDP && c.Virtual.Addr() == farm.VIP {
			left = max(left, c.Expires)
		}
	}
	return left
}

// volley is a number of datagrams, each with the counter that it must raise.
type volley []shot

type shot struct {
	data    []byte
	counter string
}

// all is a volley that must raise one counter.
func all(counter string, data ...[]byte) (v volley) {
	for _, d := range data {
		v = append(v, shot{d, counter})
	}
	return v
}

// strike sends a volley and checks that each datagram raises its own counter at
// the victim, no other counter of drops is raised, and nothing is changed. helper
// is a director whose live traffic still gets through.
func (w *wire) strike(t *testing.T, f *farm.Farm, name string, from netip.Addr, victim *daemon, helper *farm.Node, v volley) {
	t.Helper()
	if len(v) == 0 {
		t.Fatalf("%s: nothing to send", name)
	}
	knownBefore, leftBefore, st := settled(t, victim, f), longest(t, victim.node), victim.status(t)
	before, want := drops(st), drops(st)
	for i, s := range v {
		want[s.counter]++
		must(t, w.send(from, s.data))
		if i%200 == 199 { // a receiver's buffer takes so many of any size
			victim.status(t)
		}
	}
	eventually(t, readyLimit, func() string {
		got := drops(victim.status(t))
		for c := range want {
			if got[c] < want[c] {
				return fmt.Sprintf("%s: %s is %d after %d, want %d", name, c, got[c], before[c], want[c])
			}
		}
		return ""
	})
	if helper != nil {
		fence(t, f, helper, victim.node)
	}
	after := victim.status(t)
	if diff := cmp.Diff(want, drops(after)); diff != "" {
		t.Errorf("%s: counters of %s (-want +got):\n%s", name, victim.node.Name, diff)
	}
	// A change would last; what the kernel lists is no snapshot.
	eventually(t, readyLimit, func() string {
		if diff := cmp.Diff(knownBefore, known(t, victim, f)); diff != "" {
			return fmt.Sprintf("%s: kernel or replica of %s changed (-before +after):\n%s", name, victim.node.Name, diff)
		}
		return ""
	})
	// A director that has just found a service injects its entries anew, with
	// what remains of their time rounded to a second.
	if left := longest(t, victim.node); left > leftBefore+2*time.Second {
		t.Errorf("%s: an entry has %v left, more than the %v before", name, left, leftBefore)
	}
	if n := after.Counters["namesakes"]; n != 0 {
		t.Errorf("%s: %s takes %d datagrams for a namesake's", name, victim.node.Name, n)
	}
	raised := map[string]uint64{}
	for c, n := range drops(after) {
		if n != before[c] {
			raised[c] = n - before[c]
		}
	}
	t.Logf("%-52s from %-9s %4d sent to %s: %v", name, from, len(v), victim.node.Name, raised)
}

// flipped returns every version of a signed datagram in which one bit of one
// byte is changed, with the counter that it must raise: the tag covers
// everything, but what says where the tag is and under which key is read before.
func flipped(d []byte) (v volley) {
	fixed := len(d) - mirror.MinLen
	for i := range d {
		b, bit, counter := slices.Clone(d), byte(1), "drop_forged"
		switch at := i - fixed; {
		case at >= 0 && at < 4: // magic: no trailer, so a stock kernel's
			counter = "drop_unsigned"
		case at == 4:
			counter = "drop_version"
		case at == 5: // key 1 becomes key 3
			bit, counter = 2, "drop_unknown_key"
		case at == 8 && fixed >= 8+256: // a body of 256 bytes would fit
		case at >= 8 && at < 12, at >= 60 && at < 64: // length of the body beyond the message or odd; reserved
			counter = "drop_truncated"
		}
		b[i] ^= bit
		v = append(v, shot{b, counter})
	}
	return v
}

// cut returns a datagram cut off at every length, and one with a tail.
func cut(d []byte) (v volley) {
	for n := range d {
		v = append(v, shot{d[:n], "drop_truncated"})
	}
	return append(v, shot{append(slices.Clone(d), 1, 2, 3, 4), "drop_truncated"})
}

// forge makes a datagram that says what d says with the next sequence numbers
// and another real server, under a key of the forger's choice.
func forge(t *testing.T, d []byte, keys string, keyID uint8, protocol, group string) []byte {
	t.Helper()
	b := slices.Clone(d)
	f := b[len(b)-mirror.MinLen:]
	f[5] = keyID
	binary.BigEndian.PutUint64(f[28:], binary.BigEndian.Uint64(f[28:])+1000)
	b[8+35]++ // last byte of the first record's real server, if it is IPv4
	clear(f[mirror.FixedLen:])
	if keyID == 0 {
		return b
	}
	parsed, err := seal.Parse([]byte(keys))
	must(t, err)
	parsed[0].ID = keyID
	ring, err := seal.NewRing(parsed, protocol, group)
	must(t, err)
	ring.Sign(b)
	return b
}

// garbage returns datagrams of noise that are longer than any that syncd sends.
func garbage() (v volley) {
	r := rand.New(rand.NewPCG(81, 8848))
	for _, n := range []int{1473, 1500, 2048, 4096, 9188, 9189, 20000, 65507} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[2], b[3] = 0, 0 // surely not its length
		v = append(v, shot{b, "drop_truncated"})
	}
	return v
}

// TestHostileSegment: whoever can send on the segment and heard everything, but
// has no key, changes nothing; each kind of attempt raises its own counter by
// exactly the number of datagrams. Real daemons, real sockets, also across
// restarts of sender and receiver.
func TestHostileSegment(t *testing.T) {
	const protocol, group = "syncd", "224.0.0.81:8848"
	spec := basic
	spec.Directors = 3
	f := farm.New(t, spec)
	serve(t, f)
	d1, d2, evil := f.Directors[0], f.Directors[1], f.Directors[2]
	for _, d := range f.Directors[:2] {
		must(t, d.AddServices(services...))
	}
	fenceServices(t, f)
	must(t, d1.TakeVIP())
	w := openWire(t, evil)
	daemons := startSyncds(t, f.Directors[:2])
	s1, s2 := daemons[0], daemons[1]
	keys, err := d1.ReadFile(keyFile)
	must(t, err)
	otherKeys := genkey(t, d1)
	openAll(t, f.Clients[0], 2, services)
	sameEntries(t, d1, d2, 2*len(services), 2*4)
	fence(t, f, d2, d1)

	// Entries have to be older than the tolerance for a replay that refreshes
	// one to be noticed.
	eventually(t, readyLimit, func() string {
		if left := longest(t, d2); left > 296*time.Second {
			return fmt.Sprintf("UDP entries still have %v", left)
		}
		return ""
	})
	// Everything that was heard so far has arrived at both as well.
	live := w.of(d1.Name, true)
	sample := live[slices.IndexFunc(live, func(d []byte) bool { return d[8]&1 == 0 })] // begins with an IPv4 record
	stock := ipvssync.Record{
		Protocol: unix.IPPROTO_TCP, State: ipvssync.TCPEstablished, Timeout: 900, Client: intruder(9, 1),
		Virtual: netip.AddrPortFrom(farm.VIP, natPort), Real: netip.AddrPortFrom(f.RealServers[0].Addr(farm.Inside), natPort),
	}
	v0, err := ipvssync.AppendRecordV0(ipvssync.AppendHeaderV0(nil, 1), 0, &stock)
	must(t, err)
	must(t, ipvssync.FinishV0(v0, 0, 1))
	as1, own := d1.Addr(farm.Sync), evil.Addr(farm.Sync)
	replay := func(name string) [][]byte { return w.of(name, false) }
	for _, x := range []struct {
		name string
		from netip.Addr
		volley
	}{
		{"one bit of each byte changed", as1, flipped(sample)},
		{"cut off at each length", as1, cut(sample)},
		{"signed with a key id that nobody has", as1, all("drop_unknown_key", forge(t, sample, string(keys), 9, protocol, group))},
		{"signed with the key of another file", as1, all("drop_forged", forge(t, sample, otherKeys, 1, protocol, group))},
		{"signed with the right key for another protocol", as1, all("drop_forged", forge(t, sample, string(keys), 1, "saru", group))},
		{"signed with the right key for another group", as1, all("drop_forged", forge(t, sample, string(keys), 1, protocol, "224.0.0.82:8848"))},
		{"not signed", as1, all("drop_unsigned", forge(t, sample, "", 0, protocol, group))},
		{"as a stock kernel's, versions 1 and 0", own, all("drop_unsigned", stockMessage(t, 1, &stock), v0)},
		{"noise longer than any datagram", own, garbage()},
		{"replayed, incarnation that runs", as1, all("drop_replayed", replay(d1.Name)...)},
		{"replayed once more, as by itself", own, all("drop_replayed", replay(d1.Name)...)},
		{"its own datagrams, reflected", own, all("drop_own", replay(d2.Name)...)},
	} {
		w.strike(t, f, x.name, x.from, s2, d1, x.volley)
	}

	// The receiver restarts; what it heard in its earlier life comes again.
	old1, old2 := replay(d1.Name), replay(d2.Name)
	restart := func(s *daemon, other string) *daemon {
		t.Helper()
		s.stopSyncd(t)
		fresh := startSyncd(t, s.node, "")
		fresh.waitPeers(t, other)
		return fresh
	}
	s2 = restart(s2, d1.Name)
	s1.waitPeers(t, d2.Name)
	fence(t, f, d2, d1)
	w.strike(t, f, "replayed, after the receiver has restarted", as1, s2, d1, all("drop_replayed", old1...))
	w.strike(t, f, "its own of an earlier life, reflected", own, s2, d1, all("drop_incarnation", old2...))

	// The sender restarts; what it sent in its earlier life comes again.
	s1 = restart(s1, d2.Name)
	s2.waitPeers(t, d1.Name)
	fence(t, f, d2, d1)
	w.strike(t, f, "replayed, earlier incarnation of the sender", as1, s2, d1, all("drop_incarnation", old1...))
	w.strike(t, f, "replayed to the sender itself", own, s1, d2, all("drop_incarnation", old1...))

	// Both are gone, and one comes back while all that they have ever said is
	// said again and again.
	s1.stopSyncd(t)
	s2.stopSyncd(t)
	recording := slices.Concat(replay(d1.Name), replay(d2.Name))
	stop := w.playAll(t, as1, recording)
	defer stop()
	s2 = startSyncd(t, d2, "")
	st := s2.waitStatus(t, func(st control.SyncStatus) string {
		if n := st.Counters[control.DropIncarnation]; n < uint64(3*len(recording)) {
			return fmt.Sprintf("%s is %d, waiting for three rounds of %d", control.DropIncarnation, n, len(recording))
		}
		return ""
	})
	rounds := stop()
	// What its kernel still has it has read there, and calls its own.
	if len(st.Peers) != 0 || st.Connections.Remote != 0 || st.Counters["namesakes"] != 0 {
		t.Errorf("a starting director believes the recording of those that are gone: %+v", st)
	}
	others := drops(st)
	maps.DeleteFunc(others, func(name string, n uint64) bool { return n == 0 || name == control.DropIncarnation })
	if len(others) > 0 {
		t.Errorf("replayed to a starting director, other counters were raised: %v", others)
	}
	t.Logf("a director that starts alone while the %d datagrams of both directors' former lives are played to it %d times: no peer, no namesake, no connection, synced all the same; drop_incarnation %d",
		len(recording), rounds, st.Counters[control.DropIncarnation])
	s2.stopSyncd(t)
}
