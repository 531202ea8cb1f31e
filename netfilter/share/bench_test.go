package share

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
	"saru/lib/tun/nstest"
)

// generator puts frames into the stack as if a device had received them, thousands in one system call: the kernel's test run of an XDP program with live frames (Linux 5.18,
// Documentation/bpf/bpf_prog_run.rst). So what is measured is what a packet costs in the stack, not what it costs to send.
type generator struct {
	program int
	context [24]byte // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
	frames  [][]byte
}

const (
	framesPerCall = 16384
	vethName      = "bench0"
	warm          = 4 * framesPerCall
)

var (
	passAll = []byte{0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0} // r0 = XDP_PASS; exit
	license = []byte("GPL\x00")
)

// bpf calls bpf(2). Pointers within attr must be to what is not on the stack.
func bpf(tb testing.TB, command int, attr []byte) int {
	tb.Helper()
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	if errno != 0 {
		tb.Fatalf("bpf command %d: %v (this benchmark needs real root and Linux 5.18)", command, errno)
	}
	return int(r)
}

func pointer(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// undisturbed blocks the signal by which Go's scheduler interrupts threads, which would end a run early. The thread is the test's own.
func undisturbed(tb testing.TB) {
	tb.Helper()
	var set, old unix.Sigset_t
	set.Val[0] = 1 << (unix.SIGURG - 1)
	must(tb, unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old))
	tb.Cleanup(func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) })
}

// newGenerator makes a generator of one-packet flows to the benchmark's address.
func newGenerator(tb testing.TB, flows []tuple) *generator {
	tb.Helper()
	dev, err := net.InterfaceByName(vethName)
	must(tb, err)
	g := &generator{frames: framesTo(dev.HardwareAddr, flows)}
	binary.NativeEndian.PutUint32(g.context[12:], uint32(dev.Index))
	attr := make([]byte, 48) // union bpf_attr, BPF_PROG_LOAD
	binary.NativeEndian.PutUint32(attr, unix.BPF_PROG_TYPE_XDP)
	binary.NativeEndian.PutUint32(attr[4:], uint32(len(passAll)/8))
	binary.NativeEndian.PutUint64(attr[8:], pointer(passAll))
	binary.NativeEndian.PutUint64(attr[16:], pointer(license))
	g.program = bpf(tb, unix.BPF_PROG_LOAD, attr)
	tb.Cleanup(func() { _ = unix.Close(g.program) })
	return g
}

// framesTo makes a frame of 60 bytes (80 with IPv6) for each flow.
func framesTo(mac net.HardwareAddr, flows []tuple) (frames [][]byte) {
	for _, f := range flows {
		frame := append(slices.Clone([]byte(mac)), 2, 0, 0, 0, 0, 1, 0x08, 0x00)
		if !f.src.Addr().Is4() {
			frame[12], frame[13] = 0x86, 0xdd
		}
		frames = append(frames, append(frame, checked(f, make([]byte, 18))...))
	}
	return frames
}

// checked makes a UDP packet with a right checksum: connection tracking takes no other.
func checked(f tuple, data []byte) []byte {
	s := segment(f, append([]byte{0, 0, 0, 0}, data...))
	binary.BigEndian.PutUint16(s[4:], uint16(len(s)))
	length := binary.BigEndian.AppendUint32(nil, uint32(len(s)))
	binary.BigEndian.PutUint16(s[6:], ^sum(slices.Concat(f.src.Addr().AsSlice(), f.dst.Addr().AsSlice(), length, []byte{0, 0, 0, udp}, s)))
	return ipPacket(f.src.Addr(), f.dst.Addr(), udp, s)
}

