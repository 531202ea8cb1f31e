package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"saru/lib/control"
	"saru/lib/seal"
	"saru/proto/ipvssync"
)

// daemon serves what syncd would, until the test ends, and returns its socket.
func daemon(t *testing.T, status control.SyncStatus, connections ...control.Connection) string {
	t.Helper()
	return serve(t, func(s *control.Server) { handleSync(s, status, connections) })
}

func handleSync(s *control.Server, status control.SyncStatus, connections []control.Connection) {
	s.HandleJSON(control.PathSyncStatus, func(context.Context, url.Values) (any, error) { return status, nil })
	s.HandleStream(control.PathSyncConnections, func(_ context.Context, q url.Values, emit func(any) error) error {
		f, err := control.ParseConnectionFilter(q)
		if err != nil {
			return err
		}
		for _, c := range connections {
			if !f.MatchNames(c.Protocol, c.State, c.Origin) {
				continue
			}
			if err := emit(c); err != nil {
				return err
			}
		}
		return nil
	})
}

// serve serves what handle sets up until the test ends and returns the socket.
func serve(t *testing.T, handle func(*control.Server)) string {
	t.Helper()
	var s control.Server
	handle(&s)
	path := filepath.Join(t.TempDir(), "syncd.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

// output of one run.
type output struct {
	code           int
	stdout, stderr string
}

func saructl(t *testing.T, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, &stdout, &stderr)
	return output{code, stdout.String(), stderr.String()}
}

func TestSync(t *testing.T) {
	counters := control.NewSyncCounter()
	counters[control.DropForged] = 3
	good := daemon(t, control.SyncStatus{
		Node: "d1", Synced: true, Connections: control.SyncCounts{Local: 7, Remote: 12},
		Peers: []control.SyncPeer{
			{
				Node: "d3", Incarnation: "00000000000000ff", Sequence: 9, Missing: 4, LastHeardMS: 40, Synced: true, GivenUp: 3, Entries: 19,
				Links:   []control.SyncLink{{Interface: "eth0", LastHeardMS: 40}, {Interface: "eth1", LastHeardMS: 61_500}, {Interface: "eth2", LastHeardMS: control.Never}},
				Teaches: "192.0.2.3:8848", Confirmed: 77,
			},
			{Node: "d2", Incarnation: "0123456789abcdef", Sequence: 12345, LastHeardMS: 7},
			{Node: "d4\x1b[2J", Incarnation: "0000000000000001", LastHeardMS: 200_000, Lost: true, Links: []control.SyncLink{}},
		},
		LagMS: control.Lag{P50: 12.34, P99: 45}, Counters: counters,
	},
		control.Connection{Family: "ipv4", Protocol: "tcp", Client: "192.0.2.1:40000", Virtual: "198.51.100.1:80", Real: "10.0.0.1:80", State: "ESTABLISHED", Flags: []string{"masq", "sync"}, Origin: "d2", ExpiresS: 899},
		control.Connection{Family: "ipv6", Protocol: "udp", Client: "[2001:db8::9]:53", Virtual: "[2001:db8::1]:53", Real: "[2001:db8::2]:53", State: "UDP", Flags: []string{}, Origin: "d1", ExpiresS: 3},
	)
	// A newer syncd, with fields that this saructl does not know.
	joining := serve(t, func(s *control.Server) {
		s.HandleJSON(control.PathSyncStatus, func(context.Context, url.Values) (any, error) {
			return json.RawMessage(`{"node":"d1","synced":false,"newer":1,"peers":[{"newer":2}]}`), nil
		})
	})
	none := daemon(t, control.SyncStatus{Node: "d1"})
	tests := []struct {
		args string
		want output
	}{
		{"sync status --control " + good, output{0, `node              d1
synced            yes
connections       7 local, 12 remote
lag               p50 12.3 ms, p99 45.0 ms
peers             3
drop_forged       3
drop_incarnation  0
drop_replayed     0
drop_truncated    0
drop_unknown_key  0
drop_unsigned     0

PEER    SYNCED  LAST HEARD  LINKS                                           ENTRIES  SEQUENCE  MISSING  GIVEN UP  CONFIRMED  TEACHES         INCARNATION
d2      no      7 ms        -                                               0        12345     0        0         0          -               0123456789abcdef
d3      yes     40 ms       eth0, eth1 SILENT for 61.5 s, eth2 NEVER HEARD  19       9         4        3         77         192.0.2.3:8848  00000000000000ff
d4?[2J  lost    3m20s       -                                               0        0         0        0         0          -               0000000000000001
`, ""}},
		{"--control " + joining + " sync status --json", output{1, `{"node":"d1","synced":false,"newer":1,"peers":[{"newer":2}]}` + "\n", ""}},
		{"sync peers --json --control " + joining, output{0, `[{"newer":2}]` + "\n", ""}},
		{"sync peers --control " + none, output{0, "PEER  SYNCED  LAST HEARD  LINKS  ENTRIES  SEQUENCE  MISSING  GIVEN UP  CONFIRMED  TEACHES  INCARNATION\n", ""}},
		{"sync connections --control " + good, output{0, `PROTOCOL  CLIENT            VIRTUAL           REAL              STATE        ORIGIN  EXPIRES  FLAGS
tcp       192.0.2.1:40000   198.51.100.1:80   10.0.0.1:80       ESTABLISHED  d2      899s     masq,sync
udp       [2001:db8::9]:53  [2001:db8::1]:53  [2001:db8::2]:53  UDP          d1      3s
`, ""}},
		{"sync connections --json --protocol UDP --control " + good, output{0, `{"family":"ipv6","protocol":"udp","client":"[2001:db8::9]:53","virtual":"[2001:db8::1]:53","real":"[2001:db8::2]:53","state":"UDP","flags":[],"origin":"d1","expires_s":3}
`, ""}},
		{"sync connections --origin nobody --json --control " + good, output{0, "", ""}},

		{"sync status --control /nonexistent.sock", output{1, "", "saructl: syncd is not running: nobody listens on /nonexistent.sock: start it, or name its socket with --control\n"}},
		{"sync connections --json --control /nonexistent.sock", output{1, "", "saructl: syncd is not running: nobody listens on /nonexistent.sock: start it, or name its socket with --control\n"}},
		{"", output{2, "", "saructl: a command is required: see saructl --help\n"}},
		{"frobnicate", output{2, "", "saructl: unknown command \"frobnicate\" for \"saructl\": see saructl --help\n"}},
		{"sync", output{2, "", "saructl: sync: a command is required: status, peers, connections, compare, resync or flush\n"}},
		{"sync frobnicate", output{2, "", "saructl: unknown command \"frobnicate\" for \"saructl sync\": see saructl --help\n"}},
		{"sync status --frobnicate", output{2, "", "saructl: unknown flag: --frobnicate: see saructl --help\n"}},
		{"sync status extra", output{2, "", "saructl: unknown command \"extra\" for \"saructl sync status\": see saructl --help\n"}},
		{"sync connections --client 1.2.3", output{2, "", "saructl: --client: \"1.2.3\" must be ADDR, ADDR/BITS, ADDR:PORT, [ADDR]:PORT or :PORT\n"}},
		{"genkey --id 256", output{2, "", "saructl: invalid argument \"256\" for \"--id\" flag: must be a number from 1 to 255: see saructl --help\n"}},
		{"inspect /nonexistent.pcap", output{1, "", "saructl: open capture: open /nonexistent.pcap: no such file or directory\n"}},
		{"inspect one two", output{2, "", "saructl: inspect: one capture file at most: see saructl --help\n"}},
		{"inspect --interface eth0 file.pcap", output{2, "", "saructl: inspect: --interface and a capture file exclude each other\n"}},
		{"inspect --group 192.0.2.1:80", output{2, "", "saructl: invalid argument \"192.0.2.1:80\" for \"--group\" flag: must be a multicast address with a port, such as 224.0.0.81:8848 or [ff02::81]:8848: see saructl --help\n"}},
		{"inspect --key-file /nonexistent f.pcap", output{2, "", "saructl: --key_file \"/nonexistent\": open key file: open /nonexistent: no such file or directory\n"}},
		{"check nonsense", output{2, "", "saructl: check nonsense: one of syncd, saru may be named, options for it follow after --: see saructl --help\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := saructl(t, strings.Fields(tt.args)...)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(output{})); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// TestManyConnections prints more rows than decide the widths.
func TestManyConnections(t *testing.T) {
	var all []control.Connection
	for i := range 3 * sample {
		all = append(all, control.Connection{Protocol: "tcp", Client: fmt.Sprintf("192.0.2.1:%d", i)})
	}
	got := saructl(t, "sync", "connections", "--control", daemon(t, control.SyncStatus{}, all...))
	if n := strings.Count(got.stdout, "\n"); n != len(all)+1 || got.code != 0 {
		t.Errorf("%d lines and status %d, want %d and 0 (%s)", n, got.code, len(all)+1, got.stderr)
	}
}

// TestInspect shows a message of a stock kernel out of a capture file.
func TestInspect(t *testing.T) {
	message := ipvssync.AppendHeaderV1(nil, 7)
	message, err := ipvssync.AppendRecordV1(message, 0, &ipvssync.Record{
		Protocol: 6, State: 1, Timeout: 900, Client: netip.MustParseAddrPort("192.0.2.1:40000"),
		Virtual: netip.MustParseAddrPort("198.51.100.1:80"), Real: netip.MustParseAddrPort("10.0.0.1:80"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ipvssync.FinishV1(message, 0, 1); err != nil {
		t.Fatal(err)
	}
	ip := &layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 0, 0, 9}, DstIP: []byte{224, 0, 0, 81}}
	udp := &layers.UDP{SrcPort: 40000, DstPort: 8848}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	packet := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(packet, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(message)); err != nil {
		t.Fatal(err)
	}
	var capture bytes.Buffer
	w := pcapgo.NewWriter(&capture)
	if err := w.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	n := len(packet.Bytes())
	if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: n, Length: n}, packet.Bytes()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sync.pcap")
	if err := os.WriteFile(file, capture.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}

	got := saructl(t, "inspect", "--json", file)
	var line control.Connection
	if err := json.Unmarshal([]byte(got.stdout), &line); err != nil || got.code != 0 {
		t.Fatalf("%v in %+v", err, got)
	}
	if line.Client != "192.0.2.1:40000" || line.State != "ESTABLISHED" || line.ExpiresS != 900 {
		t.Errorf("record is %+v", line)
	}
	if got := saructl(t, "inspect", file, "--group", "239.1.1.1:8848"); got.stdout != "" || got.code != 0 {
		t.Errorf("another group: %+v", got)
	}
	if got := saructl(t, "inspect", file); !strings.Contains(got.stdout, "192.0.2.1:40000") || got.code != 0 {
		t.Errorf("as text: %+v", got)
	}
}

// TestGenkey reads the key file as the daemons do.
func TestGenkey(t *testing.T) {
	one, two := saructl(t, "genkey"), saructl(t, "genkey", "--id", "200")
	if one.code != 0 || two.code != 0 {
		t.Fatalf("genkey: %+v, %+v", one, two)
	}
	name := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(name, []byte(one.stdout+two.stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || keys[0].ID != 1 || keys[1].ID != 200 || len(keys[0].Secret) != keyBytes || bytes.Equal(keys[0].Secret, keys[1].Secret) {
		t.Errorf("keys are %v", keys)
	}
	var key struct {
		ID  int
		Key string
	}
	if err := json.Unmarshal([]byte(saructl(t, "genkey", "--json").stdout), &key); err != nil || key.ID != 1 || len(key.Key) != 2*keyBytes {
		t.Errorf("genkey --json: %+v (%v)", key, err)
	}
}

// TestCheck runs a daemon that only shows how it was called.
func TestCheck(t *testing.T) {
	folder := t.TempDir()
	script := "#!/bin/sh\necho \"$@\"\necho problem >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(folder, "syncd"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder+":/usr/bin:/bin")
	tests := []struct {
		args []string
		want output
	}{
		{[]string{"check", "syncd", "--config", "/c"}, output{1, "--check --config /c\nproblem\n", ""}},
		{[]string{"check", "syncd", "--", "--interface", "eth0"}, output{1, "--check --interface eth0\nproblem\n", ""}},
		{[]string{"check", "syncd", "--json"}, output{1, `[{"daemon":"syncd","status":1,"lines":["--check","problem"]}]` + "\n", ""}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, saructl(t, tt.args...), cmp.AllowUnexported(output{})); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.args, diff)
		}
	}
	// Both daemons: the worst of their statuses, and options only for one that is named.
	other := "#!/bin/sh\necho saru: good\nexit ${SARU_STATUS}\n"
	if err := os.WriteFile(filepath.Join(folder, "saru"), []byte(other), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SARU_STATUS", "2")
	tests = []struct {
		args []string
		want output
	}{
		{[]string{"check"}, output{2, "syncd --check:\n--check\nproblem\nsaru --check:\nsaru: good\n", ""}},
		{[]string{"check", "--json"}, output{2, `[{"daemon":"syncd","status":1,"lines":["--check","problem"]},{"daemon":"saru","status":2,"lines":["saru: good"]}]` + "\n", ""}},
		{[]string{"check", "saru", "--config", "/c"}, output{2, "saru: good\n", ""}},
		{[]string{"check", "--config", "/c"}, output{2, "", "saructl: check: name the daemon that the options are for: syncd or saru\n"}},
		{[]string{"check", "--", "--debug"}, output{2, "", "saructl: check: name the daemon that the options are for: syncd or saru\n"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, saructl(t, tt.args...), cmp.AllowUnexported(output{})); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.args, diff)
		}
	}
	if path, err := find("no-such-daemon"); err == nil || err.Error() != "no-such-daemon is not installed" {
		t.Errorf("find: %q, %v", path, err)
	}
}
