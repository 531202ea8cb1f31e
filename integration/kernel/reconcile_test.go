package kernel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"saru/lib/ipvs"
	peers "saru/lib/peer"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/reconcile"
	"saru/syncd/table"
)

const (
	self  = peers.ID(1)
	other = peers.ID(2)
)

// tableReplica is a replica without a daemon around it.
type tableReplica struct{ *table.Table }

func (r tableReplica) Lookup(records []ipvssync.Record, out []reconcile.View) {
	for i := range records {
		e, known := r.Get(time.Now(), &records[i])
		out[i] = reconcile.View{Entry: e, Known: known, Local: known && e.Origin == self}
	}
}

func (r tableReplica) Walk(c table.Cursor, fn func(*table.Entry, bool) bool) table.Cursor {
	return r.Table.Walk(time.Now(), c, 1000, func(e *table.Entry) bool { return fn(e, e.Origin == self) })
}

// learned enters records of another director, made age seconds ago, and injects them as syncd does.
func (r tableReplica) learned(t *testing.T, k *kernelTap, records []ipvssync.Record, age uint32) {
	t.Helper()
	left := slices.Clone(records)
	for i := range left {
		if out := r.Put(time.Now(), &left[i], other, table.Stamp{Clock: 1}, age); out != table.Inserted {
			t.Fatalf("%v: outcome %d", left[i].Client, out)
		}
		if !left[i].Template() {
			left[i].Timeout -= age
		}
	}
	k.injectMany(t, left)
}

// injectMany writes records to the kernel, as many as go into a message at a time: its socket takes some 200 messages, of any length, before
// its thread comes to read them.
func (k *kernelTap) injectMany(tb testing.TB, records []ipvssync.Record) {
	tb.Helper()
	var w ipvssync.Builder
	buf := make([]byte, 9216)
	w.Reset(buf[:0], 9, 9000)
	send := func() {
		msg, err := w.Finish()
		must(tb, err)
		_, err = k.dev.Write(datagram(peer, group, msg))
		must(tb, err)
		w.Reset(buf[:0], 9, 9000)
		time.Sleep(5 * time.Millisecond)
	}
	for i := range records {
		err := w.Add(&records[i])
		if errors.Is(err, ipvssync.ErrFull) {
			send()
			err = w.Add(&records[i])
		}
		must(tb, err)
	}
	send()
}

func addService(t *testing.T, s ipvs.Services, svc ipvs.Service, method uint32, servers ...string) {
	t.Helper()
	svc.Scheduler = "rr"
	must(t, s.AddService(svc))
	for _, a := range servers {
		ap := netip.MustParseAddrPort(a)
		must(t, s.AddDestination(svc, ipvs.Destination{Address: ap.Addr(), Port: ap.Port(), Method: method, Weight: 1}))
	}
}

// listing is what the kernel has of services.
func listing(t *testing.T, s ipvs.Services) (out []reconcile.Service, entries int) {
	t.Helper()
	list, err := s.Services()
	must(t, err)
	for _, svc := range list {
		d, err := s.Destinations(svc)
		must(t, err)
		out = append(out, reconcile.Service{Service: svc, Destinations: d})
		for i := range d {
			entries += d[i].Entries()
		}
	}
	return out, entries
}

// twice makes two passes two seconds apart and returns what both found.
func twice(t *testing.T, cfg reconcile.Config, r reconcile.Replica) (reconcile.Result, []reconcile.Finding) {
	t.Helper()
	first, err := reconcile.Run(t.Context(), cfg, r, ipvs.ReadConns(proc))
	must(t, err)
	time.Sleep(2100 * time.Millisecond) // a confirmation takes two seconds
	second, err := reconcile.Run(t.Context(), cfg, r, ipvs.ReadConns(proc))
	must(t, err)
	var both reconcile.Confirmation
	both.Add(&first)
	both.Add(&second)
	return second, both.Confirmed()
}