// run sends n frames.
func (g *generator) run(tb testing.TB, n int) {
	for i := 0; n > 0; i++ {
		count := min(n, framesPerCall)
		frame := g.frames[i%len(g.frames)]
		attr := make([]byte, 80) // union bpf_attr, BPF_PROG_TEST_RUN
		binary.NativeEndian.PutUint32(attr, uint32(g.program))
		binary.NativeEndian.PutUint32(attr[8:], uint32(len(frame)))
		binary.NativeEndian.PutUint64(attr[16:], pointer(frame))
		binary.NativeEndian.PutUint32(attr[32:], uint32(count))
		binary.NativeEndian.PutUint32(attr[40:], uint32(len(g.context)))
		binary.NativeEndian.PutUint64(attr[48:], pointer(g.context[:]))
		binary.NativeEndian.PutUint32(attr[64:], 1<<1) // BPF_F_TEST_XDP_LIVE_FRAMES
		binary.NativeEndian.PutUint32(g.context[4:], uint32(len(frame)))
		bpf(tb, unix.BPF_PROG_TEST_RUN, attr)
		runtime.KeepAlive(frame)
		n -= count
	}
}

// arrangement is a way to drop foreign packets.
type arrangement struct {
	name    string
	install func(b *testing.B, is4 bool, owned []uint64, own bool)
}

var benchVIP = map[bool]netip.Addr{true: vip4, false: vip6}

// handmade installs a table with a chain whose last rule drops; exprs are those of the rule before it that accepts.
func handmade(b *testing.B, family nftables.TableFamily, ch nftables.Chain, is4 bool, set nftables.Set, elements []nftables.SetElement, look expr.Any) {
	b.Helper()
	c, err := nftables.New()
	must(b, err)
	t := c.AddTable(&nftables.Table{Name: "bench", Family: family})
	ch.Table, ch.Name, ch.Type = t, "c", nftables.ChainTypeFilter
	c.AddChain(&ch)
	accept := c.AddChain(&nftables.Chain{Table: t, Name: "accept"})
	set.Table, set.Name = t, "owned"
	for i := range elements {
		if set.IsMap {
			elements[i] = jumpElement(elements[i].Key, accept.Name)
		} else if set.KeyType.Bytes == 2 {
			elements[i].Key = elements[i].Key[:2] // of a number in the machine's byte order: right on little-endian machines only
		}
	}
	must(b, c.AddSet(&set, nil))
	must(b, chunks(elements, func(part []nftables.SetElement) error { return c.SetAddElements(&set, part) }))
	f := flow.Default
	to := []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: map[bool][]byte{true: {0x08, 0}, false: {0x86, 0xdd}}[is4]}}
	to = append(to, direct(is4).dst.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: benchVIP[is4].AsSlice()})
	rule := func(exprs ...expr.Any) { c.AddRule(&nftables.Rule{Table: t, Chain: &ch, Exprs: exprs}) }
	rule(join(to, []expr.Any{meta(expr.MetaKeyL4PROTO, 1), compare(expr.CmpOpEq, udp)}, jhash(direct(is4), f), []expr.Any{look})...)
	if !set.IsMap {
		c.FlushChain(&ch)
		rule(join(to, []expr.Any{meta(expr.MetaKeyL4PROTO, 1), compare(expr.CmpOpEq, udp)}, jhash(direct(is4), f), []expr.Any{look, &expr.Counter{}, verdict(expr.VerdictAccept)})...)
	}
	rule(join(to, []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)})...)
	c.AddRule(&nftables.Rule{Table: t, Chain: accept, Exprs: []expr.Any{&expr.Counter{}, verdict(expr.VerdictAccept)}})
	must(b, c.Flush())
}

func elementsOf(owned []uint64) (out []nftables.SetElement) {
	for i, w := range owned {
		out = appendBuckets(out, i, w)
	}
	return out
}

var (
	hashSet    = nftables.Set{KeyType: nftables.TypeMark, Size: 4096, KeyByteOrder: binaryutil.NativeEndian}
	bitmapSet  = nftables.Set{KeyType: nftables.TypeInetService}
	prerouting = nftables.Chain{Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw}
)

