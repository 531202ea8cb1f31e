// Package mirror is the wire format of what syncd adds to the kernel's own sync messages: an authenticated trailer
// behind the last record. Stock kernels and Wireshark read the records and do not look at what follows them
// (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_process_message: the loop ends after nr_conns records).
//
// A datagram is a version 1 sync message (package ipvssync):
//
//	header    8 bytes
//	records   nr_conns of them, each at a multiple of 4; zero for control messages
//	padding   0 to 3 zero bytes, to a multiple of 4
//	trailer   body, fixed fields, tag; all of it counted in the header's size field
//
// The fixed fields and the tag stand at the end of the datagram, so that a receiver finds and authenticates them before it
// looks at anything else. All integers are big endian. Offsets are from the start of the fixed fields, which begin 80
// bytes before the end of the datagram:
//
//	off len
//	0   4   magic "SARU"
//	4   1   format version, 1
//	5   1   key id; 0: unsigned, the tag is zero
//	6   1   kind (Kind)
//	7   1   flags (FlagSynced, FlagRepeat, FlagConfirm)
//	8   2   length of the body in front of the fixed fields, a multiple of 4
//	10  2   reserved, zero
//	12  8   sender: the first 8 bytes of the SHA-256 of its node name
//	20  8   sender's incarnation: 64 random bits, drawn at each start
//	28  8   sequence number, from 1; one series for the stream kinds, one for the control kinds
//	36  8   origin: the director whose kernel the records come from (same form as sender)
//	44  8   grant of all records: term (32 bits) and version (32 bits)
//	52  8   clock of all records: hybrid logical clock in microseconds; in heartbeats and requests the sender's own, now
//	60  4   reserved, zero
//	64  16  tag: HMAC-SHA256, truncated to 128 bits (RFC 2104 section 5), over the datagram up to the tag
//
// Body of KindRecords: empty.
//
// Body of KindHeartbeat:
//
//	0   8   milliseconds since the sender started
//	8   8   newest sequence number of its stream (0: none yet)
//	16  8   oldest sequence number of its stream that it can repeat (newest + 1: none)
//	24  16  address on which it teaches its table by TCP, IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2); zero: it does not
//	40  2   TCP port there; zero if and only if the address is
//	42  1   number of echoes
//	43  1   length of the node name
//	44  4   number of entries of its table
//	48  ..  echoes, 48 bytes each:
//	          0  8  node heard
//	          8  8  its incarnation
//	          16 8  newest control sequence number heard from it
//	          24 8  newest stream sequence number heard from it
//	          32 8  confirmed: the sender's kernel has taken all of its stream up to this number
//	          40 4  age: milliseconds since it was last heard
//	          44 1  flags (EchoCounts)
//	          45 3  reserved, zero
//	..  ..  node name in printable ASCII without spaces, then zero bytes to a multiple of 4
//
// Body of KindRequest:
//
//	0   8   node asked
//	8   8   its incarnation
//	16  ..  ranges of its stream that the sender misses, at least one, in ascending order and apart, 12 bytes each:
//	          0  8  first sequence number, from 1
//	          8  4  how many, at least 1
//
// A sender with more peers than fit pages through them from heartbeat to heartbeat.
package mirror
