package control

import (
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestContract holds the JSON to the letter of the documentation.
func TestContract(t *testing.T) {
	here := Connection{Family: "ipv4", Protocol: "tcp", Client: "192.0.2.1:1", Virtual: "192.0.2.2:80", Flags: []string{"masq"}}
	there := here
	there.State = "CLOSE_WAIT"
	missing, differs := NewDifference("d2", "never came", nil, &there), NewDifference(WithKernel, "state", &here, &there)
	tests := []struct {
		name  string
		value any
		want  string
	}{
		{
			"status",
			SyncStatus{Node: "d1", Peers: []SyncPeer{{Incarnation: "0a", Links: []SyncLink{{"eth0", Never}}}}, Counters: NewSyncCounter()},
			`{"node":"d1","synced":false,"connections":{"local":0,"remote":0},` +
				`"peers":[{"node":"","incarnation":"0a","sequence":0,"missing":0,"last_heard_ms":0,"synced":false,` +
				`"links":[{"interface":"eth0","last_heard_ms":-1}],"given_up":0,"lost":false,"teaches":"","entries":0,"confirmed":0}],` +
				`"lag_ms":{"p50":0,"p99":0},"counters":{"drop_forged":0,"drop_incarnation":0,"drop_replayed":0,` +
				`"drop_truncated":0,"drop_unknown_key":0,"drop_unsigned":0},` +
				`"join":{"state":"","teacher":"","entries":0,"total":0,"percent":0,"took_ms":0,"attempts":0},` +
				`"backlog":{"bytes":0,"limit_bytes":0,"datagrams":0,"reach_ms":0},` +
				`"audit":{"interval_ms":0,"last_ms_ago":0,"peer":"","equal":false,"differing_buckets":0,"repaired":0,"rounds":0},` +
				`"kernel_audit":{"last_ms_ago":0,"readable":false,"why":"","missing_in_kernel":0,"missing_in_replica":0,"repaired":0},` +
				`"keys":{"signing":0,"auth":""},"clock_lead_ms":0,"incarnation":"","kernel_entries":"",` +
				`"share":{"told":false,"term":0,"version":0,"held":0,"kept":0,"ready":false,"settled":false,"newest_term":0}}`,
		},
		{
			"connection", Connection{Family: "ipv4", Flags: []string{"masq"}},
			`{"family":"ipv4","protocol":"","client":"","virtual":"","real":"","state":"","flags":["masq"],"origin":"","expires_s":0}`,
		},
		{
			"progress", CompareLine{Progress: &Progress{Phase: "kernel", Done: 1, Total: 2}},
			`{"progress":{"phase":"kernel","done":1,"total":2}}`,
		},
		{
			"difference of one side", CompareLine{Difference: &missing},
			`{"difference":{"with":"d2","kind":"missing_here","why":"never came","family":"ipv4","protocol":"tcp","client":"192.0.2.1:1",` +
				`"virtual":"192.0.2.2:80","there":{"family":"ipv4","protocol":"tcp","client":"192.0.2.1:1","virtual":"192.0.2.2:80",` +
				`"real":"","state":"CLOSE_WAIT","flags":["masq"],"origin":"","expires_s":0}}}`,
		},
		{
			"difference of both sides", CompareLine{Difference: &differs},
			`{"difference":{"with":"kernel","kind":"differs","why":"state","family":"ipv4","protocol":"tcp","client":"192.0.2.1:1",` +
				`"virtual":"192.0.2.2:80","here":{"family":"ipv4","protocol":"tcp","client":"192.0.2.1:1","virtual":"192.0.2.2:80",` +
				`"real":"","state":"","flags":["masq"],"origin":"","expires_s":0},"there":{"family":"ipv4","protocol":"tcp",` +
				`"client":"192.0.2.1:1","virtual":"192.0.2.2:80","real":"","state":"CLOSE_WAIT","flags":["masq"],"origin":"","expires_s":0}}}`,
		},
		{
			"end of compare",
			CompareLine{Summary: &CompareSummary{Kernel: CompareKernel{Explained: map[string]uint64{}}, Peers: []ComparePeer{{Node: "d2"}}}},
			`{"summary":{"equal":false,"kernel":{"compared":0,"equal":false,"differ":0,"explained":{},"readable":false,"why":""},` +
				`"peers":[{"node":"d2","compared":0,"equal":false,"differ":0,"unlisted":0,"error":""}]}}`,
		},
		{
			"end of resync", ResyncLine{Summary: &ResyncSummary{Peers: []ResyncPeer{{Node: "d2"}}}},
			`{"summary":{"peers":[{"node":"d2","entries":0,"changed":0,"took_ms":0,"error":""}],"injected":0}}`,
		},
		{
			"end of flush", FlushLine{Summary: &FlushSummary{Confirmed: []FlushPeer{{"d2", 1.5}}, Missing: []string{}}},
			`{"summary":{"complete":false,"why":"","buckets":0,"barrier_ms":0,"half_open":0,"sequence":0,` +
				`"confirmed":[{"node":"d2","ms":1.5}],"missing":[],"took_ms":0}}`,
		},
		{
			"share",
			Share{
				Term: 1, Version: 2, Buckets: 2, Seed: 3, Virtuals: []ShareVirtual{{Address: netip.MustParseAddr("192.0.2.1"), Sense: "src-addr", Mask: 24}},
				Members: []string{"d1"}, Owner: []byte{0, NoMember}, Next: []byte{NoMember, NoMember}, Held: "0",
			},
			`{"term":1,"version":2,"buckets":2,"seed":3,"virtuals":[{"address":"192.0.2.1","sense":"src-addr","mask":24}],` +
				`"members":["d1"],"owner":"AP8=","next":"//8=","held":"0"}`,
		},
		{
			"end of share", ShareLine{Summary: &ShareSummary{}},
			`{"summary":{"ready":false,"why":"","held":0,"kept":0,"entries":0,"took_ms":0}}`,
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
	if gone := NewDifference("d2", "", &here, nil); gone.Kind != MissingThere || gone.Client != here.Client {
		t.Errorf("difference that the other side lacks: %+v", gone)
	}
}

func TestParameters(t *testing.T) {
	for query, want := range map[string]string{
		"":              "",
		"peer=d2":       "",
		"peer=":         "",
		"paar=d2":       "bad request: paar: no such parameter",
		"peer=1&peer=2": "bad request: peer: given 2 times",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		err = Parameters(q, "peer", "other")
		message := ""
		if err != nil {
			message = err.Error()
		}
		if message != want || err != nil && !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: error %v, want %q", query, err, want)
		}
	}
}
