package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/control"
)

// farm is what a saru serves that is only data.
type farm struct {
	status  control.Status
	buckets control.Buckets
	which   control.Which
	orders  []any // lines of the answer to drain and undrain
	events  []control.Event
}

// start serves the farm until the test ends and returns the socket.
func (f farm) start(t *testing.T) string {
	t.Helper()
	return serve(t, func(s *control.Server) {
		s.HandleJSON(control.PathStatus, func(context.Context, url.Values) (any, error) { return f.status, nil })
		s.HandleJSON(control.PathMembers, func(context.Context, url.Values) (any, error) { return f.status.Members, nil })
		s.HandleJSON(control.PathBuckets, func(context.Context, url.Values) (any, error) { return f.buckets, nil })
		s.HandleJSON(control.PathWhich, func(_ context.Context, q url.Values) (any, error) {
			r, err := control.ParseWhichRequest(q)
			if err == nil && !r.Destination.IsValid() && f.which.Sense == "dst-port" {
				err = fmt.Errorf("%w: the destination counts: name it", control.ErrBadRequest)
			}
			return f.which, err
		})
		for _, path := range []string{control.PathDrain, control.PathUndrain} {
			s.HandleWork("POST "+path, func(_ context.Context, q url.Values, emit func(any) error) error {
				r, err := control.ParseDrainRequest(q)
				if err == nil && r.Node == "d9" {
					err = fmt.Errorf("%w: d9 is not heard", control.ErrBadRequest)
				}
				if err != nil {
					return err
				}
				if err := emit(control.DrainLine{Progress: &control.Progress{Phase: path + " " + q.Encode()}}); err != nil {
					return err
				}
				for _, line := range f.orders {
					err = errors.Join(err, emit(line))
				}
				return err
			})
		}
		s.HandleWork(control.PathHistory, func(ctx context.Context, q url.Values, emit func(any) error) error {
			r, err := control.ParseHistoryRequest(q)
			if err != nil {
				return err
			}
			first := 0
			if r.Last >= 0 {
				first = len(f.events) - min(r.Last, len(f.events))
			}
			for _, e := range f.events[first:] {
				err = errors.Join(err, emit(e))
			}
			if r.Follow {
				<-ctx.Done()
			}
			return err
		})
	})
}

func goodStatus() control.Status {
	return control.Status{
		Node: "d1", State: control.StateMember, Master: "d2", Term: 3, Version: 17, SinceMS: 65_000, UptimeMS: 3_600_000, Policy: control.PolicyQuorum,
		Buckets: control.BucketCounts{Total: 4096, Owned: 1366, Next: 1365, Open: 1366}, Lease: control.Lease{RemainingMS: 280},
		Sync: control.Sync{Synced: true}, Alarms: []string{}, Usable: true, FunctionDigest: "aa", ConfiguredDigest: "aa",
		Members: []control.Member{
			{
				Node: "d2", State: control.StateMember, Weight: 100, Owned: 1365, Next: 1366, Open: 1365, Master: true, Synced: true, Usable: true, Term: 3, Version: 17,
				Links: []control.Link{{Interface: "eth0", LastHeardMS: 12}, {Interface: "eth1", LastHeardMS: 2_300}, {Interface: "eth2", LastHeardMS: control.Never}},
			},
			{Node: "d1", State: control.StateMember, Weight: 100, Owned: 1366, Next: 1365, Open: 1366, Self: true, Synced: true, Usable: true, Links: []control.Link{}, Term: 3, Version: 17},
			{Node: "d3\x1b[2J", State: control.StateDead, Weight: 50, Owned: 1365, Links: []control.Link{}},
		},
		Filter: []control.FilterCounts{{Virtual: "198.51.100.1", Accepted: 10, Foreign: 20, Late: 1}},
	}
}

const goodText = `node     d1, up for 1h0m0s
state    member
master   d2
table    term 3, version 17, for 65.0 s, quorum
buckets  1366 of 4096 owned (33.3 %), 1366 open, next owner of 1365
lease    280 ms
syncd    synced
alarms   none

MEMBER  STATE           WEIGHT  OWNED  SHARE   NEXT  OPEN  SYNCED  TABLE  LINKS
d1      member          100     1366   33.3 %  1365  1366  yes     3/17   this director
d2      member, master  100     1365   33.3 %  1366  1365  yes     3/17   eth0 12 ms, eth1 SILENT for 2.3 s, eth2 NEVER HEARD
d3?[2J  dead            50      1365   33.3 %  0     0     no      -      -

VIRTUAL       ACCEPTED  FOREIGN  LATE
198.51.100.1  10        20       1
`

