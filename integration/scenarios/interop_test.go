package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/pcapgo"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/lib/ipvs"
)

// tuple is what a connection is known by, and where it goes.
type tuple struct {
	Protocol              uint8
	Client, Virtual, Real netip.AddrPort
}

func (t tuple) String() string {
	return fmt.Sprintf("%d %v>%v>%v", t.Protocol, t.Client, t.Virtual, t.Real)
}

// states lists a kernel's connections of the farm's clients, sorted, each as
// "tuple STATE".
func states(conns []ipvs.ProcConn) []string {
	var out []string
	for _, c := range conns {
		out = append(out, fmt.Sprintf("%v %s", tuple{c.Protocol, c.Client, c.Virtual, c.Real}, c.State))
	}
	slices.Sort(out)
	return out
}

// tuples leaves the states out.
func tuples(conns []ipvs.ProcConn) map[tuple]bool {
	out := map[tuple]bool{}
	for _, c := range conns {
		out[tuple{c.Protocol, c.Client, c.Virtual, c.Real}] = true
	}
	return out
}

// hold opens TCP connections from a client that stay open, without traffic,
// until the returned function is called.
func hold(t *testing.T, client *farm.Node, to netip.AddrPort, count int) (closeAll func()) {
	t.Helper()
	var conns []net.Conn
	for range count {
		var c net.Conn
		must(t, client.Do(func() (err error) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var d net.Dialer
			c, err = d.DialContext(ctx, "tcp", to.String())
			return err
		}))
		conns = append(conns, c)
		// A server ends connections on which nothing is ordered. This asks for two
		// bytes, the second an hour later.
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err := fmt.Fprintf(c, "get 1 2 1 %d\n", time.Hour)
		must(t, err)
		_, err = io.ReadFull(c, make([]byte, 1))
		must(t, err)
	}
	closeAll = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	t.Cleanup(closeAll)
	return closeAll
}

// sayUDP sends one datagram from a client and returns its end of the
// connection. IPVS makes an entry for it, whether it is answered or not.
func sayUDP(t *testing.T, client *farm.Node, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	var c net.Conn
	must(t, client.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(t.Context(), "udp", to.String())
		return err
	}))
	defer c.Close()
	_, err := c.Write([]byte("hello"))
	must(t, err)
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	must(t, err)
	return local
}

