package ipvs

import "saru/proto/ipvssync"

// What the kernel's protocols do with their states: net/netfilter/ipvs/ip_vs_proto_tcp.c, ip_vs_proto_udp.c and
// ip_vs_proto_sctp.c; which states are told to other directors: ip_vs_sync.c, ip_vs_sync_conn_needed.

// tcpTimeouts and sctpTimeouts are in seconds, by state (tcp_timeouts, sctp_timeouts). Those of TCP and UDP can be set with
// ipvsadm --set.
var (
	tcpTimeouts  = [...]uint32{2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120}
	sctpTimeouts = [...]uint32{2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61}
)

const (
	udpTimeout = 300
	// otherTimeout is what ip_vs_sync.c, ip_vs_proc_conn, gives templates, and connections of other protocols.
	otherTimeout = 180
)

// DefaultTimeout returns the seconds that the kernel gives a connection in this state, unless it was told otherwise. For a
// template it is what a sync message without a timeout gives it.
func DefaultTimeout(protocol uint8, state uint16, template bool) uint32 {
	switch {
	case template:
	case protocol == ipvssync.ProtocolTCP && int(state) < len(tcpTimeouts):
		return tcpTimeouts[state]
	case protocol == ipvssync.ProtocolSCTP && int(state) < len(sctpTimeouts):
		return sctpTimeouts[state]
	case protocol == ipvssync.ProtocolUDP:
		return udpTimeout
	}
	return otherTimeout
}

// numbers has the states of a protocol by the names that /proc shows.
func numbers(protocol uint8, states int, template bool) map[string]uint16 {
	m := make(map[string]uint16, states)
	for s := range uint16(states) {
		m[ipvssync.StateName(protocol, s, template)] = s
	}
	return m
}

var (
	tcpNumbers      = numbers(ipvssync.ProtocolTCP, len(tcpTimeouts), false)
	sctpNumbers     = numbers(ipvssync.ProtocolSCTP, len(sctpTimeouts), false)
	templateNumbers = numbers(0, 2, true)
)

// StateNumber returns the number of a state that /proc shows by name, or false for a name that the protocol does not have.
func StateNumber(protocol uint8, name string, template bool) (uint16, bool) {
	var n uint16
	var ok bool
	switch {
	case template:
		n, ok = templateNumbers[name]
	case protocol == ipvssync.ProtocolTCP:
		n, ok = tcpNumbers[name]
	case protocol == ipvssync.ProtocolUDP:
		ok = name == "UDP"
	case protocol == ipvssync.ProtocolSCTP:
		n, ok = sctpNumbers[name]
	default: // AH and ESP have no names (ip_vs_proto.c, ip_vs_state_name)
		ok = name == "NONE" || name == "ERR!"
	}
	return n, ok
}

// Inactive reports whether a connection that this kernel has made is counted as inactive in this state: TCP's by
// tcp_state_active_table, SCTP's unless established, all others always, as ip_vs_bind_dest begins with that.
func Inactive(protocol uint8, state uint16, template bool) bool {
	switch {
	case template:
	case protocol == ipvssync.ProtocolTCP:
		switch state {
		case ipvssync.TCPEstablished, ipvssync.TCPSynSent, ipvssync.TCPSynRecv, ipvssync.TCPSynAck:
			return false
		}
	case protocol == ipvssync.ProtocolSCTP:
		return state != ipvssync.SCTPEstablished
	}
	return true
}

// Reported reports whether the kernel's master thread tells of a connection in this state.
func Reported(protocol uint8, state uint16, template bool) bool {
	switch {
	case template:
	case protocol == ipvssync.ProtocolTCP:
		switch state {
		case ipvssync.TCPEstablished, ipvssync.TCPFinWait, ipvssync.TCPClose, ipvssync.TCPCloseWait, ipvssync.TCPTimeWait:
		default:
			return false
		}
	case protocol == ipvssync.ProtocolSCTP:
		switch state {
		case ipvssync.SCTPEstablished, sctpShutdownSent, sctpShutdownReceived, sctpShutdownAckSent, ipvssync.SCTPClosed:
		default:
			return false
		}
	}
	return true
}

// IP_VS_SCTP_S_*.
const (
	sctpShutdownSent     = 9
	sctpShutdownReceived = 10
	sctpShutdownAckSent  = 11
)

// Silently reports whether packets of the server alone lead a connection from one reported state to another. They change
// the state, but only packets of the client are told of (ip_vs_core.c, handle_response and ip_vs_in_hook). It follows the
// OUTPUT part of tcp_states and sctp_states.
func Silently(protocol uint8, from, to uint16) bool {
	var leads []uint16
	switch protocol {
	case ipvssync.ProtocolTCP:
		switch from {
		case ipvssync.TCPEstablished:
			leads = []uint16{ipvssync.TCPFinWait, ipvssync.TCPClose}
		case ipvssync.TCPFinWait:
			leads = []uint16{ipvssync.TCPClose}
		case ipvssync.TCPCloseWait:
			leads = []uint16{ipvssync.TCPTimeWait, ipvssync.TCPClose}
		}
	case ipvssync.ProtocolSCTP:
		switch from {
		case ipvssync.SCTPEstablished:
			leads = []uint16{sctpShutdownSent, sctpShutdownAckSent, ipvssync.SCTPClosed}
		case sctpShutdownSent, sctpShutdownReceived:
			leads = []uint16{sctpShutdownAckSent, ipvssync.SCTPClosed}
		case sctpShutdownAckSent:
			leads = []uint16{ipvssync.SCTPClosed}
		}
	}
	for _, s := range leads {
		if s == to {
			return true
		}
	}
	return false
}