func describe(found []reconcile.Finding) (out []string) {
	for i := range found {
		r := found[i].Record()
		out = append(out, fmt.Sprintf("%s %s %s", found[i].Kind, ipvssync.ProtocolName(r.Protocol), r.Client))
	}
	slices.Sort(out)
	return out
}

// TestReconcile lets a kernel learn connections of every kind, takes away and alters some behind the replica's back, and lets the
// comparison name and mend them.
func TestReconcile(t *testing.T) {
	nstest.New(t)
	s := openServices(t)
	vip, vip6 := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00::64")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 80}, ipvs.MethodMasq, "10.1.0.2:8080", "10.1.0.3:8080")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 81}, ipvs.MethodDirect, "10.1.0.2:81", "10.1.0.3:81")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 443, Flags: ipvs.ServicePersistent, Timeout: 6 * time.Minute}, ipvs.MethodMasq, "10.1.0.2:443")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 53}, ipvs.MethodMasq, "10.1.0.2:53")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip6, Port: 443}, ipvs.MethodMasq, "[fd01::2]:443")
	addService(t, s, ipvs.Service{Fwmark: 7, Flags: ipvs.ServicePersistent, Timeout: 5 * time.Minute}, ipvs.MethodDirect, "10.1.0.9:0")
	k := openTap(t)
	replica := tableReplica{table.New(time.Now())}

	const age = 20 // long enough ago to have arrived
	ap := netip.MustParseAddrPort
	client := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}), 40000)
	}
	nat := func(n int) ipvssync.Record {
		return ipvssync.Record{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Client: client(n), Virtual: ap("10.0.0.100:80"), Real: ap("10.1.0.2:8080")}
	}
	udp := ipvssync.Record{Protocol: 17, Timeout: 300, Flags: ipvssync.FlagInactive, Client: ap("192.168.9.1:53"), Virtual: ap("10.0.0.100:53"), Real: ap("10.1.0.2:53")}
	records := []ipvssync.Record{
		udp,
		{Protocol: 6, State: ipvssync.TCPFinWait, Timeout: 120, Flags: ipvssync.FlagInactive | ipvssync.FlagNoOutput | ipvssync.FlagDRoute,
			Client: ap("192.168.9.2:1"), Virtual: ap("10.0.0.100:81"), Real: ap("10.1.0.3:81")},
		{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Client: ap("[fd00::1]:50000"), Virtual: ap("[fd00::64]:443"), Real: ap("[fd01::2]:443")},
		{Protocol: 6, State: 1, Timeout: 360, Flags: ipvssync.FlagTemplate | ipvssync.FlagInactive, Client: ap("192.168.9.3:0"), Virtual: ap("10.0.0.100:443"), Real: ap("10.1.0.2:443")},
		{Protocol: 0, State: 1, Timeout: 300, Fwmark: 7, Flags: ipvssync.FlagTemplate | ipvssync.FlagInactive, Client: ap("192.168.9.4:0"), Virtual: ap("0.0.0.7:0"), Real: ap("10.1.0.9:0")},
		{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Fwmark: 7, Flags: ipvssync.FlagNoOutput | ipvssync.FlagDRoute,
			Client: ap("192.168.9.4:1000"), Virtual: ap("10.0.0.55:80"), Real: ap("10.1.0.9:80")},
		{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900, Client: ap("192.168.9.5:1"), Virtual: ap("10.0.0.200:80"), Real: ap("10.1.0.2:80")}, // no such service
	}
	const plain = 500
	for n := range plain {
		records = append(records, nat(n))
	}
	replica.learned(t, k, records, age)
	conns(t, len(records))

	list, entries := listing(t, s)
	if want := len(records) - 1; entries != want { // the one without a service is counted nowhere
		t.Errorf("the services count %d entries, want %d", entries, want)
	}
	cfg := reconcile.Config{Services: list, Limit: reconcile.Limit}
	equal := func(step string) {
		t.Helper()
		res, found := twice(t, cfg, replica)
		if len(found) != 0 || res.Counts != (reconcile.Counts{}) || res.Kernel != len(records) || res.Replica != len(records) || res.Ignored != 0 {
			t.Errorf("%s: compared %d and %d, ignored %d; found %q, in all %v", step, res.Kernel, res.Replica, res.Ignored, describe(found), res.Counts)
		}
	}
	equal("at first")

	// Behind the replica's back: one is deleted, one leads to another server, one is closed, one will expire soon.
	deleted, moved, closed, soon := nat(7), nat(8), nat(9), nat(10)
	deleted.State, deleted.Flags, deleted.Timeout = ipvssync.TCPClose, ipvssync.FlagInactive, 1
	moved.Real = ap("10.1.0.3:8080")
	closed.State, closed.Flags, closed.Timeout = ipvssync.TCPTimeWait, ipvssync.FlagInactive, 120
	soon.Timeout = 60
	gone := udp
	gone.Timeout = 1
	// One is in the kernel only, but cannot be told from one that was taken over here.
	extra := nat(plain)
	k.inject(t, deleted, moved, closed, soon, gone, extra)
	for _, c := range conns(t, len(records)-2+1) {
		if c.Client == deleted.Client || c.Client == gone.Client {
			t.Fatalf("%v is still in the kernel's list", c.Client)
		}
	}
	want := []string{
		"expires_early tcp 192.168.0.10:40000",
		"missing_in_kernel tcp 192.168.0.7:40000",
		"missing_in_kernel udp 192.168.9.1:53",
		"missing_in_replica tcp 192.168.1.244:40000",
		"other_server tcp 192.168.0.8:40000",
		"other_state tcp 192.168.0.9:40000",
	}
	res, found := twice(t, cfg, replica)
	if diff := gocmp.Diff(want, describe(found)); diff != "" {
		t.Fatalf("(-want +got)\n%s\nin all %v", diff, res.Counts)
	}

	inject, move, publish := reconcile.Repairs(found)
	if len(inject) != 4 || len(move) != 1 || len(publish) != 1 {
		t.Fatalf("%d to inject, %d to move, %d to publish", len(inject), len(move), len(publish))
	}
	inject = append(inject, move...)
	for i := range inject {
		r := inject[i].Record
		r.Timeout -= inject[i].Age() // there is no template among them
		k.inject(t, r)
	}
	p := publish[0]
	if extra.Flags |= ipvssync.FlagSync; p.Fault != reconcile.Sound || !sameRecord(p.Record, extra) {
		t.Errorf("to publish: %+v", p)
	}
	replica.Put(time.Now(), &p.Record, self, table.Stamp{Clock: 2}, p.Age)
	records = append(records, p.Record)
	conns(t, len(records))
	equal("after the repair")
}