// openAll opens n connections to each of the services through whoever has the
// VIP.
func openAll(t *testing.T, client *farm.Node, n int, services []farm.Service) (closeAll func()) {
	t.Helper()
	var ends []func()
	for _, s := range services {
		if s.UDP {
			for range n {
				sayUDP(t, client, s.VIPPort())
			}
			continue
		}
		ends = append(ends, hold(t, client, s.VIPPort(), n))
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// sameEntries waits until two kernels have the same connections in the same
// states: so many in all, and at least so many ESTABLISHED.
func sameEntries(t *testing.T, from, to *farm.Node, total, established int) []string {
	t.Helper()
	var want []string
	eventually(t, readyLimit, func() string {
		want = states(kernelConns(t, from))
		got := states(kernelConns(t, to))
		if n := strings.Count(strings.Join(want, "\n"), "ESTABLISHED"); n < established || len(want) != total {
			return fmt.Sprintf("%s has %d connections, %d of them ESTABLISHED, want %d and %d\n%s", from.Name, len(want), n, total, established, strings.Join(want, "\n"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Sprintf("kernel of %s differs from that of %s (-%s +%s):\n%s", to.Name, from.Name, from.Name, to.Name, diff)
		}
		return ""
	})
	return want
}

// perService is how many connections of each service the scenarios open.
const perService = 3

// TestStockBackupAndWireshark: the records that a signing syncd sends are taken
// over by a stock kernel's backup thread, and real tshark decodes every
// datagram: live updates and a table transfer, NAT and DR, IPv4 and IPv6.
func TestStockBackupAndWireshark(t *testing.T) {
	spec := basic
	spec.Directors = 3
	f := farm.New(t, spec)
	serve(t, f)
	d1, stock, late := f.Directors[0], f.Directors[1], f.Directors[2]
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	must(t, d1.TakeVIP())
	_, err := stock.Run("ipvsadm", "--start-daemon", "backup", "--mcast-interface", string(farm.Sync), "--syncid", "1")
	must(t, err)
	capture, err := stock.Capture("datagrams", string(farm.Sync), "udp port 8848")
	must(t, err)
	keys := genkey(t, d1)
	first := startSyncd(t, d1, keys)

	closeAll := openAll(t, f.Clients[0], perService, services)
	n := perService * len(services)
	established := sameEntries(t, d1, stock, n, perService*4)
	eventually(t, readyLimit, func() string {
		out, err := stock.Run("ipvsadm", "-Lnc")
		must(t, err)
		lines := map[string]bool{} // an entry may be listed twice
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 6 && f[2] == "ESTABLISHED" {
				lines[strings.Join(f[2:], " ")] = true
			}
		}
		if len(lines) != perService*4 {
			return fmt.Sprintf("ipvsadm -Lnc of the stock backup shows %d connections ESTABLISHED, want %d\n%s", len(lines), perService*4, out)
		}
		return ""
	})
	t.Logf("a stock kernel's backup has all %d connections of a signing syncd, tuples and states the same, for instance:\n%s", n, established[0])
	if got := first.connections(t); len(got) != n {
		t.Errorf("saructl sync connections lists %d, want %d", len(got), n)
	}

	// A newcomer is sent the table: many records in a datagram.
	second := startSyncd(t, late, keys)
	second.waitPeers(t, d1.Name)
	sameEntries(t, d1, late, n, perService*4)
	want := map[tuple]bool{}
	eventually(t, readyLimit, func() string {
		if want = tuples(kernelConns(t, d1)); len(want) != n {
			return fmt.Sprintf("%d connections, want %d", len(want), n)
		}
		return ""
	})
	must(t, capture.Stop())
	checkTshark(t, stock, capture.File, d1, late, want)

	closeAll()
	eventually(t, readyLimit, func() string {
		a, b := states(kernelConns(t, d1)), states(kernelConns(t, stock))
		if i := slices.IndexFunc(b, func(s string) bool { return strings.Contains(s, "ESTABLISHED") }); i >= 0 {
			return fmt.Sprintf("the stock backup has not heard of the end of %s\n%s", b[i], strings.Join(a, "\n"))
		}
		return ""
	})
	t.Logf("after the clients' FIN the stock backup says:\n%s", strings.Join(states(kernelConns(t, stock)), "\n"))
	second.stopSyncd(t)
	first.stopSyncd(t)
}

// Fields of Wireshark's dissector (packet-ipvs-syncd.c). Those that a record has
// stand once for each record, in the order of the records.
var tsharkFields = []string{
	"frame.number", "ip.src", "ip.dst", "udp.srcport", "udp.dstport", "udp.length", "ipvs.conncount", "ipvs.syncid", "ipvs.size",
	"ipvs.type", "ipvs.proto", "ipvs.cport", "ipvs.vport", "ipvs.dport", "ipvs.caddr", "ipvs.vaddr", "ipvs.daddr", "ipvs.caddr6", "ipvs.vaddr6", "ipvs.daddr6",
}

// checkTshark has tshark decode the capture and compares with the connections
// that the kernel of the sender has.
func checkTshark(t *testing.T, where *farm.Node, file string, first, second *farm.Node, want map[tuple]bool) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Fatalf("%v: this guest lacks Wireshark, boot it with SARU_LAB_TOOLS=tshark as make test-guest does", err)
	}
	known, err := where.Run("tshark", "-G", "fields")
	must(t, err)
	args := []string{"-r", file, "-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-E", "aggregator=,"}
	for _, name := range tsharkFields {
		if !strings.Contains(known, "\t"+name+"\t") {
			var own []string
			for line := range strings.Lines(known) {
				if strings.Contains(line, "\tipvs.") {
					own = append(own, line)
				}
			}
			t.Fatalf("tshark has no field %s, but:\n%s", name, strings.Join(own, ""))
		}
		args = append(args, "-e", name)
	}
	out, err := where.Run("tshark", args...)
	must(t, err)
	seen, counts, most := map[tuple]bool{}, map[int]int{}, 0
	for line := range strings.Lines(out) {
		v := map[string][]string{}
		for i, f := range strings.Split(strings.TrimSuffix(line, "\n"), "|") {
			if f != "" {
				v[tsharkFields[i]] = strings.Split(f, ",")
			}
		}
		one := func(name string) string { return strings.Join(v[name], ",") }
		src, err := netip.ParseAddr(one("ip.src"))
		must(t, err)
		if src != first.Addr(farm.Sync) && src != second.Addr(farm.Sync) || one("ip.dst") != "224.0.0.81" || one("udp.dstport") != "8848" || one("ipvs.syncid") != "1" {
			t.Errorf("tshark sees addresses, port or syncid that are not syncd's: %s", line)
		}
		size, err := strconv.Atoi(one("ipvs.size"))
		must(t, err)
		if whole, err := strconv.Atoi(one("udp.length")); err != nil || whole != size+8 {
			t.Errorf("tshark sees a message of %d bytes in a UDP datagram of %s", size, one("udp.length"))
		}
		records := tsharkRecords(t, v)
		if n, err := strconv.Atoi(one("ipvs.conncount")); err != nil || n != len(records) {
			t.Errorf("tshark decodes %d records of %s: %s", len(records), one("ipvs.conncount"), line)
		}
		counts[len(records)]++
		most = max(most, len(records))
		for _, r := range records {
			if !want[r] {
				t.Errorf("tshark decodes %v, which the kernel of %s does not have: %s", r, first.Name, line)
			}
			seen[r] = true
		}
	}
	if diff := cmp.Diff(sorted(want), sorted(seen)); diff != "" {
		t.Errorf("connections of %s and those that tshark saw (-kernel +tshark):\n%s", first.Name, diff)
	}
	if most < 2 {
		t.Error("no datagram with several records was captured")
	}
	t.Logf("tshark decoded %d datagrams without records (heartbeats) and, by number of records, %v: all %d connections, none besides", counts[0], counts, len(seen))
}

func sorted(set map[tuple]bool) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for t := range maps.Keys(set) {
			if !yield(t.String()) {
				return
			}
		}
	})
}

