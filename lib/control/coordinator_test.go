package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/flow"
)

// TestCoordinatorContract holds saru's JSON to the letter of the documentation.
func TestCoordinatorContract(t *testing.T) {
	tests := []struct {
		name  string
		value any
		want  string
	}{
		{
			"status",
			Status{
				Node: "d1", State: StateMember, Members: []Member{{Node: "d2", Links: []Link{{"eth0", Never}}}}, Alarms: []string{"split: two farms"},
				Filter: []FilterCounts{{Virtual: "192.0.2.1"}},
			},
			`{"node":"d1","state":"member","master":"","term":0,"version":0,"buckets":{"total":0,"owned":0,"next":0,"open":0},` +
				`"lease":{"remaining_ms":0},"members":[{"node":"d2","state":"","weight":0,"owned":0,"links":[{"interface":"eth0","last_heard_ms":-1}],` +
				`"next":0,"open":0,"incarnation":"","self":false,"master":false,"last_heard_ms":0,"synced":false,"usable":false,"pings":0,"term":0,` +
				`"version":0,"uptime_ms":0}],"sync":{"synced":false,"error":""},"alarms":["split: two farms"],"incarnation":"","uptime_ms":0,"since_ms":0,` +
				`"line":{"term":0,"node":""},"policy":"","pending":0,"function_digest":"","configured_digest":"","usable":false,` +
				`"pings":{"total":0,"reached":0},"filter":[{"virtual":"192.0.2.1","accepted":0,"foreign":0,"late":0}],"inside":{"accepted":0,"foreign":0},"chance":{"accepted":0,"foreign":0,"rebounded":0}}`,
		},
		{
			"buckets", Buckets{Node: "d1", Term: 1, Version: 2, Buckets: 2, Members: []string{"d1"}, Owner: []byte{0, NoMember}, Next: []byte{NoMember, NoMember}, Open: "0"},
			`{"node":"d1","term":1,"version":2,"buckets":2,"members":["d1"],"owner":"AP8=","next":"//8=","open":"0"}`,
		},
		{
			"which", Which{Bucket: 7, Owner: "d1", Sense: "src-addr", Mask: 32},
			`{"bucket":7,"owner":"d1","next":"","open":false,"term":0,"version":0,"sense":"src-addr","mask":32}`,
		},
		{"progress of drain", DrainLine{Progress: &Progress{Phase: "d2 hands over", Done: 1, Total: 2}}, `{"progress":{"phase":"d2 hands over","done":1,"total":2}}`},
		{
			"end of drain", DrainLine{Summary: &DrainSummary{Node: "d2"}},
			`{"summary":{"node":"d2","complete":false,"why":"","obeyed":false,"owned":0,"open":0,"took_ms":0}}`,
		},
		{
			"event", Event{Time: time.Date(2026, 11, 26, 20, 0, 0, 5e6, time.UTC), Name: "dead", Text: "d2"},
			`{"time":"2026-11-26T20:00:00.005Z","name":"dead","text":"d2","alarm":false,"term":0,"version":0}`,
		},
	}
	for _, tt := range tests {
		got, err := json.Marshal(tt.value)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestGood(t *testing.T) {
	for state, want := range map[string]bool{StateMember: true, StateDraining: true, StateJoining: false, StateIsolated: false, StateClosed: false, "": false} {
		s := Status{State: state, Alarms: []string{}}
		if s.Good() != want {
			t.Errorf("%q is good: %v", state, !want)
		}
		if s.Alarms = []string{"filter: gone"}; s.Good() {
			t.Errorf("%q is good with an alarm", state)
		}
	}
}

func TestBucketsCheck(t *testing.T) {
	good := func() Buckets {
		return Buckets{Buckets: 3, Members: []string{"d1", "d2"}, Owner: []byte{0, 1, NoMember}, Next: []byte{1, 0, NoMember}, Open: "0-1"}
	}
	for name, tt := range map[string]struct {
		change func(*Buckets)
		want   string
	}{
		"good":             {func(*Buckets) {}, ""},
		"no table":         {func(b *Buckets) { *b = Buckets{} }, ""},
		"lack of owners":   {func(b *Buckets) { b.Owner = b.Owner[1:] }, "owners of 2 and next owners of 3 buckets: there are 3"},
		"too many nexts":   {func(b *Buckets) { b.Next = append(b.Next, 0) }, "owners of 3 and next owners of 4 buckets: there are 3"},
		"negative":         {func(b *Buckets) { b.Buckets = -1 }, "owners of 3 and next owners of 3 buckets: there are -1"},
		"no such owner":    {func(b *Buckets) { b.Owner[1] = 2 }, "bucket 1 of member 2: there are 2"},
		"no such next":     {func(b *Buckets) { b.Next[2] = 254 }, "bucket 2 of member 254: there are 2"},
		"open out of them": {func(b *Buckets) { b.Open = "3" }, `open: bucket "3": a number from 0 to 2`},
	} {
		b := good()
		tt.change(&b)
		if err := b.Check(); (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

// TestRequests: what Query writes is read as it was, and what is wrong is refused.
func TestRequests(t *testing.T) {
	src, dst, six := netip.MustParseAddrPort("192.0.2.7:40000"), netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for _, r := range []WhichRequest{{Source: src}, {src, dst}, {six, six}} {
		if got, err := ParseWhichRequest(r.Query()); err != nil || got != r {
			t.Errorf("%+v is read as %+v (%v)", r, got, err)
		}
	}
	for _, r := range []DrainRequest{{}, {Node: "d 2"}, {Wait: true}, {"d2", true}} {
		if got, err := ParseDrainRequest(r.Query()); err != nil || got != r {
			t.Errorf("%+v is read as %+v (%v)", r, got, err)
		}
	}
	for _, r := range []HistoryRequest{{Last: -1}, {Last: 0}, {10, true}, {-1, true}} {
		if got, err := ParseHistoryRequest(r.Query()); err != nil || got != r {
			t.Errorf("%+v is read as %+v (%v)", r, got, err)
		}
	}
	if got, err := ParseWhichRequest(url.Values{"src": {"[::ffff:192.0.2.7]:40000"}}); err != nil || got.Source != src {
		t.Errorf("IPv4 in IPv6: %+v (%v)", got, err)
	}

	which := func(q url.Values) error { _, err := ParseWhichRequest(q); return err }
	drain := func(q url.Values) error { _, err := ParseDrainRequest(q); return err }
	history := func(q url.Values) error { _, err := ParseHistoryRequest(q); return err }
	for _, tt := range []struct {
		parse func(url.Values) error
		query string
		want  string
	}{
		{which, "", `bad request: src: "" must be ADDR:PORT or [ADDR]:PORT`},
		{which, "src=192.0.2.7", `bad request: src: "192.0.2.7" must be ADDR:PORT or [ADDR]:PORT`},
		{which, "src=[fe80::1%25eth0]:1", `bad request: src: "[fe80::1%eth0]:1" must be ADDR:PORT or [ADDR]:PORT`},
		{which, "src=192.0.2.7:1&dst=", `bad request: dst: "" must be ADDR:PORT or [ADDR]:PORT`},
		{which, "src=192.0.2.7:1&dst=[::1]:80", "bad request: 192.0.2.7:1 and [::1]:80 are of different families"},
		{which, "src=192.0.2.7:1&port=1", "bad request: port: no such parameter"},
		{drain, "node=", "bad request: node: is empty"},
		{drain, "wait=yes", "bad request: wait: must be 0 or 1"},
		{drain, "wait=", "bad request: wait: must be 0 or 1"},
		{drain, "nodes=d2", "bad request: nodes: no such parameter"},
		{history, "n=-1", "bad request: n: must be a number"},
		{history, "follow=2", "bad request: follow: must be 0 or 1"},
		{history, "since=0", "bad request: since: no such parameter"},
	} {
		q, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.parse(q); err == nil || err.Error() != tt.want || !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: error %v, want %s", tt.query, err, tt.want)
		}
	}
}

// TestWhichFunction: a destination is needed just where it makes a difference.
func TestWhichFunction(t *testing.T) {
	with := func(change func(*flow.Function)) flow.Function {
		f := flow.Default
		change(&f)
		return f
	}
	coarse, six := with(func(f *flow.Function) { f.Mask4 = 24 }), with(func(f *flow.Function) { f.Mask6 = 64 })
	byPort := with(func(f *flow.Function) { f.Sense = flow.SenseOf(flow.SrcAddr, flow.DstPort) })
	a, b, c := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::1")
	src, src6 := netip.MustParseAddrPort("192.0.2.7:40000"), netip.MustParseAddrPort("[2001:db8::9]:40000")
	to := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 80) }
	type functions = map[netip.Addr]flow.Function
	for name, tt := range map[string]struct {
		request   WhichRequest
		functions functions
		want      flow.Function
		err       string
	}{
		"all the same":              {WhichRequest{Source: src}, functions{a: flow.Default, b: flow.Default, c: six}, flow.Default, ""},
		"mask of the other":         {WhichRequest{Source: src}, functions{a: flow.Default, b: six}, flow.Default, ""},
		"IPv6":                      {WhichRequest{Source: src6}, functions{a: coarse, b: byPort, c: six}, six, ""},
		"the one named":             {WhichRequest{src, to(b)}, functions{a: flow.Default, b: coarse}, coarse, ""},
		"destination counts":        {WhichRequest{src, to(a)}, functions{a: byPort}, byPort, ""},
		"no destination":            {WhichRequest{Source: src}, functions{a: byPort}, flow.Function{}, "bad request: the destination counts for 198.51.100.1 (src-addr,dst-port): name it"},
		"different":                 {WhichRequest{Source: src}, functions{a: flow.Default, b: coarse}, flow.Function{}, "bad request: virtual addresses differ in what counts of a flow: name the destination"},
		"no virtual address":        {WhichRequest{src, to(b)}, functions{a: flow.Default}, flow.Function{}, "bad request: 198.51.100.2 is no virtual address"},
		"none of the family":        {WhichRequest{Source: src6}, functions{a: flow.Default}, flow.Function{}, "bad request: there is no virtual address of the family of 2001:db8::9"},
		"no virtual address at all": {WhichRequest{Source: src}, nil, flow.Function{}, "bad request: there is no virtual address of the family of 192.0.2.7"},
	} {
		got, err := tt.request.Function(tt.functions)
		if message := errorText(err); got != tt.want || message != tt.err || err != nil && !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %+v (%v), want %+v (%s)", name, got, err, tt.want, tt.err)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestCoordinatorClient asks with each method.
func TestCoordinatorClient(t *testing.T) {
	table := Buckets{Buckets: 1, Members: []string{"d1"}, Owner: []byte{0}, Next: []byte{NoMember}, Open: "all"}
	events := []Event{{Name: "table", Term: 1}, {Name: "dead", Alarm: true}}
	var s Server
	s.HandleJSON(PathStatus, func(context.Context, url.Values) (any, error) { return Status{Node: "d1", Term: 7}, nil })
	s.HandleJSON(PathBuckets, func(context.Context, url.Values) (any, error) { return table, nil })
	s.HandleJSON(PathWhich, func(_ context.Context, q url.Values) (any, error) {
		r, err := ParseWhichRequest(q)
		return Which{Owner: r.Source.String()}, err
	})
	for _, path := range []string{PathDrain, PathUndrain} {
		s.HandleWork("POST "+path, func(_ context.Context, q url.Values, emit func(any) error) error {
			r, err := ParseDrainRequest(q)
			if err != nil || r.Node == "d9" {
				return err // without a summary
			}
			return errors.Join(emit(DrainLine{Progress: &Progress{Phase: "handing over"}}), emit(DrainLine{Summary: &DrainSummary{Node: r.Node + path, Complete: r.Wait}}))
		})
	}
	s.HandleWork(PathHistory, func(_ context.Context, q url.Values, emit func(any) error) error {
		r, err := ParseHistoryRequest(q)
		for _, e := range events[len(events)-r.Last:] {
			err = errors.Join(err, emit(e))
		}
		return err
	})
	client, _ := serve(t, &s)
	ctx := t.Context()

	if st, err := client.Status(ctx); err != nil || st.Term != 7 {
		t.Errorf("status: %+v (%v)", st, err)
	}
	if got, err := client.Buckets(ctx); err != nil || cmp.Diff(table, got) != "" {
		t.Errorf("buckets: %+v (%v)", got, err)
	}
	table.Owner = []byte{1}
	if _, err := client.Buckets(ctx); errorText(err) != "answer to /buckets: bucket 0 of member 1: there are 1" {
		t.Errorf("wrong buckets: %v", err)
	}
	if w, err := client.Which(ctx, WhichRequest{Source: netip.MustParseAddrPort("[::1]:80")}); err != nil || w.Owner != "[::1]:80" {
		t.Errorf("which: %+v (%v)", w, err)
	}
	if sum, err := client.Drain(ctx, DrainRequest{Node: "d2", Wait: true}); err != nil || sum.Node != "d2/drain" || !sum.Complete {
		t.Errorf("drain: %+v (%v)", sum, err)
	}
	if sum, err := client.Undrain(ctx, DrainRequest{}); err != nil || sum.Node != "/undrain" || sum.Complete {
		t.Errorf("undrain: %+v (%v)", sum, err)
	}
	if _, err := client.Drain(ctx, DrainRequest{Node: "d9"}); err == nil || !strings.Contains(err.Error(), "no summary") {
		t.Errorf("drain without a summary: %v", err)
	}
	var got []Event
	err := client.History(ctx, HistoryRequest{Last: 1}, func(e Event) error { got = append(got, e); return nil })
	if diff := cmp.Diff(events[1:], got); err != nil || diff != "" {
		t.Errorf("history: %v, %s", err, diff)
	}
}