// sameRecord compares all that records have.
func sameRecord(a, b ipvssync.Record) bool {
	return gocmp.Equal(a, b, gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

// reports reads what the kernel's master thread reports, by client, until each of them was seen or 20 seconds have gone by.
func (k *kernelTap) reports(t *testing.T, seen func(map[string]ipvssync.Record) bool) map[string]ipvssync.Record {
	t.Helper()
	must(t, k.dev.SetReadDeadline(time.Now().Add(20*time.Second)))
	out, buf := map[string]ipvssync.Record{}, make([]byte, 9216)
	for !seen(out) {
		n, err := k.dev.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		must(t, err)
		if n < 28 || buf[0] != 0x45 || buf[9] != 17 {
			continue
		}
		msg, err := ipvssync.Parse(buf[28:n])
		if err != nil {
			continue // router solicitations and the like
		}
		for r, err := range msg.Records() {
			must(t, err)
			out[name(&r)] = sayable(r)
		}
	}
	return out
}

// sayable is what is the same in the kernel's reports and in /proc. What 6.1 sends as sequence numbers is garbage; a template becomes
// assured with its first connection, and that is reported with a later packet.
func sayable(r ipvssync.Record) ipvssync.Record {
	r.DropSeq()
	if r.Template() {
		r.State = ipvssync.TemplateAssured
	}
	return r
}

func name(r *ipvssync.Record) string {
	s := fmt.Sprintf("%s %s %s", ipvssync.ProtocolName(r.Protocol), r.Client.Addr(), r.Virtual)
	if r.Template() {
		s += " template"
	}
	return s
}

// TestReconcileReports has the kernel make connections and templates of its own, and compares what its master thread reports of them
// with the records that are made of its list.
func TestReconcileReports(t *testing.T) {
	nstest.New(t)
	server, outside := nstest.Other(t), nstest.Other(t)
	nstest.Veth(t, "d0", []string{"10.1.0.1/24", "fd01::1/64"}, server, "d1", []string{"10.1.0.2/24", "fd01::2/64"})
	nstest.Veth(t, "c0", []string{"192.168.1.1/24", "fd02::1/64"}, outside, "c1", []string{"192.168.1.9/24", "fd02::9/64"})
	for ns, route := range map[*nstest.NS][2]string{server: {"10.1.0.1", "fd01::1"}, outside: {"192.168.1.1", "fd02::1"}} {
		ns.Do(t, func() {
			tool(t, "ip", "route", "add", "default", "via", route[0])
			tool(t, "ip", "-6", "route", "add", "default", "via", route[1])
		})
	}
	for path, value := range map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"} {
		must(t, os.WriteFile("/proc/sys/"+path, []byte(value), 0o644))
	}
	tool(t, "ip", "addr", "add", "10.0.0.100/32", "dev", "lo")
	tool(t, "ip", "addr", "add", "fd00::64/128", "dev", "lo")
	tool(t, "nft", "add table ip m; add chain ip m pre { type filter hook prerouting priority -150; }; add rule ip m pre udp dport 4000-4001 meta mark set 7")

	s := openServices(t)
	vip, vip6 := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00::64")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 80}, ipvs.MethodMasq, "10.1.0.2:8080")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 82}, ipvs.MethodMasq, "10.1.0.77:82") // nobody
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip, Port: 443, Flags: ipvs.ServicePersistent, Timeout: 6 * time.Minute}, ipvs.MethodMasq, "10.1.0.2:443")
	addService(t, s, ipvs.Service{Protocol: 6, Address: vip6, Port: 80}, ipvs.MethodMasq, "[fd01::2]:8080")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 53}, ipvs.MethodMasq, "10.1.0.2:53")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 54}, ipvs.MethodDirect, "10.1.0.2:54")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 55}, ipvs.MethodTunnel, "10.1.0.2:55")
	addService(t, s, ipvs.Service{Protocol: 17, Address: vip, Port: 56}, ipvs.MethodLocal, "10.0.0.100:56")
	addService(t, s, ipvs.Service{Fwmark: 7, Flags: ipvs.ServicePersistent, Timeout: 5 * time.Minute}, ipvs.MethodDirect, "10.1.0.2:0")
	for path, value := range map[string]string{"sync_threshold": "0 0", "sync_refresh_period": "10"} {
		must(t, os.WriteFile("/proc/sys/net/ipv4/vs/"+path, []byte(value), 0o644))
	}
	k := openTap(t)

	server.Do(t, func() {
		for _, a := range []string{"10.1.0.2:8080", "10.1.0.2:443", "[fd01::2]:8080"} {
			l, err := net.Listen("tcp", a)
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
				}
			}()
		}
	})
	outside.Do(t, func() {
		for _, a := range []string{"10.0.0.100:80", "10.0.0.100:443", "[fd00::64]:80"} {
			c, err := net.DialTimeout("tcp", a, 10*time.Second)
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range []string{"10.0.0.100:53", "10.0.0.100:54", "10.0.0.100:55", "10.0.0.100:56", "10.0.0.100:4000"} {
			c, err := net.Dial("udp", a)
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		// Nobody answers: it stays half open.
		if c, err := net.DialTimeout("tcp", "10.0.0.100:82", 200*time.Millisecond); err == nil {
			_ = c.Close()
			t.Error("a server that is not there has answered")
		}
	})

	all := []string{
		"ip 192.168.1.9 0.0.0.7:0 template",
		"tcp 192.168.1.9 10.0.0.100:443", "tcp 192.168.1.9 10.0.0.100:443 template", "tcp 192.168.1.9 10.0.0.100:80",
		"tcp fd02::9 [fd00::64]:80",
		"udp 192.168.1.9 10.0.0.100:4000", "udp 192.168.1.9 10.0.0.100:53", "udp 192.168.1.9 10.0.0.100:54", "udp 192.168.1.9 10.0.0.100:55", "udp 192.168.1.9 10.0.0.100:56",
	}
	reported := k.reports(t, func(m map[string]ipvssync.Record) bool { return len(m) == len(all) })
	list, _ := listing(t, s)
	var opening []string
	got := map[string]ipvssync.Record{}
	for c, err := range reconcile.Conns(reconcile.Config{Services: list}, ipvs.ReadConns(proc)) {
		must(t, err)
		if c.Fault != reconcile.Sound || c.Age > 60 {
			t.Errorf("%+v", c)
		}
		if reconcile.Opening(&c.Record) {
			opening = append(opening, fmt.Sprintf("%s > %s", name(&c.Record), c.Record.Real))
			continue
		}
		got[name(&c.Record)] = sayable(c.Record)
	}
	if diff := gocmp.Diff([]string{"tcp 192.168.1.9 10.0.0.100:82 > 10.1.0.77:82"}, opening); diff != "" {
		t.Errorf("opening (-want +got)\n%s", diff)
	}
	addrs := gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := gocmp.Diff(reported, got, addrs); diff != "" {
		t.Errorf("the master thread's reports, and the list (-want +got)\n%s", diff)
	}
	if len(reported) != len(all) {
		t.Errorf("%d were reported:\n%v", len(reported), reported)
	}

	// Had the reports been lost, the comparison would find that, and tell the same; with them, there is nothing to find.
	replica := tableReplica{table.New(time.Now())}
	cfg := reconcile.Config{Services: list}
	_, found := twice(t, cfg, replica)
	if len(found) != len(all) {
		t.Errorf("without the reports, found %q", describe(found))
	}
	_, _, publish := reconcile.Repairs(found)
	for i := range publish {
		r := &publish[i].Record
		if !sameRecord(sayable(*r), reported[name(r)]) {
			t.Errorf("to publish %+v, reported %+v", r, reported[name(r)])
		}
		replica.Put(time.Now(), r, self, table.Stamp{Clock: 1}, publish[i].Age)
	}
	res, found := twice(t, cfg, replica)
	if want := (reconcile.Counts{reconcile.Unopened: 1}); len(found) != 0 || res.Counts != want {
		t.Errorf("with them, found %q, in all %v", describe(found), res.Counts)
	}
}

// BenchmarkReconcile reads and compares lists of a kernel: below 6.14 the kernel's time for it grows with the square of their length.
//
//	make test-guest KERNELS=bookworm RUN=NONE TESTFLAGS="-bench Reconcile -benchtime 3x"
func BenchmarkReconcile(b *testing.B) {
	for _, n := range []int{5_000, 20_000, reconcile.Limit} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			nstest.New(b)
			k := openTap(b)
			replica := tableReplica{table.New(time.Now())}
			records := make([]ipvssync.Record, n)
			for i := range records {
				records[i] = ipvssync.Record{Protocol: 6, State: ipvssync.TCPEstablished, Timeout: 900,
					Virtual: netip.MustParseAddrPort("10.0.0.100:80"), Real: netip.MustParseAddrPort("10.1.0.2:8080"),
					Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}), 40000)}
				replica.Put(time.Now(), &records[i], other, table.Stamp{Clock: 1}, 20)
			}
			k.injectMany(b, records)
			time.Sleep(time.Second)
			missing := 0
			for b.Loop() {
				res, err := reconcile.Run(b.Context(), reconcile.Config{}, replica, ipvs.ReadConns(proc))
				must(b, err)
				missing = res.Counts[reconcile.MissingInKernel]
			}
			if missing > n/100 {
				b.Errorf("%d of %d did not get into the kernel", missing, n)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/entry")
		})
	}
}