// tsharkRecords puts the fields of one datagram's records together.
func tsharkRecords(t *testing.T, v map[string][]string) []tuple {
	t.Helper()
	var out []tuple
	used := map[string]int{}
	next := func(name string) string {
		i := used[name]
		used[name]++
		if i >= len(v[name]) {
			t.Fatalf("tshark decodes %d of field %s, at least %d are needed: %v", len(v[name]), name, i+1, v)
		}
		return v[name][i]
	}
	for i := range v["ipvs.type"] {
		family := map[string]string{"0": "", "1": "6"}[next("ipvs.type")]
		protocol, err := strconv.ParseUint(next("ipvs.proto"), 0, 8)
		must(t, err)
		r := tuple{Protocol: uint8(protocol)}
		for _, end := range []struct {
			at   *netip.AddrPort
			name string
		}{{&r.Client, "c"}, {&r.Virtual, "v"}, {&r.Real, "d"}} {
			addr, err := netip.ParseAddr(next("ipvs." + end.name + "addr" + family))
			must(t, err)
			port, err := strconv.ParseUint(v["ipvs."+end.name+"port"][i], 10, 16)
			must(t, err)
			*end.at = netip.AddrPortFrom(addr, uint16(port))
		}
		out = append(out, r)
	}
	for name, n := range used {
		if n != len(v[name]) {
			t.Errorf("tshark decodes %d of field %s, %d belong to records", len(v[name]), name, n)
		}
	}
	return out
}

// packets counts what a capture file holds.
func packets(t *testing.T, file string) uint64 {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	must(t, err)
	for n := uint64(0); ; n++ {
		if _, _, err := r.ReadPacketData(); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
}

// TestStockMaster: a syncd with --auth permissive takes over what a stock
// kernel's master sends, in both versions of its messages; one that enforces
// does not, and counts.
func TestStockMaster(t *testing.T) {
	spec := basic
	spec.Directors = 3
	f := farm.New(t, spec)
	serve(t, f)
	strict, lax, stock := f.Directors[0], f.Directors[1], f.Directors[2]
	for _, d := range f.Directors {
		must(t, d.AddServices(services...))
	}
	must(t, stock.TakeVIP())
	must(t, stock.Sysctl("net/ipv4/vs/sync_threshold", "0 0"))
	must(t, stock.Sysctl("net/ipv4/vs/sync_refresh_period", "10"))
	keys := genkey(t, strict)
	a := launchSyncd(t, strict, keys)
	b := launchSyncd(t, lax, keys, "--auth", "permissive")
	a.waitSynced(t)
	b.waitSynced(t)
	a.waitPeers(t, lax.Name)
	b.waitPeers(t, strict.Name)
	capture, err := strict.Capture("stock", string(farm.Sync), "udp port 8848 and src host "+stock.Addr(farm.Sync).String())
	must(t, err)

	total := 0
	for _, version := range []int{1, 0} {
		must(t, stock.Sysctl("net/ipv4/vs/sync_version", strconv.Itoa(version)))
		_, err := stock.Run("ipvsadm", "--start-daemon", "master", "--mcast-interface", string(farm.Sync), "--syncid", "1")
		must(t, err)
		use := services
		if version == 0 { // it has no IPv6
			use = slices.DeleteFunc(slices.Clone(services), func(s farm.Service) bool { return s.IPv6 })
		}
		openAll(t, f.Clients[0], perService, use)
		total += perService * len(use)
		have := sameEntries(t, stock, lax, total, 1)
		origins := map[string]int{}
		for _, c := range b.connections(t) {
			origins[c.Origin]++
		}
		if want := map[string]int{"kernel " + stock.Addr(farm.Sync).String(): total}; !maps.Equal(origins, want) {
			t.Errorf("version %d: the replica says of origins %v, want %v", version, origins, want)
		}
		_, err = stock.Run("ipvsadm", "--stop-daemon", "master")
		must(t, err)
		t.Logf("version %d of a stock kernel's messages: --auth permissive has taken over all %d connections so far, for instance\n%s", version, total, have[len(have)-1])
	}
	must(t, capture.Stop())
	sent := packets(t, capture.File)
	for _, x := range []struct {
		s    *daemon
		name string
	}{{a, control.DropUnsigned}, {b, "accepted_unsigned"}} {
		x.s.waitStatus(t, func(st control.SyncStatus) string {
			if got := st.Counters[x.name]; got != sent {
				return fmt.Sprintf("%s is %d, want %d", x.name, got, sent)
			}
			return ""
		})
	}
	if got := kernelConns(t, strict); len(got) != 0 {
		t.Errorf("the enforcing director has taken over unsigned records: %v", got)
	}
	if got := a.connections(t); len(got) != 0 {
		t.Errorf("the enforcing director's replica has unsigned records: %v", got)
	}
	t.Logf("of the same %d datagrams --auth enforce took none: drop_unsigned %d, no entry in kernel and replica", sent, sent)
	b.stopSyncd(t)
	a.stopSyncd(t)
}
