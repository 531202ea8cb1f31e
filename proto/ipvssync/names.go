package ipvssync

import "strconv"

// Names of states as in /proc/net/ip_vs_conn (ip_vs_proto_tcp.c, ip_vs_proto_sctp.c).
var (
	tcpStates = [...]string{
		"NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK",
	}
	sctpStates = [...]string{
		"NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED", "S-SENT", "S-RECEIVED",
		"S-ACK-SENT", "REJECTED", "CLOSED",
	}
	udpStates      = [...]string{"UDP"}
	templateStates = [...]string{"NONE", "ASSURED"}
	singleState    = [...]string{"NONE"} // AH and ESP, which /proc shows as ERR!
)

// StateName returns the name of a state as /proc/net/ip_vs_conn has it; unknown states give their number, as in "state-17".
func StateName(proto uint8, state uint16, template bool) string {
	var names []string
	switch {
	case template:
		names = templateStates[:]
	case proto == ProtocolTCP:
		names = tcpStates[:]
	case proto == ProtocolUDP:
		names = udpStates[:]
	case proto == ProtocolSCTP:
		names = sctpStates[:]
	default:
		names = singleState[:]
	}
	if int(state) < len(names) {
		return names[state]
	}
	return "state-" + strconv.Itoa(int(state))
}

// ProtocolName returns the name of an IP protocol in small letters, or its decimal number.
func ProtocolName(proto uint8) string {
	switch proto {
	case ProtocolIP:
		return "ip"
	case 1:
		return "icmp"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolESP:
		return "esp"
	case ProtocolAH:
		return "ah"
	case 58:
		return "icmpv6"
	case ProtocolSCTP:
		return "sctp"
	}
	return strconv.Itoa(int(proto))
}

var (
	fwdNames  = [...]string{"masq", "local", "tunnel", "route", "bypass"}
	flagNames = [...]struct {
		flag uint32
		name string
	}{
		{FlagSync, "sync"}, {FlagHashed, "hashed"}, {FlagNoOutput, "no_output"}, {FlagInactive, "inactive"}, {FlagOutSeq, "out_seq"},
		{FlagInSeq, "in_seq"}, {FlagNoCPort, "no_cport"}, {FlagTemplate, "template"}, {FlagOnePacket, "one_packet"}, {FlagNFCT, "nfct"},
	}
)

// FlagNames returns the names of flags: first the forwarding method in the words of ipvsadm (masq, local, tunnel, route, bypass),
// then one word a bit. Unknown bits come last as one number, as in "0x8000".
func FlagNames(flags uint32) []string {
	names := make([]string, 0, 4)
	if fwd := flags & FlagFwdMask; int(fwd) < len(fwdNames) {
		names = append(names, fwdNames[fwd])
		flags &^= FlagFwdMask
	}
	for _, f := range flagNames {
		if flags&f.flag != 0 {
			names = append(names, f.name)
			flags &^= f.flag
		}
	}
	if flags != 0 {
		names = append(names, "0x"+strconv.FormatUint(uint64(flags), 16))
	}
	return names
}
