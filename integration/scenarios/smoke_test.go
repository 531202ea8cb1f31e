package scenarios

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/integration/farm"
	"saru/integration/load"
)

// basic is the farm of most scenarios.
var basic = farm.Spec{Directors: 2, RealServers: 2, Clients: 1, SyncSegment: true, DirectReturn: true}

// Ports of the services that every scenario uses.
const (
	natPort = 80
	drPort  = 81
)

var services = []farm.Service{
	{Port: natPort, Method: farm.NAT},
	{Port: drPort, Method: farm.DR},
	{Port: natPort, Method: farm.NAT, IPv6: true},
	{Port: drPort, Method: farm.DR, IPv6: true},
	{Port: natPort, Method: farm.NAT, UDP: true},
}

// serve starts the real servers.
func serve(t testing.TB, f *farm.Farm) {
	t.Helper()
	for _, r := range f.RealServers {
		for _, port := range []uint16{natPort, drPort} {
			s, err := load.Serve(r, port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSmoke: IPVS is there, and downloads pass by NAT and by DR, on IPv4 and
// IPv6.
func TestSmoke(t *testing.T) {
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		t.Fatalf("no IPVS in this kernel: %v", err)
	}
	began := time.Now()
	f := farm.New(t, basic)
	t.Logf("farm up after %v", time.Since(began))
	serve(t, f)
	d := f.Directors[0]
	must(t, d.AddServices(services...))
	must(t, d.TakeVIP())
	out, err := d.Run("ipvsadm", "-Ln")
	must(t, err)
	if got := strings.Count(out, "->"); got != 1+2*len(services) {
		t.Fatalf("ipvsadm lists %d destinations\n%s", got-1, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range services {
		if s.UDP {
			ok, err := load.Echo(f.Clients[0], s.VIPPort(), "anybody there?", 5*time.Second)
			if err != nil || !ok {
				t.Errorf("UDP echo through %v: %v, %v", s.VIPPort(), ok, err)
			}
			continue
		}
		fleet := load.NewFleet()
		must(t, fleet.Launch(ctx, load.Job{Name: s.VIPPort().String(), Host: f.Clients[0], Target: s.VIPPort(), Count: 4, Order: load.Order{Seed: 1, Bytes: 100_000, Chunk: 10_000, Pace: time.Millisecond}}))
		must(t, fleet.Wait(ctx))
		for _, x := range fleet.Downloads() {
			if x.State != load.Done {
				t.Errorf("download by %s through %s: %v (%s) after %d bytes", s.Method, x.Job, x.State, x.Why, x.Bytes)
			}
		}
	}
	out, err = d.Run("ipvsadm", "-Lnc")
	must(t, err)
	if got := strings.Count(out, "TCP"); got != 16 {
		t.Errorf("%d TCP entries, want 16\n%s", got, out)
	}
}

// TestNodesAreApart: each node has its own host name, /run, /etc, processes,
// and captures show its traffic.
func TestNodesAreApart(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 2, Clients: 1})
	d1, d2 := f.Directors[0], f.Directors[1]
	must(t, d1.WriteFile("/run/saru/mark", []byte("one"), 0o600))
	must(t, d1.WriteFile("/etc/saru/keys", []byte("one"), 0o600))
	for _, file := range []string{"/run/saru/mark", "/etc/saru/keys"} {
		if _, err := d2.ReadFile(file); !os.IsNotExist(err) {
			t.Errorf("%s of %s is seen in %s: %v", file, d1.Name, d2.Name, err)
		}
	}
	out, err := d1.Run("sh", "-c", "hostname; cat /etc/hostname /run/saru/mark; echo; ls /sys/class/net; tr '\\0' ' ' </proc/1/cmdline")
	must(t, err)
	if diff := cmp.Diff(strings.Fields("d1 d1 one front inside lo farm-node d1"), strings.Fields(out)); diff != "" {
		t.Errorf("in d1 (-want +got):\n%s", diff)
	}
	c, err := d1.Capture("ping", "front", "icmp")
	must(t, err)
	if _, err := f.Clients[0].Run("ping", "-c", "2", "-i", "0.2", d1.Addr(farm.Front).String()); err != nil {
		t.Error(err)
	}
	if _, err := f.Clients[0].Run("ping", "-c", "1", d2.Addr6(farm.Front).String()); err != nil {
		t.Error(err)
	}
	must(t, c.Stop())
	if st, err := os.Stat(c.File); err != nil || st.Size() < 4*98 {
		t.Errorf("capture of 4 packets: %v, %v", st, err)
	}
}

// TestPowerLoss: a node that loses power is silent at once, with all its
// processes, and comes back empty under the same addresses.
func TestPowerLoss(t *testing.T) {
	f := farm.New(t, basic)
	d1, client := f.Directors[0], f.Clients[0]
	must(t, d1.AddServices(services...))
	must(t, d1.WriteFile("/run/mark", nil, 0o600))
	p, err := d1.Start("sleep", "1000")
	must(t, err)
	pid, err := d1.Pid()
	must(t, err)
	capture, err := client.Capture("farewell", "front", "host "+d1.Addr(farm.Front).String())
	must(t, err)
	must(t, d1.PowerOff())
	if err := p.WaitTimeout(time.Second); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a process of the node ended with %v, want killed", err)
	}
	if _, err := os.Stat("/proc/" + itoa(pid)); !os.IsNotExist(err) {
		t.Errorf("the anchor is still there: %v", err)
	}
	if _, err := client.Run("ping", "-c", "1", "-W", "1", d1.Addr(farm.Front).String()); err == nil {
		t.Error("the node answers without power")
	}
	if _, err := d1.Run("true"); err == nil {
		t.Error("a program ran in a node without power")
	}
	must(t, d1.PowerOn())
	out, err := d1.Run("ipvsadm", "-Ln")
	must(t, err)
	if strings.Contains(out, "TCP") {
		t.Errorf("the services outlived the power loss\n%s", out)
	}
	if _, err := d1.ReadFile("/run/mark"); !os.IsNotExist(err) {
		t.Errorf("/run outlived the power loss: %v", err)
	}
	if _, err := client.Run("ping", "-c", "1", "-W", "5", d1.Addr(farm.Front).String()); err != nil {
		t.Error(err)
	}
	must(t, capture.Stop())
}
