package ipvssync

import "net/netip"

// Port is the default UDP port of sync messages (IP_VS_SYNC_PORT in ip_vs_sync.c). Kernels with
// several sync threads (sysctl sync_ports) use the ports that follow as well.
const Port = 8848

// DefaultGroup returns the kernel's default multicast group and port, 224.0.0.81:8848 (IP_VS_SYNC_GROUP).
func DefaultGroup() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 81}), Port)
}

// Sizes and limits of the format, in bytes unless said.
const (
	HeaderLenV0 = 4  // struct ip_vs_sync_mesg_v0
	HeaderLenV1 = 8  // struct ip_vs_sync_mesg
	RecordLenV0 = 24 // SIMPLE_CONN_SIZE
	RecordLen4  = 36 // struct ip_vs_sync_v4
	RecordLen6  = 72 // struct ip_vs_sync_v6

	MaxRecords = 255   // records in a message: the count is one byte, and the kernel's sender does not look whether it overflows
	MaxSize    = 65535 // of a message: its size field; UDP over IPv4 carries no more than 65507
	MaxPEData  = 255   // IP_VS_PEDATA_MAXLEN
	MaxPEName  = 16    // IP_VS_PENAME_MAXLEN

	// MaxRecordLen is the longest that the length field of a record can say (SVER_MASK). With the known options no record is longer than 373.
	MaxRecordLen = 4095

	seqLen    = 24                 // struct ip_vs_sync_conn_options
	optHeader = 2                  // type and length of an option
	alignMask = 4 - 1              // records of version 1 are aligned to 4
	seqOption = optHeader + seqLen // the sequence option of version 1
)

// Options of version 1 (IPVS_OPT_*).
const (
	optSeq      = 1
	optPEData   = 2
	optPEName   = 3
	optOptional = 0x40 // IPVS_OPT_F_PARAM
)

// IP protocols that IPVS balances. Zero stands in templates of fwmark services.
const (
	ProtocolIP   = 0
	ProtocolTCP  = 6
	ProtocolUDP  = 17
	ProtocolESP  = 50
	ProtocolAH   = 51
	ProtocolSCTP = 132
)

// Flags of a record (IP_VS_CONN_F_* in include/uapi/linux/ip_vs.h). The forwarding method is a number within FlagFwdMask, the others are bits.
const (
	FlagFwdMask   = 0x7
	FlagMasq      = 0 // LVS-NAT
	FlagLocalNode = 1
	FlagTunnel    = 2
	FlagDRoute    = 3
	FlagBypass    = 4

	FlagSync      = 0x0020 // the entry was made by a sync message; sent out again by a director that took the connection over
	FlagHashed    = 0x0040 // internal to a kernel, never sent
	FlagNoOutput  = 0x0080 // the director does not see the replies
	FlagInactive  = 0x0100 // counted as an inactive connection
	FlagOutSeq    = 0x0200
	FlagInSeq     = 0x0400
	FlagSeqMask   = FlagOutSeq | FlagInSeq
	FlagNoCPort   = 0x0800 // the client port is not known yet (FTP data)
	FlagTemplate  = 0x1000 // a persistence template
	FlagOnePacket = 0x2000
	FlagNFCT      = 1 << 16 // with a netfilter conntrack

	// FlagBackupMask is what a kernel takes over from a record of version 1 (IP_VS_CONN_F_BACKUP_MASK); it adds FlagSync itself.
	FlagBackupMask = FlagFwdMask | FlagNoOutput | FlagInactive | FlagSeqMask | FlagNoCPort | FlagTemplate
)

// States of TCP connections (IP_VS_TCP_S_*).
const (
	TCPNone        = 0
	TCPEstablished = 1
	TCPSynSent     = 2
	TCPSynRecv     = 3
	TCPFinWait     = 4
	TCPTimeWait    = 5
	TCPClose       = 6
	TCPCloseWait   = 7
	TCPLastAck     = 8
	TCPListen      = 9
	TCPSynAck      = 10
)

// States of other protocols that callers name (IP_VS_UDP_S_NORMAL, IP_VS_SCTP_S_ESTABLISHED, IP_VS_SCTP_S_CLOSED, IP_VS_CTPL_S_ASSURED).
const (
	UDPNormal       = 0
	SCTPEstablished = 8
	SCTPClosed      = 13
	TemplateNone    = 0
	TemplateAssured = 1
)
