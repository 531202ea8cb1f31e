package reconcile

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

var update = flag.Bool("update", false, "write the golden files")

// lists are the kernel's lists that package ipvs is tested with.
func lists(tb testing.TB) []string {
	tb.Helper()
	names, err := filepath.Glob("../../lib/ipvs/testdata/*_conn_sync.txt")
	if err != nil || len(names) < 4 {
		tb.Fatal(names, err)
	}
	return names
}

// TestConvertGolden converts the lists of Linux 6.1, 6.12 and 7.2, and one made by hand.
func TestConvertGolden(t *testing.T) {
	for _, name := range lists(t) {
		base := strings.TrimSuffix(filepath.Base(name), ".txt")
		t.Run(base, func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			s, out := indexServices(farm()), ""
			for p, err := range ipvs.ParseConns(bytes.NewReader(text)) {
				if err != nil {
					t.Fatal(err)
				}
				var c Conn
				switch s.convert(&p, &c) {
				case converted:
					r := &c.Record
					out += fmt.Sprintf("%s %s > %s > %s %s, mark %d, %d s old of %d s, %v left, fault %d: %s\n", ipvssync.ProtocolName(r.Protocol), r.Client, r.Virtual,
						r.Real, state(r), r.Fwmark, c.Age, r.Timeout, c.Expires, c.Fault, strings.Join(ipvssync.FlagNames(r.Flags), " "))
				case invalidated:
					out += fmt.Sprintf("%s: given up\n", p.Client)
				case unknown:
					out += fmt.Sprintf("%s: unknown\n", p.Client)
				}
			}
			golden := filepath.Join("testdata", base+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// The service of an entry, by the kernel's rules.
func TestFind(t *testing.T) {
	many := farm()
	many = append(many,
		Service{Service: ipvs.Service{Fwmark: 8, Timeout: time.Minute}, Destinations: []ipvs.Destination{{Address: netip.MustParseAddr("10.1.0.9"), Method: ipvs.MethodTunnel}}},
		Service{Service: ipvs.Service{Fwmark: 11}, Destinations: []ipvs.Destination{{Address: netip.MustParseAddr("10.1.0.11"), Port: 80, Method: ipvs.MethodTunnel}}},
		Service{Service: ipvs.Service{Fwmark: 12}, Destinations: []ipvs.Destination{{Address: netip.MustParseAddr("10.1.0.11"), Port: 80, Method: ipvs.MethodTunnel}}},
	)
	s := indexServices(many)
	for name, tt := range map[string]struct {
		record ipvssync.Record
		mark   uint32
		want   string
	}{
		"by address":                         {record(6, 1, 9, 0, client, web, one), 0, "TCP 10.0.0.100:80, method 0, mark 0"},
		"unknown server":                     {record(6, 1, 9, 0, client, web, "10.1.0.77:8080"), 0, "TCP 10.0.0.100:80, no server"},
		"unknown port of the server":         {record(6, 1, 9, 0, client, web, "10.1.0.2:8081"), 0, "TCP 10.0.0.100:80, no server"},
		"unknown service":                    {record(17, 0, 9, 0, client, web, one), 0, "none"},
		"every port":                         {record(6, 1, 9, 0, client, "10.0.0.101:8080", "10.1.0.2:8080"), 0, "TCP 10.0.0.101:0, method 3, mark 0"},
		"template of every port":             {record(6, 0, 9, template, visitor, "10.0.0.101:0", "10.1.0.2:0"), 0, "TCP 10.0.0.101:0, method 3, mark 0"},
		"template of FTP":                    {record(6, 0, 9, template, visitor, "10.0.0.100:0", "10.1.0.4:0"), 0, "TCP 10.0.0.100:21, method 0, mark 0"},
		"FTP, passive":                       {record(6, 1, 9, 0, client, "10.0.0.100:50000", "10.1.0.4:50000"), 0, "TCP 10.0.0.100:21, no server"},
		"FTP's data port":                    {record(6, 1, 9, 0, client, "10.0.0.100:20", "10.1.0.4:21"), 0, "TCP 10.0.0.100:21, method 0, mark 0"},
		"no FTP below 1024":                  {record(6, 1, 9, 0, client, "10.0.0.100:1023", "10.1.0.4:21"), 0, "none"},
		"the service's mark":                 {record(6, 1, 9, 0, client, web, "10.1.0.9:80"), 7, "fwmark 7, method 3, mark 7"},
		"two marks, two ways":                {record(6, 1, 9, 0, client, "10.0.0.9:80", "10.1.0.9:80"), 0, "none"},
		"two marks, one way":                 {record(6, 1, 9, 0, client, "10.0.0.9:80", "10.1.0.11:80"), 0, "fwmark 11, method 2, mark 11"},
		"mark of nothing":                    {record(6, 1, 9, 0, client, web, one), 99, "TCP 10.0.0.100:80, method 0, mark 0"},
		"mark of a service without it":       {record(6, 1, 9, 0, client, web, one), 7, "TCP 10.0.0.100:80, method 0, mark 0"},
		"mark of IPv6":                       {record(6, 1, 9, 0, "[fd00::1]:1", "[fd00::9]:80", "[fd01::9]:80"), 0, "fwmark 7 (IPv6), method 1, mark 7"},
		"template by mark":                   {record(0, 0, 9, template, visitor, "0.0.0.8:0", "10.1.0.9:0"), 8, "fwmark 8, method 2, mark 8"},
		"template by a mark that is none":    {record(0, 0, 9, template, visitor, "0.0.0.9:0", "10.1.0.9:0"), 9, "none"},
		"server by mark, service by address": {record(6, 1, 9, 0, client, web, "10.1.0.11:80"), 0, "fwmark 11, method 2, mark 11"},
	} {
		r := tt.record
		r.Fwmark = tt.mark
		m, got := s.find(&r), "none"
		if m.service != nil {
			got = m.service.String() + ", no server"
			if m.server {
				got = fmt.Sprintf("%s, method %d, mark %d", m.service, m.method, m.mark)
			}
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestConns(t *testing.T) {
	kernel := lines(t,
		procWeb+procOne+"ESTABLISHED LOCAL 880",
		procWeb+procOne+"ESTABLISHED LOCAL 899", // the same again
		procWeb+procThree+"ESTABLISHED LOCAL 899",
		"TCP C0A80106 D431 0A000064 0050 "+procTwo+"SYN_RECV LOCAL 59",
		"TCP C0A80107 D431 0A000064 0050 "+procTwo+"SYN_RECV SYNC 59",
		"UDP C0A80105 0000 0A000064 13C4 0A010002 13C4 NONE LOCAL 55",
		"UDP C0A80105 0000 0A000064 13C4 0A010002 13C4 NONE LOCAL 44",
		"TCP A9FE5102 2291 A9FE5101 2290 A9FE5102 2290 CLOSE LOCAL 9",
		"TCP C0A80105 0000 0A000064 FFFF 0A010002 FFFF NONE SYNC 300",
		"UDP C0A80108 0035 0A000064 0035 0A010002 0035 UDP LOCAL 200",
	)
	cfg := config()
	cfg.Mirrored = func(r *ipvssync.Record) bool { return r.Virtual.Port() != 53 }
	var got []string
	opening := 0
	for c, err := range Conns(cfg, listOf(kernel)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %v fault %d", c.Record.Client, state(&c.Record), c.Expires, c.Fault))
		if Opening(&c.Record) {
			opening++
		}
	}
	want := []string{
		"192.168.1.5:54321 ESTABLISHED 14m40s fault 0",
		"192.168.1.6:54321 SYN_RECV 59s fault 0",
		"192.168.1.7:54321 SYN_RECV 59s fault 0",
		"192.168.1.5:0 NONE 55s fault 2",
		"192.168.1.5:0 NONE 44s fault 2",
	}
	if diff := cmp.Diff(want, got); diff != "" || opening != 2 {
		t.Errorf("%d opening (-want +got)\n%s", opening, diff)
	}
	// Two lists of which each leaves something out, put together.
	got = nil
	for c, err := range Conns(cfg, listOf(kernel[:4]), listOf(kernel[3:])) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %v fault %d", c.Record.Client, state(&c.Record), c.Expires, c.Fault))
	}
	both := append(want[:3:3], "192.168.1.5:0 NONE 55s fault 2") // of an engine's templates it cannot be told which are the same
	if diff := cmp.Diff(both, got); diff != "" {
		t.Errorf("two lists (-want +got)\n%s", diff)
	}
	for range Conns(cfg, listOf(kernel)) {
		break // must not panic
	}

	broken := errors.New("broken")
	errs := 0
	for c, err := range Conns(cfg, func(yield func(ipvs.ProcConn, error) bool) {
		_ = yield(kernel[0], nil) && yield(ipvs.ProcConn{}, broken)
	}) {
		if err != nil {
			errs++
			if !errors.Is(err, broken) || c.Record.Client.IsValid() {
				t.Errorf("%v with %v", err, c)
			}
		}
	}
	if errs != 1 {
		t.Errorf("%d errors", errs)
	}
	cfg.Limit = 9
	n, last := 0, error(nil)
	for _, err := range Conns(cfg, listOf(kernel)) {
		n, last = n+1, err
	}
	if n != len(want)+1 || !errors.Is(last, ErrTooLong) {
		t.Errorf("beyond the limit: %d elements, the last %v", n, last)
	}
}

func TestReadable(t *testing.T) {
	for _, tt := range []struct {
		entries int
		linear  bool
		ok      bool
	}{{0, false, true}, {Limit, false, true}, {Limit + 1, false, false}, {Limit + 1, true, true}, {10_000_000, true, true}} {
		ok, why := Readable(tt.entries, tt.linear)
		if ok != tt.ok || (why == "") != ok {
			t.Errorf("Readable(%d, %v) = %v, %q", tt.entries, tt.linear, ok, why)
		}
	}
}

func TestHash(t *testing.T) {
	seed, seen := maphash.MakeSeed(), map[uint64]string{}
	base := record(6, 1, 9, 0, client, web, one)
	for name, change := range map[string]func(*ipvssync.Record){
		"the same":         func(*ipvssync.Record) {},
		"client":           func(r *ipvssync.Record) { r.Client = netip.MustParseAddrPort("192.168.1.6:54321") },
		"client port":      func(r *ipvssync.Record) { r.Client = netip.MustParseAddrPort("192.168.1.5:54320") },
		"client port, 256": func(r *ipvssync.Record) { r.Client = netip.MustParseAddrPort("192.168.1.5:54065") },
		"virtual":          func(r *ipvssync.Record) { r.Virtual = netip.MustParseAddrPort("10.0.0.101:80") },
		"virtual port":     func(r *ipvssync.Record) { r.Virtual = netip.MustParseAddrPort("10.0.0.100:81") },
		"protocol":         func(r *ipvssync.Record) { r.Protocol = 17 },
		"template":         func(r *ipvssync.Record) { r.Flags = ipvssync.FlagTemplate },
		"family": func(r *ipvssync.Record) {
			r.Client = netip.MustParseAddrPort("[::ffff:192.168.1.5]:54321")
			r.Virtual = netip.MustParseAddrPort("[::ffff:10.0.0.100]:80")
		},
	} {
		r := base
		change(&r)
		h := hashOf(seed, &r)
		if seen[h] != "" {
			t.Errorf("%s and %s have one hash", name, seen[h])
		}
		seen[h] = name
	}
	same := record(6, 9, 99, ipvssync.FlagInactive|ipvssync.FlagSync, client, web, two)
	if hashOf(seed, &same) != hashOf(seed, &base) {
		t.Error("what is not of the key changes the hash")
	}
}

// FuzzConvert gives any list to the conversion. Whatever it takes can be sent, entered, and is found again.
func FuzzConvert(f *testing.F) {
	for _, name := range lists(f) {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f.Add([]byte(line))
		}
	}
	for _, tt := range rules {
		for _, line := range tt.kernel {
			f.Add([]byte(line + "\n"))
		}
	}
	s := indexServices(farm())
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Conn
		for p, err := range ipvs.ParseConns(bytes.NewReader(slices.Concat([]byte(heading), b))) {
			if err != nil {
				return
			}
			if s.convert(&p, &c) != converted {
				continue
			}
			r := c.Record
			if r.Template() != p.Template || r.Template() && c.Age != 0 || c.Age > r.Timeout || r.Timeout == 0 {
				t.Fatalf("%+v becomes %+v", p, c)
			}
			if left := uint32(p.Expires / time.Second); !r.Template() && r.Timeout-c.Age != left && left > 0 {
				t.Fatalf("%+v has %d of %d s left", p, r.Timeout-c.Age, r.Timeout)
			}
			msg, err := ipvssync.AppendRecordV1(ipvssync.AppendHeaderV1(nil, 1), 0, &r)
			if err == nil {
				err = ipvssync.FinishV1(msg, 0, 1)
			}
			if err != nil {
				t.Fatalf("%+v cannot be sent: %v", c, err)
			}
			parsed, err := ipvssync.Parse(msg)
			if err != nil {
				t.Fatal(err)
			}
			for back, err := range parsed.Records() {
				if err != nil || back.Client != r.Client || back.Virtual != r.Virtual || back.Real != r.Real || back.Flags != r.Flags {
					t.Fatalf("%+v comes back as %+v, %v", r, back, err)
				}
			}
			tab := table.New(t0)
			if out := tab.Put(t0, &r, self, table.Stamp{Clock: 1}, 0); out != table.Inserted {
				t.Fatalf("%+v cannot be entered: %d", c, out)
			}
			if _, ok := tab.Get(t0, &r); !ok {
				t.Fatalf("%+v is not found again", c)
			}
		}
	})
}