var arrangements = []arrangement{
	{"none", func(*testing.B, bool, []uint64, bool) {}},
	// What a foreign packet costs that is dropped without being looked at.
	{"drop", func(b *testing.B, _ bool, _ []uint64, own bool) {
		if !own {
			nft(b, "add table inet bench; add chain inet bench c { type filter hook prerouting priority raw; };"+
				"add rule inet bench c ip daddr 192.0.2.1 counter drop; add rule inet bench c ip6 daddr 2001:db8::1 counter drop")
		}
	}},
	{"drop at ingress", func(b *testing.B, _ bool, _ []uint64, own bool) {
		if !own {
			nft(b, "add table netdev bench; add chain netdev bench c { type filter hook ingress device "+vethName+" priority 0; };"+
				"add rule netdev bench c ip daddr 192.0.2.1 counter drop; add rule netdev bench c ip6 daddr 2001:db8::1 counter drop")
		}
	}},
	{"share", func(b *testing.B, _ bool, owned []uint64, _ bool) {
		f := mustOpen(b, testConfig())
		must(b, f.Apply(owned))
		must(b, f.Grant(lasts(time.Hour)))
	}},
	// As the manual of iptables has it, iptables-extensions(8), without its detour by a mark.
	{"xt_cluster", func(b *testing.B, is4 bool, _ []uint64, own bool) {
		benchCluster(b, is4, own, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	}},
	{"xt_cluster at input", func(b *testing.B, is4 bool, _ []uint64, own bool) {
		benchCluster(b, is4, own, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	}},
	// The following have no lease, no counters with names and no other kinds of packets: what a part of the filter could gain.
	{"one rule", func(b *testing.B, is4 bool, owned []uint64, _ bool) {
		handmade(b, nftables.TableFamilyINet, prerouting, is4, hashSet, elementsOf(owned), in("owned"))
	}},
	{"one rule, 2-byte key", func(b *testing.B, is4 bool, owned []uint64, _ bool) {
		handmade(b, nftables.TableFamilyINet, prerouting, is4, bitmapSet, elementsOf(owned), in("owned"))
	}},
	{"verdict map", func(b *testing.B, is4 bool, owned []uint64, _ bool) {
		set := hashSet
		set.IsMap, set.DataType = true, nftables.TypeVerdict
		handmade(b, nftables.TableFamilyINet, prerouting, is4, set, elementsOf(owned), dispatch("owned"))
	}},
	// Sees fragments.
	{"netdev ingress", func(b *testing.B, is4 bool, owned []uint64, _ bool) {
		ch := nftables.Chain{Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: vethName}
		handmade(b, nftables.TableFamilyNetdev, ch, is4, hashSet, elementsOf(owned), in("owned"))
	}},
}

// benchCluster is iptables -t ... -d VIP -m cluster --cluster-total-nodes 2 ... -j ACCEPT; -j DROP. All nodes are here, or none.
func benchCluster(b *testing.B, is4, own bool, hook *nftables.ChainHook, priority *nftables.ChainPriority) {
	b.Helper()
	c, err := nftables.New()
	must(b, err)
	family := map[bool]nftables.TableFamily{true: nftables.TableFamilyIPv4, false: nftables.TableFamilyIPv6}[is4]
	t := c.AddTable(&nftables.Table{Name: "bench", Family: family})
	ch := c.AddChain(&nftables.Chain{Table: t, Name: "c", Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority})
	info := make([]byte, 16) // struct xt_cluster_match_info: total_nodes, node_mask, hash_seed, flags
	binary.NativeEndian.PutUint32(info, 2)
	if own {
		binary.NativeEndian.PutUint32(info[4:], 3)
	}
	binary.NativeEndian.PutUint32(info[8:], flow.DefaultSeed)
	unknown := xt.Unknown(info)
	to := []expr.Any{direct(is4).dst.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: benchVIP[is4].AsSlice()}}
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(to, []expr.Any{&expr.Match{Name: "cluster", Info: &unknown}, &expr.Counter{}, verdict(expr.VerdictAccept)})})
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(to, []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)})})
	must(b, c.Flush())
}

