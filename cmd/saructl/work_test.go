package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/control"
)

// worker serves lines of an answer at a path, and nothing else, and returns its
// socket. The parameters that it was given are in the answer's first progress.
func worker(t *testing.T, path string, lines ...any) string {
	t.Helper()
	return serve(t, func(s *control.Server) {
		method := "POST "
		if path == control.PathSyncCompare {
			method = ""
		}
		s.HandleWork(method+path, func(_ context.Context, q url.Values, emit func(any) error) error {
			if err := emit(control.FlushLine{Progress: &control.Progress{Phase: q.Encode()}}); err != nil {
				return err
			}
			for _, line := range lines {
				if err, ok := line.(error); ok {
					return err
				}
				if err := emit(line); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func connection(state string, flags ...string) *control.Connection {
	return &control.Connection{
		Family: "ipv4", Protocol: "tcp", Client: "192.0.2.1:40000", Virtual: "198.51.100.1:80", Real: "10.0.0.1:80",
		State: state, Flags: flags, Origin: "d2", ExpiresS: 899,
	}
}

func TestCompare(t *testing.T) {
	difference := func(with, why string, here, there *control.Connection) control.CompareLine {
		d := control.NewDifference(with, why, here, there)
		return control.CompareLine{Difference: &d}
	}
	end := func(equal bool, k control.CompareKernel, peers ...control.ComparePeer) control.CompareLine {
		return control.CompareLine{Summary: &control.CompareSummary{Equal: equal, Kernel: k, Peers: peers}}
	}
	good := control.CompareKernel{Compared: 1000, Equal: true, Readable: true, Explained: map[string]uint64{"ended meanwhile": 3, "being_set_up": 1, "none": 0}}
	d2 := control.ComparePeer{Node: "d2", Compared: 1000, Equal: true}
	many := []any{}
	for i := range 3 {
		c := *connection("ESTABLISHED")
		c.Client = fmt.Sprintf("192.0.2.%d:1", i+1)
		many = append(many, difference("d2", "never arrived", &c, nil))
	}
	many = append(many, end(false, good, control.ComparePeer{Node: "d2", Compared: 1000, Differ: 3}))
	three := `WITH  DIFFERENCE  PROTOCOL  CLIENT       VIRTUAL          WHY            HERE                                THERE
d2    not there   tcp       192.0.2.1:1  198.51.100.1:80  never arrived  10.0.0.1:80 ESTABLISHED 899s of d2  -
d2    not there   tcp       192.0.2.2:1  198.51.100.1:80  never arrived  10.0.0.1:80 ESTABLISHED 899s of d2  -
d2    not there   tcp       192.0.2.3:1  198.51.100.1:80  never arrived  10.0.0.1:80 ESTABLISHED 899s of d2  -
`
	verdict := "NOT EQUAL: differ: 3 of d2 (1000 entries); equal: this kernel (1000 entries, as they should be: 1 being set up, 3 ended meanwhile)\n"
	tests := []struct {
		name  string
		args  string
		lines []any
		want  output
	}{
		{
			"equal", "", []any{control.CompareLine{Progress: &control.Progress{Phase: "kernel", Done: 1, Total: 2}}, end(true, good, d2)},
			output{0, "EQUAL: this kernel (1000 entries, as they should be: 1 being set up, 3 ended meanwhile), d2 (1000 entries)\n", ""},
		},
		{"alone", "", []any{end(true, control.CompareKernel{Equal: true, Readable: true})}, output{0, "EQUAL: this kernel (0 entries); no peers\n", ""}},
		{
			"kernel differs", "",
			[]any{
				difference(control.WithKernel, "the kernel has lost it", nil, connection("CLOSE_WAIT", "masq", "sync")),
				difference(control.WithKernel, "state", connection("ESTABLISHED"), connection("CLOSE_WAIT")),
				end(false, control.CompareKernel{Compared: 7, Differ: 2, Readable: true}, d2),
			},
			output{1, `WITH    DIFFERENCE  PROTOCOL  CLIENT           VIRTUAL          WHY                     HERE                                THERE
kernel  not here    tcp       192.0.2.1:40000  198.51.100.1:80  the kernel has lost it  -                                   10.0.0.1:80 CLOSE_WAIT 899s masq,sync of d2
kernel  differs     tcp       192.0.2.1:40000  198.51.100.1:80  state                   10.0.0.1:80 ESTABLISHED 899s of d2  10.0.0.1:80 CLOSE_WAIT 899s of d2
NOT EQUAL: differ: 2 of this kernel (7 entries); equal: d2 (1000 entries)
`, ""},
		},
		{"all are printed", "--limit 3", many, output{1, three + verdict, ""}},
		{"some are printed", "--limit 2", many, output{1, three[:strings.LastIndex(three, "d2    not")] + "and 1 more (--limit 0 prints all)\n" + verdict, ""}},
		{
			"too many", "", []any{end(false, good, control.ComparePeer{Node: "d2", Compared: 50000, Differ: 40000, Unlisted: 30000})},
			output{1, "NOT EQUAL: differ: 40000 of d2 (50000 entries), too many to list: 30000 were counted only; " +
				"equal: this kernel (1000 entries, as they should be: 1 being set up, 3 ended meanwhile)\n", ""},
		},
		{"no limit", "--limit 0", many, output{1, three + verdict, ""}},
		{
			"not everything could be compared", "",
			[]any{end(false, control.CompareKernel{Why: "too old"}, control.ComparePeer{Node: "d\x072", Error: "does not answer"}, control.ComparePeer{Node: "d3", Equal: true})},
			output{1, "NOT COMPLETE: not compared: this kernel cannot be read: too old, d?2: does not answer; equal: d3 (0 entries)\n", ""},
		},
		{"no result", "", nil, output{1, "", "saructl: syncd: the answer ends without a result\n"}},
		{"fails", "", []any{errors.New("the table is gone")}, output{1, "", "saructl: syncd: /sync/compare broke off: the table is gone\n"}},
		{
			"fails late", "", []any{many[0], errors.New("the table is gone")},
			output{1, strings.Join(strings.SplitAfter(three, "\n")[:2], ""), "saructl: syncd: /sync/compare broke off: the table is gone\n"},
		},
		{
			"json", "--json --limit 1",
			append([]any{json.RawMessage(`{"newer":[1]}`), control.CompareLine{Difference: &control.Difference{With: "d2"}}}, end(false, good)),
			output{1, `{"progress":{"phase":"","done":0,"total":0}}
{"newer":[1]}
{"difference":{"with":"d2","kind":"","why":"","family":"","protocol":"","client":"","virtual":""}}
{"summary":{"equal":false,"kernel":{"compared":1000,"equal":true,"differ":0,"explained":{"being_set_up":1,"ended meanwhile":3,"none":0},"readable":true,"why":""},"peers":null}}
`, ""},
		},
		{"json of equals", "--json", []any{json.RawMessage(`{"summary":{"equal":true}}`)}, output{0, `{"progress":{"phase":"","done":0,"total":0}}
{"summary":{"equal":true}}
`, ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"sync", "compare", "--control", worker(t, control.PathSyncCompare, tt.lines...)}, strings.Fields(tt.args)...)
			if diff := cmp.Diff(tt.want, saructl(t, args...), cmp.AllowUnexported(output{})); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResync(t *testing.T) {
	end := func(injected uint64, peers ...control.ResyncPeer) control.ResyncLine {
		return control.ResyncLine{Summary: &control.ResyncSummary{Peers: peers, Injected: injected}}
	}
	tests := []struct {
		name  string
		args  string
		lines []any
		want  output
	}{
		{
			"complete", "", []any{end(1000, control.ResyncPeer{Node: "d2", Entries: 900, Changed: 3, TookMS: 1500}, control.ResyncPeer{Node: "d3", Entries: 901, TookMS: 20})},
			output{0, `PEER  ENTRIES  NEW HERE  TOOK   ERROR
d2    900      3         1.5 s
d3    901      0         20 ms
COMPLETE: 2 of 2 peers have taught 3 new entries, 1000 entries were put into this kernel again
`, ""},
		},
		{
			"a peer fails", "", []any{end(7, control.ResyncPeer{Node: "d2", Error: "does not teach"}, control.ResyncPeer{Node: "d3", Entries: 1, Changed: 1})},
			output{1, `PEER  ENTRIES  NEW HERE  TOOK  ERROR
d2    0        0         0 ms  does not teach
d3    1        1         0 ms
NOT COMPLETE: 1 of 2 peers have taught 1 new entries, 7 entries were put into this kernel again
`, ""},
		},
		{"alone", "", []any{end(5)}, output{0, "COMPLETE: 0 of 0 peers have taught 0 new entries, 5 entries were put into this kernel again\n", ""}},
		{"one peer", "d2 --json", []any{end(5)}, output{0, `{"progress":{"phase":"peer=d2","done":0,"total":0}}
{"summary":{"peers":null,"injected":5}}
`, ""}},
		{"all peers", "--json", []any{end(5, control.ResyncPeer{Error: "x"})}, output{1, `{"progress":{"phase":"","done":0,"total":0}}
{"summary":{"peers":[{"node":"","entries":0,"changed":0,"took_ms":0,"error":"x"}],"injected":5}}
`, ""}},
		{"no result", "", nil, output{1, "", "saructl: syncd: the answer ends without a result\n"}},
		{"two peers", "d2 d3", nil, output{2, "", "saructl: sync resync: the name of one peer at most, as sync peers shows it: see saructl --help\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"sync", "resync", "--control", worker(t, control.PathSyncResync, tt.lines...)}, strings.Fields(tt.args)...)
			if diff := cmp.Diff(tt.want, saructl(t, args...), cmp.AllowUnexported(output{})); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFlush(t *testing.T) {
	end := func(s control.FlushSummary) control.FlushLine { return control.FlushLine{Summary: &s} }
	good := end(control.FlushSummary{
		Complete: true, Buckets: 101, BarrierMS: 12.34, HalfOpen: 3, Sequence: 77, Confirmed: []control.FlushPeer{{Node: "d2", MS: 20}, {Node: "d3", MS: 33.3}}, TookMS: 34.56,
	})
	tests := []struct {
		name  string
		args  string
		lines []any
		want  output
	}{
		{"complete", "0-99,200", []any{good}, output{0, `buckets         101
kernel emptied  after 12.3 ms
half open       3 sent
sequence        77
d2              confirmed after 20.0 ms
d3              confirmed after 33.3 ms
COMPLETE after 34.6 ms: in the kernels of d2, d3
`, ""}},
		{
			"not complete", "all",
			[]any{end(control.FlushSummary{Buckets: 4096, Missing: []string{"d\x1b3"}, Confirmed: []control.FlushPeer{{Node: "d2", MS: 1}}, TookMS: 3000, Why: "d3 does not confirm"})},
			output{1, `buckets         4096
kernel emptied  after 0.0 ms
half open       0 sent
sequence        0
d2              confirmed after 1.0 ms
d?3             NOT CONFIRMED
NOT COMPLETE after 3000.0 ms: d3 does not confirm
`, ""},
		},
		{"alone", "7", []any{end(control.FlushSummary{Complete: true, Buckets: 1})}, output{0, `buckets         1
kernel emptied  after 0.0 ms
half open       0 sent
sequence        0
COMPLETE after 0.0 ms: there is no peer
`, ""}},
		{"buckets are put in order", "--json 200,0-98,99,7", []any{json.RawMessage(`{"summary":{"complete":true}}`)}, output{0, `{"progress":{"phase":"buckets=0-99%2C200","done":0,"total":0}}
{"summary":{"complete":true}}
`, ""}},
		{"json of what is not complete", "--json all", []any{json.RawMessage(`{"summary":{}}`)}, output{1, `{"progress":{"phase":"buckets=all","done":0,"total":0}}
{"summary":{}}
`, ""}},
		{"no result", "1", nil, output{1, "", "saructl: syncd: the answer ends without a result\n"}},
		{"syncd does not take it", "1", []any{fmt.Errorf("%w: buckets: not now", control.ErrBadRequest)}, output{1, "", "saructl: syncd: /sync/flush broke off: bad request: buckets: not now\n"}},
		{"no buckets", "", nil, output{2, "", "saructl: sync flush: one list of buckets is required, such as 0-99,200, or all: see saructl --help\n"}},
		{"too many", "4096", nil, output{2, "", "saructl: sync flush: bucket \"4096\": a number from 0 to 4095\n"}},
		{"two lists", "1 2", nil, output{2, "", "saructl: sync flush: one list of buckets is required, such as 0-99,200, or all: see saructl --help\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"sync", "flush", "--control", worker(t, control.PathSyncFlush, tt.lines...)}, strings.Fields(tt.args)...)
			if diff := cmp.Diff(tt.want, saructl(t, args...), cmp.AllowUnexported(output{})); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOtherDaemons asks who cannot answer.
func TestOtherDaemons(t *testing.T) {
	old := daemon(t, control.SyncStatus{})
	refusing := serve(t, func(s *control.Server) {
		s.HandleWork("POST "+control.PathSyncResync, func(_ context.Context, q url.Values, _ func(any) error) error {
			return fmt.Errorf("%w: peer %q: no live peer has this name", control.ErrBadRequest, q.Get("peer"))
		})
	})
	tests := []struct {
		args string
		code int
		want string
	}{
		{"sync compare --control " + old, 1, "saructl: what listens on " + old + " does not know /sync/compare: it is no syncd, or one older than this saructl, to be restarted\n"},
		{"sync resync --control " + old, 1, "saructl: what listens on " + old + " does not know /sync/resync: it is no syncd, or one older than this saructl, to be restarted\n"},
		{"sync flush all --control " + old, 1, "saructl: what listens on " + old + " does not know /sync/flush: it is no syncd, or one older than this saructl, to be restarted\n"},
		{"sync compare --control /nonexistent.sock", 1, "saructl: syncd is not running: nobody listens on /nonexistent.sock: start it, or name its socket with --control\n"},
		{"sync resync d9 --control " + refusing, 2, "saructl: syncd: peer \"d9\": no live peer has this name\n"},
		{"sync compare --limit -1", 2, "saructl: invalid argument \"-1\" for \"--limit\" flag: must be a number from 0 to 2147483647: see saructl --help\n"},
	}
	for _, tt := range tests {
		got := saructl(t, strings.Fields(tt.args)...)
		if diff := cmp.Diff(output{tt.code, "", tt.want}, got, cmp.AllowUnexported(output{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.args, diff)
		}
	}
}

// TestInterrupted checks that the daemon's work ends with the operator's patience.
func TestInterrupted(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	path := serve(t, func(s *control.Server) {
		s.HandleWork(control.PathSyncCompare, func(ctx context.Context, _ url.Values, _ func(any) error) error {
			close(begun)
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		})
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, []string{"sync", "compare", "--control", path}, &stdout, &stderr); code != exitBad || stderr.String() != "saructl: interrupted\n" {
		t.Errorf("status %d and %q", code, stderr.String())
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the comparison goes on")
	}
}

// TestProgress shows progress on a terminal, and nowhere else.
func TestProgress(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := newProgress(file)
	p.show(control.Progress{Phase: "kernel"})
	p.clear()
	if b, err := os.ReadFile(file.Name()); len(b) != 0 || err != nil {
		t.Errorf("a file has %q (%v)", b, err)
	}

	terminal, keyboard := openTerminal(t)
	p = newProgress(terminal)
	for _, s := range []control.Progress{
		{Phase: "kernel"}, {Phase: "d\x1b2", Done: 450, Total: 1000}, {Phase: "d3", Done: 9}, {Phase: strings.Repeat("x", 100)},
	} {
		p.show(s)
	}
	var out bytes.Buffer
	fmt.Fprint(p.over(&out), "verdict\n")
	fmt.Fprint(p.over(&out), "more\n") // nothing to clear any more
	const clear = "\r\x1b[K"
	want := clear + "kernel" + clear + "d?2: 45 % (450 of 1000)" + clear + "d3: 9" + clear + strings.Repeat("x", progressWidth) + clear
	got := make([]byte, len(want))
	if _, err := io.ReadFull(keyboard, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != want || out.String() != "verdict\nmore\n" {
		t.Errorf("terminal shows %q and output is %q, want %q", got, out.String(), want)
	}
}

// openTerminal returns a new terminal, and the end at which it is looked at.
func openTerminal(t *testing.T) (terminal, master *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	// As in grantpt(3) and ptsname(3) of a modern C library.
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return terminal, master
}

// TestCompletePeers completes a peer's name as the shell would.
func TestCompletePeers(t *testing.T) {
	path := daemon(t, control.SyncStatus{Peers: []control.SyncPeer{{Node: "d2"}, {Node: "d3"}}})
	for args, want := range map[string]string{
		"--control " + path + " sync resync |":      "d2\nd3\n:4\n",
		"--control " + path + " sync resync d2 |":   ":4\n",
		"--control /nonexistent.sock sync resync |": ":4\n",
		"sync flush |": ":4\n",
	} {
		fields := strings.Fields(args)
		fields[len(fields)-1] = "" // what is to be completed
		if got := saructl(t, append([]string{"__complete"}, fields...)...); got.stdout != want || got.code != 0 {
			t.Errorf("%s: %+v, want %q", args, got, want)
		}
	}
}
