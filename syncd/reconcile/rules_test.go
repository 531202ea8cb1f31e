package reconcile

import (
	"slices"
	"testing"

	"saru/proto/ipvssync"
)

const (
	web       = "10.0.0.100:80" // network address translation
	direct    = "10.0.0.100:81" // direct routing: the director sees only the client's packets
	tls       = "10.0.0.100:443"
	client    = "192.168.1.5:54321"
	visitor   = "192.168.1.5:0"
	inactive  = ipvssync.FlagInactive
	noOutput  = ipvssync.FlagNoOutput | ipvssync.FlagDRoute
	template  = ipvssync.FlagTemplate | ipvssync.FlagInactive
	procWeb   = "TCP C0A80105 D431 0A000064 0050 "
	procTLS   = "TCP C0A80105 0000 0A000064 01BB "
	procOne   = "0A010002 1F90 "
	procTwo   = "0A010003 1F90 "
	procThree = "0A010063 1F90 " // in no service
)

func established(server string) ipvssync.Record {
	return record(6, ipvssync.TCPEstablished, 900, 0, client, web, server)
}

func closing(state uint16, timeout uint32, server string) ipvssync.Record {
	return record(6, state, timeout, inactive, client, web, server)
}

func persistent(state uint16, flags uint32, server string) ipvssync.Record {
	return record(6, state, 360, flags, visitor, tls, server)
}

const (
	one = "10.1.0.2:8080"
	two = "10.1.0.3:8080"
)

