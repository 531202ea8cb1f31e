package ipvs

import (
	"testing"

	"saru/proto/ipvssync"
)

func TestStateNumber(t *testing.T) {
	const (
		tcp  = ipvssync.ProtocolTCP
		udp  = ipvssync.ProtocolUDP
		sctp = ipvssync.ProtocolSCTP
		esp  = ipvssync.ProtocolESP
	)
	for _, tt := range []struct {
		protocol uint8
		name     string
		template bool
		want     uint16
		ok       bool
	}{
		{tcp, "NONE", false, 0, true},
		{tcp, "ESTABLISHED", false, ipvssync.TCPEstablished, true},
		{tcp, "SYN_RECV", false, ipvssync.TCPSynRecv, true},
		{tcp, "SYNACK", false, ipvssync.TCPSynAck, true},
		{tcp, "UDP", false, 0, false},
		{tcp, "ERR!", false, 0, false},
		{tcp, "ASSURED", true, ipvssync.TemplateAssured, true},
		{tcp, "NONE", true, ipvssync.TemplateNone, true},
		{tcp, "ESTABLISHED", true, 0, false},
		{udp, "UDP", false, 0, true},
		{udp, "NONE", false, 0, false},
		{sctp, "ESTABLISHED", false, ipvssync.SCTPEstablished, true},
		{sctp, "C-ECHOED", false, 7, true},
		{sctp, "S-ACK-SENT", false, sctpShutdownAckSent, true},
		{sctp, "FIN_WAIT", false, 0, false},
		{esp, "NONE", false, 0, true},
		{esp, "ERR!", false, 0, true},
		{esp, "ESTABLISHED", false, 0, false},
		{ipvssync.ProtocolIP, "ASSURED", true, ipvssync.TemplateAssured, true},
	} {
		if got, ok := StateNumber(tt.protocol, tt.name, tt.template); got != tt.want || ok != tt.ok {
			t.Errorf("StateNumber(%d, %s, %v) = %d, %v", tt.protocol, tt.name, tt.template, got, ok)
		}
	}
	for protocol, states := range map[uint8]uint16{tcp: 11, sctp: 14, udp: 1, esp: 1} {
		for s := range states {
			name := ipvssync.StateName(protocol, s, false)
			if got, ok := StateNumber(protocol, name, false); got != s || !ok {
				t.Errorf("protocol %d: %s is state %d, %v, not %d", protocol, name, got, ok, s)
			}
		}
	}
}

// What the kernel does in each state, as its tables have it.
func TestStates(t *testing.T) {
	type row struct {
		state              string
		timeout            uint32
		inactive, reported bool
		silently           []string // by packets of the server alone
	}
	for protocol, rows := range map[uint8][]row{
		ipvssync.ProtocolTCP: {
			{"NONE", 2, true, false, nil},
			{"ESTABLISHED", 900, false, true, []string{"FIN_WAIT", "CLOSE"}},
			{"SYN_SENT", 120, false, false, nil},
			{"SYN_RECV", 60, false, false, nil},
			{"FIN_WAIT", 120, true, true, []string{"CLOSE"}},
			{"TIME_WAIT", 120, true, true, nil},
			{"CLOSE", 10, true, true, nil},
			{"CLOSE_WAIT", 60, true, true, []string{"TIME_WAIT", "CLOSE"}},
			{"LAST_ACK", 30, true, false, nil},
			{"LISTEN", 120, true, false, nil},
			{"SYNACK", 120, false, false, nil},
		},
		ipvssync.ProtocolUDP: {{"UDP", 300, true, true, nil}},
		ipvssync.ProtocolESP: {{"NONE", 180, true, true, nil}},
		ipvssync.ProtocolSCTP: {
			{"NONE", 2, true, false, nil},
			{"INIT1", 4, true, false, nil},
			{"INIT", 61, true, false, nil},
			{"C-SENT", 61, true, false, nil},
			{"C-REPLIED", 61, true, false, nil},
			{"C-WAIT", 61, true, false, nil},
			{"COOKIE", 61, true, false, nil},
			{"C-ECHOED", 61, true, false, nil},
			{"ESTABLISHED", 900, false, true, []string{"S-SENT", "S-ACK-SENT", "CLOSED"}},
			{"S-SENT", 61, true, true, []string{"S-ACK-SENT", "CLOSED"}},
			{"S-RECEIVED", 61, true, true, []string{"S-ACK-SENT", "CLOSED"}},
			{"S-ACK-SENT", 61, true, true, []string{"CLOSED"}},
			{"REJECTED", 4, true, false, nil},
			{"CLOSED", 61, true, true, nil},
		},
	} {
		for _, r := range rows {
			n, ok := StateNumber(protocol, r.state, false)
			if !ok {
				t.Fatalf("protocol %d has no state %s", protocol, r.state)
			}
			if got := DefaultTimeout(protocol, n, false); got != r.timeout {
				t.Errorf("protocol %d %s: timeout %d, want %d", protocol, r.state, got, r.timeout)
			}
			if got := Inactive(protocol, n, false); got != r.inactive {
				t.Errorf("protocol %d %s: inactive %v", protocol, r.state, got)
			}
			if got := Reported(protocol, n, false); got != r.reported {
				t.Errorf("protocol %d %s: reported %v", protocol, r.state, got)
			}
			leads := map[string]bool{}
			for _, s := range r.silently {
				leads[s] = true
			}
			for _, to := range rows {
				m, _ := StateNumber(protocol, to.state, false)
				if got := Silently(protocol, n, m); got != leads[to.state] {
					t.Errorf("protocol %d: from %s to %s silently: %v", protocol, r.state, to.state, got)
				}
			}
		}
	}
	if DefaultTimeout(ipvssync.ProtocolTCP, 1, true) != 180 || !Inactive(ipvssync.ProtocolTCP, 1, true) || !Reported(ipvssync.ProtocolTCP, 0, true) {
		t.Error("a template is not like a connection")
	}
	if DefaultTimeout(ipvssync.ProtocolTCP, 99, false) != 180 {
		t.Error("a state that does not exist")
	}
}

func TestProcLinear(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-28-amd64":                   false,
		"6.12.57+deb13-amd64":              false,
		"6.13.12":                          false,
		"6.14.0":                           true,
		"6.14-rc1":                         true,
		"6.14":                             true,
		"6.18.44-fc-v657":                  true,
		"7.0":                              true,
		"7.2.13+deb14-amd64":               true,
		"10.1.2":                           true,
		"5.14.0-503.el9.x86_64":            false,
		"5.15.0-1-pve":                     false,
		"4.18.0-553.el8_10":                false,
		"5.99":                             false,
		"6.140000000":                      false,
		"6.":                               false,
		"6.x":                              false,
		"6":                                false,
		"":                                 false,
		"v6.14":                            false,
		"-6.14":                            false,
		"6.14999999999999999999999999":     false,
		"99999999999999999999999999999.14": false,
	} {
		if got := ProcLinear(release); got != want {
			t.Errorf("ProcLinear(%q) = %v", release, got)
		}
	}
	release, err := KernelRelease()
	if err != nil || release == "" {
		t.Errorf("this kernel: %q, %v", release, err)
	}
}

func TestEntries(t *testing.T) {
	if got := (Destination{ActiveConns: 1, InactiveConns: 20, PersistentConns: 300}).Entries(); got != 321 {
		t.Errorf("%d entries", got)
	}
}