// BenchmarkFilter measures what a packet costs from the driver on. Own packets are dropped where IPVS would take them: the difference to "none" is the price of a filter. Foreign ones are dropped by
// the filter: the price is the difference to "drop".
func BenchmarkFilter(b *testing.B) {
	for _, is4 := range []bool{true, false} {
		owned, flows := benchFlows(is4)
		for _, a := range arrangements {
			for _, own := range []bool{false, true} {
				kind := map[bool]string{true: "own", false: "foreign"}[own]
				b.Run(fmt.Sprintf("%s/%s/%s", familyName("IPv", is4), a.name, kind), func(b *testing.B) {
					benchWorld(b)
					g := newGenerator(b, flows[own])
					a.measure(b, is4, owned, own, g.run, processorTime)
				})
			}
		}
	}
}

// benchFlows returns owned buckets and 64 flows of own and foreign ones.
func benchFlows(is4 bool) (owned []uint64, flows map[bool][]tuple) {
	rng := rand.New(rand.NewPCG(1, 2))
	owned, flows = randomHalf(rng, 4096), map[bool][]tuple{}
	for len(flows[true]) < 64 || len(flows[false]) < 64 {
		f := tuple{randomSource(rng, is4), netip.AddrPortFrom(benchVIP[is4], 80)}
		if own := has(owned, flow.Default.Bucket(f.src, f.dst)); len(flows[own]) < 64 {
			flows[own] = append(flows[own], f)
		}
	}
	return owned, flows
}

// benchWorld makes a director with a veth, and returns where its other end is.
func benchWorld(b *testing.B) (peer *nstest.NS) {
	b.Helper()
	nstest.New(b)
	peer = nstest.Other(b)
	nstest.Veth(b, vethName, []string{"198.51.100.1/24"}, peer, "bench1", nil)
	sysctl(b, "net/ipv4/conf/all/rp_filter", "0")
	sysctl(b, "net/ipv4/conf/"+vethName+"/rp_filter", "0")
	run(b, "ip", "route", "add", "default", "dev", vethName)
	run(b, "ip", "-6", "route", "add", "default", "dev", vethName)
	run(b, "ip", "route", "add", "local", "192.0.2.0/24", "dev", "lo")
	run(b, "ip", "-6", "route", "add", "local", "2001:db8::/64", "dev", "lo")
	return peer
}

// measure runs b.N frames through an arrangement, by a clock, after a proof that it lets the right ones pass.
func (a arrangement) measure(b *testing.B, is4 bool, owned []uint64, own bool, send func(testing.TB, int), clock func(testing.TB) int64) {
	b.Helper()
	a.install(b, is4, owned, own)
	delivered := sink(b)
	undisturbed(b)
	send(b, warm)
	if n, want := delivered(), uint64(warm); own && n != want || !own && a.name != "none" && n != 0 {
		b.Fatalf("%d packets of %d were delivered", n, want)
	}
	b.ResetTimer()
	start := clock(b)
	send(b, b.N)
	b.ReportMetric(float64(clock(b)-start)/float64(b.N), "ns/op")
}

// processorTime is the time that this thread has had its processor: on a busy machine the clock on the wall tells nothing.
func processorTime(tb testing.TB) int64 {
	tb.Helper()
	var ts unix.Timespec
	must(tb, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts))
	return ts.Nano()
}

// sink drops and counts what has come through to input, where IPVS would take it: before the late drop.
func sink(b *testing.B) (delivered func() uint64) {
	b.Helper()
	nft(b, "add table inet sink; add counter inet sink sunk; add chain inet sink c { type filter hook input priority 98; }; add rule inet sink c iifname "+
		vethName+" meta l4proto udp counter name sunk drop")
	return func() uint64 {
		c, err := nftables.New()
		must(b, err)
		objs, err := c.GetObjects(&nftables.Table{Name: "sink", Family: nftables.TableFamilyINet})
		must(b, err)
		return objs[0].(*nftables.CounterObj).Packets
	}
}