func TestFarm(t *testing.T) {
	events := []control.Event{
		{Time: time.Date(2026, 11, 26, 20, 0, 0, 5e6, time.Local), Name: "line", Text: "founds a line of tables, term 3", Term: 0},
		{Time: time.Date(2026, 11, 26, 20, 0, 1, 0, time.Local), Name: "ineligible", Text: "no director\nis eligible", Alarm: true, Term: 3, Version: 17},
	}
	good := farm{
		status: goodStatus(), events: events,
		which:   control.Which{Bucket: 1234, Owner: "d2", Next: "d\x1b3", Term: 3, Version: 17, Sense: "src-addr,src-port", Mask: 32},
		buckets: control.Buckets{Node: "d1", Term: 3, Version: 17, Buckets: 8, Members: []string{"d1", "d2", "d3"}, Owner: []byte{0, 0, 0, 1, 1, 2, 2, 255}, Next: []byte{1, 2, 2, 0, 255, 0, 0, 1}, Open: "0-1"},
		orders:  []any{control.DrainLine{Progress: &control.Progress{Phase: "d2 hands over", Done: 1, Total: 2}}, control.DrainLine{Summary: &control.DrainSummary{Node: "d2", Complete: true, Obeyed: true, Owned: 7, TookMS: 340}}},
	}.start(t)
	bad := farm{
		status: control.Status{State: control.StateJoining},
		which:  control.Which{Sense: "dst-port", Open: true},
		orders: []any{control.DrainLine{Summary: &control.DrainSummary{Node: "d\x1b2", Obeyed: true, Owned: 3, Open: 4, TookMS: 1000, Why: "nobody is eligible"}}},
	}.start(t)
	wrong := farm{buckets: control.Buckets{Buckets: 1, Owner: []byte{1}, Next: []byte{0}}}.start(t)
	newer := serve(t, func(s *control.Server) {
		s.HandleJSON(control.PathStatus, func(context.Context, url.Values) (any, error) {
			return json.RawMessage(`{"state":"draining","alarms":[],"newer":1}`), nil
		})
		s.HandleJSON(control.PathMembers, func(context.Context, url.Values) (any, error) { return json.RawMessage(`[{"newer":1}]`), nil })
	})
	tests := []struct {
		args string
		want output
	}{
		{"status --control " + good, output{0, goodText, ""}},
		{"status --json --control " + newer, output{0, `{"state":"draining","alarms":[],"newer":1}` + "\n", ""}},
		{"members --json --control " + newer, output{0, `[{"newer":1}]` + "\n", ""}},
		{"members --control " + good, output{0, strings.Split(goodText, "\n\n")[1] + "\n", ""}},
		{"members --control " + bad, output{0, "MEMBER  STATE  WEIGHT  OWNED  SHARE  NEXT  OPEN  SYNCED  TABLE  LINKS\n", ""}},

		{"which 192.0.2.7:40000 198.51.100.1:80 --control " + good, output{0, `bucket  1234, by src-addr,src-port (32 bits of the address)
owner   d2
next    d?3
here    closed
table   term 3, version 17
`, ""}},
		{"which [2001:db8::9]:40000 [2001:db8::1]:80 --control " + bad, output{1, `bucket  0, by dst-port
owner   nobody
next    nobody
here    open
table   term 0, version 0
`, ""}},
		{"which --json [::1]:80 --control " + good, output{0, `{"bucket":1234,"owner":"d2","next":"d\u001b3","open":false,"term":3,"version":17,"sense":"src-addr,src-port","mask":32}` + "\n", ""}},
		{"which 192.0.2.7:40000 --control " + bad, output{2, "", "saructl: saru: the destination counts: name it\n"}},
		{"which 192.0.2.7:40000 [::1]:80 --control " + good, output{2, "", "saructl: saru: 192.0.2.7:40000 and [::1]:80 are of different families\n"}},
		{"which 192.0.2.7 --control " + good, output{2, "", "saructl: which: \"192.0.2.7\" must be ADDR:PORT or [ADDR]:PORT\n"}},
		{"which 192.0.2.7:1 vip --control " + good, output{2, "", "saructl: which: \"vip\" must be ADDR:PORT or [ADDR]:PORT\n"}},
		{"which", output{2, "", "saructl: which: SRC:PORT of a client is required, and DST:PORT of a virtual service may follow: see saructl --help\n"}},

		{"buckets --control " + good, output{0, `term 3, version 17: 8 buckets, 2 open on d1
MEMBER  OWNED  SHARE   NEXT  OPEN HERE  NEXT OWNERS
d1      3      37.5 %  3     2          d2 1, d3 2
d2      2      25.0 %  2     0          d1 1, nobody 1
d3      2      25.0 %  2     0          d1 2
nobody  1      12.5 %  1     0          d2 1
`, ""}},
		{"buckets --map --control " + good, output{0, `term 3, version 17: 8 buckets, 2 open on d1
     0  AAabbcc.
a d1 3  b d2 2  c d3 2  . nobody 1
a character is a bucket; upper case: open here
`, ""}},
		{"buckets --json --control " + good, output{0, `{"node":"d1","term":3,"version":17,"buckets":8,"members":["d1","d2","d3"],"owner":"AAAAAQECAv8=","next":"AQICAP8AAAE=","open":"0-1"}` + "\n", ""}},
		{"buckets --control " + bad, output{0, "there is no table yet\n", ""}},
		{"buckets --control " + wrong, output{1, "", "saructl: saru's answer: bucket 0 of member 1: there are 0\n"}},
		{"buckets --map --json", output{2, "", "saructl: buckets: --map and --json exclude each other\n"}},

		{"drain d2 --control " + good, output{0, "EMPTY: d2 owns nothing any more, after 340 ms\n", ""}},
		{"undrain --control " + good, output{0, "TAKES PART: d2 owns 7 buckets, after 340 ms\n", ""}},
		{"drain --control " + bad, output{1, "NOT EMPTY: d?2 owns 3 buckets and holds 4 open, after 1.0 s: nobody is eligible\n", ""}},
		{"undrain --control " + bad, output{1, "TAKES NO PART: d?2 owns 3 buckets, after 1.0 s: nobody is eligible\n", ""}},
		{"drain d2 --json --control " + good, output{0, `{"progress":{"phase":"/drain node=d2\u0026wait=1","done":0,"total":0}}
{"progress":{"phase":"d2 hands over","done":1,"total":2}}
{"summary":{"node":"d2","complete":true,"why":"","obeyed":true,"owned":7,"open":0,"took_ms":340}}
`, ""}},
		{"undrain --json --control " + wrong, output{1, `{"progress":{"phase":"/undrain wait=1","done":0,"total":0}}` + "\n", "saructl: saru: the answer ends without a result\n"}},
		{"drain d9 --control " + good, output{2, "", "saructl: saru: d9 is not heard\n"}},
		{"undrain d1 d2", output{2, "", "saructl: undrain: the name of one director at most, as members shows it: see saructl --help\n"}},

		{"history --control " + good, output{0, `2026-11-26 20:00:00.005  -        line        founds a line of tables, term 3
2026-11-26 20:00:01.000  3/17     ineligible  ALARM no director?is eligible
`, ""}},
		{"history -n 1 --control " + good, output{0, "2026-11-26 20:00:01.000  3/17     ineligible  ALARM no director?is eligible\n", ""}},
		{"history --number 0 --control " + good, output{0, "", ""}},
		{"history -n -1", output{2, "", "saructl: invalid argument \"-1\" for \"-n, --number\" flag: must be a number from 0 to 2147483647: see saructl --help\n"}},

		{"status --control /nonexistent.sock", output{1, "", "saructl: saru is not running: nobody listens on /nonexistent.sock: start it, or name its socket with --control\n"}},
		{"drain --control /nonexistent.sock", output{1, "", "saructl: saru is not running: nobody listens on /nonexistent.sock: start it, or name its socket with --control\n"}},
		{"buckets --control " + newer, output{1, "", "saructl: what listens on " + newer + " does not know /buckets: it is no saru, or one older than this saructl, to be restarted\n"}},
		{"status --interval 2s", output{2, "", "saructl: status: --interval goes with --watch\n"}},
		{"status --watch --interval 1ms", output{2, "", "saructl: invalid argument \"1ms\" for \"--interval\" flag: must be a time with its unit (100ms, 2s) from 100ms to 1h: see saructl --help\n"}},
		{"status extra", output{2, "", "saructl: unknown command \"extra\" for \"saructl status\": see saructl --help\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := saructl(t, strings.Fields(tt.args)...)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(output{})); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
	for i, want := range []string{`{"time":"`, `"name":"ineligible","text":"no director\nis eligible","alarm":true,"term":3,"version":17}`} {
		if got := saructl(t, "history", "--json", "--control", good); got.code != 0 || strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, want) {
			t.Errorf("%d: %+v", i, got)
		}
	}
	for args, want := range map[string]string{"drain |": "d2\nd1\nd3?[2J\n:4\n", "undrain d1 |": ":4\n", "which |": ":4\n"} {
		fields := strings.Fields(args)
		fields[len(fields)-1] = "" // what is to be completed
		if got := saructl(t, append([]string{"__complete", "--control", good}, fields...)...); got.stdout != want || got.code != 0 {
			t.Errorf("%s: %+v, want %q", args, got, want)
		}
	}
}

// TestFarmStatusTexts shows what the lines of status say in each case, and which of
// them are bad.
func TestFarmStatusTexts(t *testing.T) {
	tests := []struct {
		name   string
		change func(*control.Status)
		line   string
		code   int
	}{
		{"drains", func(s *control.Status) { s.State = control.StateDraining }, "state    draining", 0},
		{"joins", func(s *control.Status) { s.State = control.StateJoining }, "state    joining", 1},
		{"isolated", func(s *control.Status) { s.State = control.StateIsolated }, "state    isolated", 1},
		{"no table", func(s *control.Status) { s.Term, s.Master = 0, "" }, "master   -\ntable    none yet", 0},
		{"pending", func(s *control.Status) { s.Pending = 18 }, "table    term 3, version 17, for 65.0 s, quorum; version 18 is to follow", 0},
		{"no lease", func(s *control.Status) { s.Lease.RemainingMS = 0 }, "lease    none: nothing is let through", 0},
		{"not synced", func(s *control.Status) { s.Sync.Synced = false }, "syncd    not synced", 0},
		{"no syncd", func(s *control.Status) { s.Sync.Error = "the daemon is\nnot running" }, "syncd    the daemon is?not running", 0},
		{"no destinations", func(s *control.Status) { s.Usable = false }, "services  a virtual service has no destination", 0},
		{"ping nodes", func(s *control.Status) { s.Pings = control.Pings{Total: 3, Reached: 2} }, "ping nodes  2 of 3 reached", 0},
		{"other function", func(s *control.Status) { s.ConfiguredDigest = "bb" }, "share function  the table's (aa) is not that of this director (bb)", 0},
		{"alarms", func(s *control.Status) { s.Alarms = []string{"filter: gone", "split: d\x1b4"} }, "ALARM    filter: gone\nALARM    split: d?4", 1},
		{"member without destinations", func(s *control.Status) { s.Members = []control.Member{{Node: "d4", State: control.StateMember}} }, "d4      member, no destinations  0       0      0.0 %  0     0     no      -      -", 0},
		{"inside", func(s *control.Status) { s.Inside.Foreign = 5 }, "inside        0         5        -", 0},
		{"by chance", func(s *control.Status) { s.Chance = control.ChanceCounts{Foreign: 5, Rebounded: 2} }, "by chance     0         7        -", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := goodStatus()
			tt.change(&s)
			got := saructl(t, "status", "--control", farm{status: s}.start(t))
			if got.code != tt.code || got.stderr != "" || !strings.Contains(got.stdout, "\n"+tt.line+"\n") {
				t.Errorf("status %d, %q, %s\nwant %d and the line %q", got.code, got.stderr, got.stdout, tt.code, tt.line)
			}
		})
	}
}

// TestFollow sees events at once, and ends well with the operator's patience.
func TestFollow(t *testing.T) {
	path := farm{events: []control.Event{{Name: "table"}}}.start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &notice{text: "table", seen: cancel}
	var stderr strings.Builder
	if code := run(ctx, []string{"history", "--follow", "--control", path}, out, &stderr); code != exitGood || stderr.String() != "" {
		t.Errorf("status %d and %q", code, stderr.String())
	}
	if !strings.Contains(out.String(), "table") {
		t.Errorf("output %q", out.String())
	}
}

// notice calls seen when a text has been written.
type notice struct {
	written strings.Builder
	text    string
	seen    func()
}

func (n *notice) Write(b []byte) (int, error) {
	if strings.Contains(string(b), n.text) {
		n.seen()
	}
	return n.written.Write(b)
}

func (n *notice) String() string { return n.written.String() }

// TestDrainInterrupted tells that an order stays.
func TestDrainInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := serve(t, func(s *control.Server) {
		s.HandleWork("POST "+control.PathDrain, func(ctx context.Context, _ url.Values, _ func(any) error) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
	})
	var stdout, stderr strings.Builder
	if code := run(ctx, []string{"drain", "--control", path}, &stdout, &stderr); code != exitBad || stderr.String() != "saructl: interrupted: what was ordered stays\n" {
		t.Errorf("status %d and %q", code, stderr.String())
	}
}
