package reconcile

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/table"
)

// glance is a pass over a line, or none, and an entry, or none.
func glance(t *testing.T, at time.Time, line string, e *entry) Result {
	t.Helper()
	r := newReplica()
	if e != nil {
		r.put(t, *e)
	}
	cfg := config()
	cfg.Now = func() time.Time { return at }
	var text []string
	if line != "" {
		text = append(text, line)
	}
	return pass(t, cfg, r, lines(t, text...))
}

// find returns what a glance finds.
func find(t *testing.T, at time.Time, line string, e *entry) []Finding {
	t.Helper()
	return glance(t, at, line, e).Findings
}

func TestRepairs(t *testing.T) {
	const equalNAT = procWeb + procOne
	marked := closing(ipvssync.TCPTimeWait, 120, one)
	marked.Fwmark, marked.Flags = 9, inactive|ipvssync.FlagNoOutput|ipvssync.FlagTunnel
	for name, tt := range map[string]struct {
		line string
		e    *entry
		want string
	}{
		"report lost":                     {equalNAT + "ESTABLISHED LOCAL 880", nil, "publish 10.1.0.2:8080 ESTABLISHED masq, 20 of 900 s, mark 0"},
		"template's report lost":          {procTLS + "0A010002 01BB ASSURED LOCAL 50", nil, "publish 10.1.0.2:443 ASSURED masq inactive template, 0 of 360 s, mark 0"},
		"injection lost":                  {"", &entry{from: other, record: established(one), age: 20}, "inject 10.1.0.2:8080"},
		"altered server":                  {equalNAT + "ESTABLISHED SYNC 899", &entry{from: other, record: established(two), age: 20}, "move 10.1.0.3:8080"},
		"altered state":                   {equalNAT + "CLOSE SYNC 9", &entry{from: other, record: established(one), age: 20}, "inject 10.1.0.2:8080"},
		"expires too early":               {equalNAT + "ESTABLISHED SYNC 1", &entry{from: other, record: established(one), age: 20}, "inject 10.1.0.2:8080"},
		"own, other server":               {equalNAT + "ESTABLISHED LOCAL 880", &entry{from: self, record: established(two), age: 20}, "publish 10.1.0.2:8080 ESTABLISHED masq, 20 of 900 s, mark 0"},
		"own, opened again, by mark":      {equalNAT + "ESTABLISHED LOCAL 880", &entry{from: self, record: marked, age: 20}, "publish 10.1.0.2:8080 ESTABLISHED tunnel no_output, 20 of 900 s, mark 9"},
		"own, other server, by mark":      {procWeb + procTwo + "ESTABLISHED LOCAL 880", &entry{from: self, record: marked, age: 20}, "publish 10.1.0.3:8080 ESTABLISHED masq, 20 of 900 s, mark 9"},
		"own, a server that is none":      {procWeb + procThree + "ESTABLISHED LOCAL 880", &entry{from: self, record: established(one), age: 20}, ""},
		"own, the client's end":           {equalNAT + "CLOSE_WAIT LOCAL 50", &entry{from: self, record: established(one), age: 20}, "publish 10.1.0.2:8080 CLOSE_WAIT masq inactive, 10 of 60 s, mark 0"},
		"opened here since":               {equalNAT + "ESTABLISHED LOCAL 890", &entry{from: other, record: established(two), age: 20}, "publish 10.1.0.2:8080 ESTABLISHED masq, 10 of 900 s, mark 0"},
		"opened here before":              {equalNAT + "ESTABLISHED LOCAL 870", &entry{from: other, record: established(two), age: 20}, "move 10.1.0.3:8080"},
		"opened here about then":          {equalNAT + "ESTABLISHED LOCAL 882", &entry{from: other, record: established(two), age: 20}, "move 10.1.0.3:8080"},
		"opened here, age not known":      {equalNAT + "ESTABLISHED LOCAL 1800", &entry{from: other, record: established(two), age: 20}, "move 10.1.0.3:8080"},
		"altered server of a template":    {procTLS + "0A010002 01BB ASSURED LOCAL 350", &entry{from: other, record: persistent(0, template, "10.1.0.3:443"), age: 20}, "move 10.1.0.3:443"},
		"altered server, UDP":             {"UDP C0A80105 0035 0A000064 0035 0A010063 0035 UDP SYNC 280", &entry{from: other, record: record(17, 0, 300, inactive, "192.168.1.5:53", "10.0.0.100:53", "10.1.0.2:53"), age: 20}, "move 10.1.0.2:53"},
		"own, other server of a template": {procTLS + "0A010002 01BB ASSURED LOCAL 350", &entry{from: self, record: persistent(0, template, "10.1.0.3:443"), age: 20}, "publish 10.1.0.2:443 ASSURED masq inactive template, 0 of 360 s, mark 0"},
		"opened here, a server unknown":   {procWeb + procThree + "ESTABLISHED LOCAL 890", &entry{from: other, record: established(two), age: 20}, "move 10.1.0.3:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			found := find(t, t0, tt.line, tt.e)
			if len(found) != 1 {
				t.Fatalf("%d findings", len(found))
			}
			var got []string
			inject, move, publish := Repairs(found)
			for _, e := range inject {
				got = append(got, "inject "+e.Record.Real.String())
			}
			for _, e := range move {
				got = append(got, "move "+e.Record.Real.String())
			}
			for _, c := range publish {
				r := &c.Record
				got = append(got, "publish "+r.Real.String()+" "+state(r)+" "+strings.Join(ipvssync.FlagNames(r.Flags&^ipvssync.FlagSync), " ")+
					", "+strconv.Itoa(int(c.Age))+" of "+strconv.Itoa(int(r.Timeout))+" s, mark "+strconv.Itoa(int(r.Fwmark)))
			}
			want := []string{tt.want}
			if tt.want == "" {
				want = nil
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// The replica knows of an entry what /proc does not show.
func TestReportKeepsWhatTheReplicaKnows(t *testing.T) {
	r := established(one)
	r.Fwmark, r.HasSeq, r.In, r.PEName, r.PEData = 5, true, ipvssync.Seq{Init: 1}, []byte("sip"), []byte("id")
	r.Flags = ipvssync.FlagSeqMask
	found := find(t, t0, procWeb+procOne+"CLOSE_WAIT LOCAL 50", &entry{from: self, record: r, age: 20})
	_, _, publish := Repairs(found)
	if len(publish) != 1 {
		t.Fatalf("%d to publish", len(publish))
	}
	got := publish[0].Record
	if got.Fwmark != 5 || !got.HasSeq || got.In.Init != 1 || string(got.PEName) != "sip" || string(got.PEData) != "id" ||
		got.Flags != ipvssync.FlagSeqMask|ipvssync.FlagInactive || got.State != ipvssync.TCPCloseWait || got.Timeout != 60 {
		t.Errorf("%+v", got)
	}
}

func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	differences := 0
	for k := range kinds {
		if name := k.String(); name == "" || seen[name] || strings.ContainsAny(name, " -") {
			t.Errorf("kind %d is called %q", k, name)
		}
		seen[k.String()] = true
		if k.Difference() {
			differences++
		}
	}
	if differences != 5 || kinds.String() != "kind-15" {
		t.Errorf("%d differences of %v", differences, kinds)
	}
	f := Finding{Kind: MissingInKernel, Replica: &table.Entry{Record: established(one), Remaining: time.Minute, Origin: peer.ID(2), Stamp: table.Stamp{Grant: mirror.NewGrant(1, 1)}}}
	if f.Record().Real.String() != one || f.Why() != "the replica has it, ESTABLISHED, for 1m0s more; the kernel does not" {
		t.Errorf("%s: %s", f.Record().Real, f.Why())
	}
	if (&Finding{Kind: Gone}).Why() != "gone" {
		t.Error("an explanation has no name")
	}
}