// rules has one case for each rule. What the kernel has is lines, what the replica has is entries; nothing expected means that the
// two agree.
var rules = []struct {
	name    string
	kernel  []string
	replica []entry
	want    []string
}{
	{"nothing anywhere", nil, nil, nil},
	{"equal, own", []string{procWeb + procOne + "ESTABLISHED LOCAL 880"}, []entry{{from: self, record: established(one), age: 20}}, nil},
	{"equal, another's", []string{procWeb + procOne + "ESTABLISHED SYNC 880"}, []entry{{from: other, record: established(one), age: 20}}, nil},
	{"own, used since", []string{procWeb + procOne + "ESTABLISHED LOCAL 899"}, []entry{{from: self, record: established(one), age: 800}}, nil},

	{"never reported", []string{procWeb + procOne + "ESTABLISHED LOCAL 880"}, nil, []string{"missing_in_replica"}},
	{"never reported, closing", []string{procWeb + procOne + "TIME_WAIT LOCAL 100"}, nil, []string{"missing_in_replica"}},
	{"never reported, UDP", []string{"UDP C0A80105 0035 0A000064 0035 0A010002 0035 UDP LOCAL 200"}, nil, []string{"missing_in_replica"}},
	{"never reported, SCTP", []string{"SCTP C0A80105 0BB8 0A000064 0BB8 0A010002 0BB8 ESTABLISHED LOCAL 800"}, nil, []string{"missing_in_replica"}},
	{"never reported, template", []string{procTLS + "0A010002 01BB ASSURED LOCAL 350"}, nil, []string{"missing_in_replica"}},
	{"never reported, by mark", []string{"TCP C0A80105 D431 0A000065 0050 0A010009 0050 ESTABLISHED LOCAL 880"}, nil, []string{"missing_in_replica"}},
	{"never reported, IPv6", []string{"TCP fd00:0000:0000:0000:0000:0000:0000:0001 C350 fd00:0000:0000:0000:0000:0000:0000:0064 01BB fd01:0000:0000:0000:0000:0000:0000:0002 01BB ESTABLISHED LOCAL 899"}, nil, []string{"missing_in_replica"}},
	{"taken over without a report", []string{procWeb + procOne + "ESTABLISHED SYNC 880"}, nil, []string{"missing_in_replica"}},
	{"opening", []string{procWeb + procOne + "SYN_RECV LOCAL 55"}, nil, []string{"unopened"}},
	{"SCTP opening", []string{"SCTP C0A80105 0BB8 0A000064 0BB8 0A010002 0BB8 C-ECHOED LOCAL 50"}, nil, []string{"unopened"}},
	{"last acknowledgement", []string{procWeb + procOne + "LAST_ACK LOCAL 25"}, nil, []string{"unopened"}},
	{"waits for FTP data", []string{"TCP C0A80105 0000 0A000064 0014 0A010004 0014 LISTEN LOCAL 120"}, nil, []string{"unopened"}},
	{"about to expire in the kernel", []string{procWeb + procOne + "CLOSE LOCAL 4"}, nil, []string{"settling"}},
	{"a template's second life", []string{procTLS + "0A010002 01BB NONE SYNC 350"}, nil, []string{"leftover"}},
	{"no such server", []string{procWeb + procThree + "ESTABLISHED LOCAL 880"}, nil, []string{"unserved"}},
	{"no such service", []string{"TCP C0A80105 D431 0A0000C8 0050 0A010002 1F90 ESTABLISHED LOCAL 880"}, nil, []string{"unserved"}},
	{"of a persistence engine", []string{"UDP C0A80105 13C4 0A000064 13C4 0A010002 13C4 UDP LOCAL 280"}, nil, []string{"persistence_engine"}},
	{"templates of a persistence engine", []string{"UDP C0A80105 0000 0A000064 13C4 0A010002 13C4 NONE LOCAL 55", "UDP C0A80105 0000 0A000064 13C4 0A010002 13C4 NONE LOCAL 44"},
		[]entry{{from: other, record: record(17, 0, 60, template, visitor, "10.0.0.100:5060", "10.1.0.2:5060"), age: 10}}, []string{"persistence_engine", "persistence_engine", "persistence_engine"}},

	{"injection lost", nil, []entry{{from: other, record: established(one), age: 20}}, []string{"missing_in_kernel"}},
	{"injection lost, template", nil, []entry{{from: other, record: persistent(1, template, "10.1.0.2:443"), age: 20}}, []string{"missing_in_kernel"}},
	{"injection lost, service not there either", nil, []entry{{from: other, record: record(6, 1, 900, 0, client, "10.0.0.200:80", one), age: 20}}, []string{"missing_in_kernel"}},
	{"just injected", nil, []entry{{from: other, record: established(one), age: 2}}, []string{"settling"}},
	{"about to expire in the replica", nil, []entry{{from: other, record: established(one), remains: 4}}, []string{"settling"}},
	{"own, ended without a report", nil, []entry{{from: self, record: established(one), age: 20}}, []string{"gone"}},
	{"its server was taken out of the service", nil, []entry{{from: other, record: established("10.1.0.99:8080"), age: 20}}, []string{"unserved"}},
	{"template given up, 6.1", []string{"TCP C0A80105 0000 0A000064 FFFF 0A010002 FFFF NONE SYNC 300"}, []entry{{from: other, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"given_up"}},
	{"template given up, 7.2", []string{procTLS + "0A010002 FFFF ASSURED SYNC 300"}, []entry{{from: other, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"given_up"}},
	{"template given up, by mark", []string{"IP C0A80105 0000 00000007 0000 0A010009 FFFF NONE SYNC 300"},
		[]entry{{from: other, record: record(0, 0, 600, template, visitor, "0.0.0.7:0", "10.1.0.9:0"), age: 20}}, []string{"given_up"}},
	{"another's template given up", []string{"TCP C0A80106 0000 0A000064 FFFF 0A010002 FFFF NONE SYNC 300"}, []entry{{from: other, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"missing_in_kernel"}},

	{"other server, another's", []string{procWeb + procTwo + "ESTABLISHED SYNC 880"}, []entry{{from: other, record: established(one), age: 20}}, []string{"other_server"}},
	{"other server, own", []string{procWeb + procTwo + "ESTABLISHED LOCAL 880"}, []entry{{from: self, record: established(one), age: 20}}, []string{"other_server"}},
	{"other server, template", []string{procTLS + "0A010003 01BB NONE LOCAL 350"}, []entry{{from: self, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"other_server"}},
	{"other server, another's template", []string{procTLS + "0A010003 01BB NONE SYNC 350"}, []entry{{from: other, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"other_server"}},
	{"other server, UDP", []string{"UDP C0A80105 0035 0A000064 0035 0A010003 0035 UDP SYNC 280"}, []entry{{from: other, record: record(17, 0, 300, inactive, "192.168.1.5:53", "10.0.0.100:53", "10.1.0.2:53"), age: 20}}, []string{"other_server"}},
	{"other server, just injected", []string{procWeb + procTwo + "ESTABLISHED SYNC 880"}, []entry{{from: other, record: established(one), age: 1}}, []string{"settling"}},
	{"other server, ignored as it closes", []string{procWeb + procTwo + "ESTABLISHED LOCAL 880"}, []entry{{from: other, record: closing(ipvssync.TCPFinWait, 120, one), age: 20}}, []string{"kernel_keeps"}},
	{"other server, the port used again here", []string{procWeb + procTwo + "SYN_RECV LOCAL 59"}, []entry{{from: self, record: closing(ipvssync.TCPTimeWait, 120, one), age: 20}}, []string{"ahead"}},
	{"other server, another's port used again here", []string{procWeb + procTwo + "SYN_RECV LOCAL 59"}, []entry{{from: other, record: established(one), age: 20}}, []string{"ahead"}},
	{"other server, opened elsewhere", []string{procWeb + procTwo + "SYN_RECV SYNC 39"}, []entry{{from: other, record: established(one), age: 20}}, []string{"other_server"}},

	{"own, the server closes", []string{procWeb + procOne + "FIN_WAIT LOCAL 119"}, []entry{{from: self, record: established(one), age: 20}}, []string{"ahead"}},
	{"own, the server resets", []string{procWeb + procOne + "CLOSE LOCAL 9"}, []entry{{from: self, record: established(one), age: 20}}, []string{"ahead"}},
	{"own, reset and about to expire", []string{procWeb + procOne + "CLOSE LOCAL 3"}, []entry{{from: self, record: established(one), age: 20}}, []string{"settling"}},
	{"own, the server closes too", []string{procWeb + procOne + "TIME_WAIT LOCAL 119"}, []entry{{from: self, record: closing(ipvssync.TCPCloseWait, 60, one), age: 20}}, []string{"ahead"}},
	{"own, last acknowledgement", []string{procWeb + procOne + "LAST_ACK LOCAL 29"}, []entry{{from: self, record: closing(ipvssync.TCPCloseWait, 60, one), age: 20}}, []string{"ahead"}},
	{"own, the same connection opened again", []string{procWeb + procOne + "SYN_RECV LOCAL 59"}, []entry{{from: self, record: closing(ipvssync.TCPTimeWait, 120, one), age: 20}}, []string{"ahead"}},
	{"own, told of by a flush", []string{procWeb + procOne + "SYN_RECV LOCAL 49"}, []entry{{from: self, record: record(6, ipvssync.TCPSynRecv, 60, 0, client, web, one), age: 10}}, nil},
	{"own, the client's end not reported", []string{procWeb + procOne + "CLOSE_WAIT LOCAL 59"}, []entry{{from: self, record: established(one), age: 20}}, []string{"other_state"}},
	{"own, the beginning not reported", []string{procWeb + procOne + "ESTABLISHED LOCAL 890"}, []entry{{from: self, record: closing(ipvssync.TCPTimeWait, 120, one), age: 20}}, []string{"other_state"}},
	{"own, direct routing, the client's end not reported", []string{"TCP C0A80105 D431 0A000064 0051 0A010002 0051 FIN_WAIT LOCAL 119"},
		[]entry{{from: self, record: record(6, 1, 900, noOutput, client, direct, "10.1.0.2:81"), age: 20}}, []string{"other_state"}},
	{"own, SCTP's server shuts down", []string{"SCTP C0A80105 0BB8 0A000064 0BB8 0A010002 0BB8 S-SENT LOCAL 60"},
		[]entry{{from: self, record: record(132, ipvssync.SCTPEstablished, 900, 0, "192.168.1.5:3000", "10.0.0.100:3000", "10.1.0.2:3000"), age: 20}}, []string{"ahead"}},
	{"own, template assured since", []string{procTLS + "0A010002 01BB ASSURED LOCAL 350"}, []entry{{from: self, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"ahead"}},

	{"another's, update lost", []string{procWeb + procOne + "ESTABLISHED SYNC 880"}, []entry{{from: other, record: closing(ipvssync.TCPTimeWait, 120, one), age: 20}}, []string{"other_state"}},
	{"another's, altered by hand", []string{procWeb + procOne + "CLOSE SYNC 9"}, []entry{{from: other, record: established(one), age: 20}}, []string{"other_state"}},
	{"another's, established after a flush, lost", []string{procWeb + procOne + "SYN_RECV SYNC 39"}, []entry{{from: other, record: established(one), age: 20}}, []string{"other_state"}},
	{"another's, opened again here", []string{procWeb + procOne + "SYN_RECV SYNC 59"}, []entry{{from: other, record: closing(ipvssync.TCPTimeWait, 120, one), age: 20}}, []string{"ahead"}},
	{"another's, template assured here", []string{procTLS + "0A010002 01BB ASSURED SYNC 350"}, []entry{{from: other, record: persistent(0, template, "10.1.0.2:443"), age: 20}}, []string{"ahead"}},
	{"another's, template assured there", []string{procTLS + "0A010002 01BB NONE SYNC 350"}, []entry{{from: other, record: persistent(1, template, "10.1.0.2:443"), age: 20}}, []string{"other_state"}},

	{"expires too early", []string{procWeb + procOne + "ESTABLISHED SYNC 849"}, []entry{{from: other, record: established(one), age: 20}}, []string{"expires_early"}},
	{"expires in a moment", []string{procWeb + procOne + "ESTABLISHED SYNC 0"}, []entry{{from: other, record: established(one), age: 20}}, []string{"expires_early"}},
	{"expires a little early", []string{procWeb + procOne + "ESTABLISHED SYNC 850"}, []entry{{from: other, record: established(one), age: 20}}, nil},
	{"own, expires early", []string{procWeb + procOne + "ESTABLISHED LOCAL 300"}, []entry{{from: self, record: established(one), age: 20}}, nil},
	{"expires later", []string{procWeb + procOne + "ESTABLISHED SYNC 899"}, []entry{{from: other, record: established(one), age: 600}}, nil},

	{"one line twice", []string{procWeb + procOne + "ESTABLISHED LOCAL 880", procWeb + procOne + "ESTABLISHED LOCAL 880"}, nil, []string{"missing_in_replica"}},
	{"connection and template of the same endpoints", []string{"TCP C0A80105 0000 0A000064 01BB 0A010002 01BB LISTEN LOCAL 100", procTLS + "0A010002 01BB NONE LOCAL 350"}, nil, []string{"missing_in_replica", "unopened"}},
	{"the tick", []string{"TCP A9FE5102 2291 A9FE5101 2290 A9FE5102 2290 CLOSE LOCAL 9"}, nil, nil},
	{"server of another family", []string{"TCP fd00:0000:0000:0000:0000:0000:0000:0001 C350 fd00:0000:0000:0000:0000:0000:0000:0064 01BB 0A010002 01BB ESTABLISHED LOCAL 60"}, nil, nil},
	{"a state of a later kernel", []string{procWeb + procOne + "DREAMING LOCAL 60"}, nil, nil},
}

func TestRules(t *testing.T) {
	for _, tt := range rules {
		t.Run(tt.name, func(t *testing.T) {
			r := newReplica()
			for _, e := range tt.replica {
				r.put(t, e)
			}
			res := pass(t, config(), r, lines(t, tt.kernel...))
			if got := kindsOf(res.Counts); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			for _, f := range res.Findings {
				if !f.Kind.Difference() || f.Why() == "" || f.At != t0 {
					t.Errorf("%+v", f)
				}
			}
			if res.Counts.Differences() != len(res.Findings) || res.Truncated {
				t.Errorf("%d findings of %d differences, truncated %v", len(res.Findings), res.Counts.Differences(), res.Truncated)
			}
		})
	}
}

// What is not mirrored, or not kept in this kernel, is no difference.
func TestFilters(t *testing.T) {
	kernel := lines(t, procWeb+procOne+"ESTABLISHED LOCAL 880", "TCP C0A80105 D431 0A000065 0050 0A010009 0050 FIN_WAIT LOCAL 100")
	r := newReplica()
	marked := record(6, ipvssync.TCPEstablished, 900, noOutput, client, "10.0.0.101:80", "10.1.0.9:80")
	marked.Fwmark = 9 // of the packets, not of the service
	r.put(t, entry{from: self, record: marked, age: 20})
	r.put(t, entry{from: other, record: record(17, 0, 300, inactive, "192.168.1.8:53", "10.0.0.100:53", "10.1.0.2:53"), age: 20})
	for name, tt := range map[string]struct {
		set     func(*Config)
		want    []string
		kernel  int
		replica int
		ignored int
	}{
		"none":              {func(*Config) {}, []string{"missing_in_replica", "missing_in_kernel", "other_state"}, 2, 2, 0},
		"one service":       {func(c *Config) { c.Mirrored = func(r *ipvssync.Record) bool { return r.Virtual.Port() == 53 } }, []string{"missing_in_kernel"}, 0, 1, 2},
		"the packets' mark": {func(c *Config) { c.Mirrored = func(r *ipvssync.Record) bool { return r.Fwmark == 9 } }, []string{"other_state"}, 1, 1, 1},
		"nothing kept":      {func(c *Config) { c.Kept = func(*ipvssync.Record) bool { return false } }, []string{"missing_in_replica", "other_state", "elsewhere"}, 2, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config()
			tt.set(&cfg)
			res := pass(t, cfg, r, kernel)
			if got := kindsOf(res.Counts); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if res.Kernel != tt.kernel || res.Replica != tt.replica || res.Ignored != tt.ignored {
				t.Errorf("compared %d of the kernel and %d of the replica, ignored %d", res.Kernel, res.Replica, res.Ignored)
			}
		})
	}
}
