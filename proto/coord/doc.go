// Package coord is the wire format of the messages by which saru's coordinators agree on who owns which bucket. They go by UDP
// multicast, by default to 224.0.0.81:8850, one message a datagram of at most 1,472 bytes. All integers are big endian.
//
// A datagram is
//
//	off len
//	0   4   magic "SARC"
//	4   1   format version, 1
//	5   1   key id; 0: unsigned, the tag is zero
//	6   1   kind (Kind)
//	7   1   flags: 0x01 paged, in heartbeats only
//	8   8   sender: the first 8 bytes of the SHA-256 of its node name; not zero
//	16  8   sender's incarnation: 64 random bits, drawn at each start; not zero
//	24  8   sequence number, from 1, one series for all kinds
//	32  ..  body
//	..  16  tag: HMAC-SHA256, truncated to 128 bits (RFC 2104 section 5), over the datagram up to the tag
//
// What is sent has a tag of zeros until it is signed; what is received is authenticated before its body is looked at: [ParseHeader] tells the key.
//
// References to tables (Ref) take 32 bytes. All of them are zero (none), or none of the four fields is:
//
//	0   4   term under which the line was founded
//	4   8   incarnation of who founded it
//	12  4   version
//	16  16  digest: the first 16 bytes of the SHA-256 of the table's encoding
//
// Ballots take 12 bytes, which are zero where there is none: round (4), proposer (8, not zero).
//
// Body of KindHeartbeat:
//
//	0   8   milliseconds since the sender started
//	8   2   states (State); other bits are zero
//	10  2   weight
//	12  2   ping nodes that it reaches
//	14  1   length of the node name, 1 to 63
//	15  1   number of echoes, at most 40 (MaxEchoes)
//	16  4   buckets that it holds open
//	20  4   newest term that it has heard of; 0: none
//	24  8   master of the table that counts; zero: it has none, or is no member of it
//	32  16  digest of the share function that it is configured for
//	48  32  reference to the table that counts
//	80  32  reference to the table accepted as its successor
//	112 12  ballot under which that was accepted
//	124 12  promise: the ballot below which nothing is accepted as successor
//	136 16  digest of the table of which everything that it takes away has been closed and flushed
//	152 8   nonce of the newest command that was obeyed; 0: none
//	160 16  timers in microseconds, 4 bytes each: keepalive, deadtime, lease, guard; only the last may be 0
//	176 ..  node name in printable ASCII without spaces
//	..  ..  echoes, 29 bytes each:
//	          0  8  node heard, not zero
//	          8  8  its incarnation, not zero
//	          16 8  newest sequence number heard from it; 0: none yet
//	          24 4  age: milliseconds since it was last heard
//	          28 1  flags: 0x01 supports, 0x02 dead, 0x04 counts
//
// Body of KindPrepare: reference to the parent (32), ballot (12). Body of KindAccept: reference to the parent (32; of a first table, which has none, to
// itself), ballot (12), reference to
// the table (32). None of them is zero.
//
// Body of KindPart:
//
//	0   16  digest of the table, not zero
//	16  2   index of the part, from 0
//	18  2   number of parts, at most 131 (MaxParts)
//	20  2   length of the data: 1,200 (MaxPart), in the last part at least 1
//	22  ..  data
//
// Body of KindFetch: digest of the table (16, not zero), node that is asked (8, not zero).
//
// Body of KindCommand: target (8, not zero), nonce (8, not zero), verb (1: 1 drain, 2 undrain).
//
// # Tables
//
// The encoding of a table, which its digest is over and which travels in parts:
//
//	0   4   magic "SART"
//	4   1   format version, 1
//	5   1   policy: 1 quorum, 2 available
//	6   1   number of members, 1 to 64
//	7   1   number of dead, 0 to 64
//	8   4   term under which the line was founded, from 1
//	12  8   who founded it, not zero
//	20  4   version, from 1
//	24  16  digest of the parent; zero: it founds a farm
//	40  4   term, not below the line's
//	44  8   master, one of the members
//	52  ..  members, then dead, each in ascending order of node, each node once:
//	          0  8  node, not zero
//	          8  8  its incarnation, not zero; no incarnation is member and dead
//	          16 2  weight
//	          18 1  length of the name: 1 to 63; of the dead 0
//	          19 .. name in printable ASCII without spaces
//	..  ..  share function:
//	          0  4  number of buckets, 1 to 65,536
//	          4  4  seed, not zero
//	          8  2  number of virtuals, at most 1,024
//	          10 .. virtuals, IPv4 before IPv6, in ascending order of address, each address once:
//	                  0  1  length of the address, 4 or 16
//	                  1  1  fields: 0x01 source address, 0x02 source port, 0x04 destination address, 0x08 destination port; not zero
//	                  2  1  how many bits of the source address count, from 1
//	                  3  .. address; IPv4-mapped IPv6 addresses are malformed
//	..  ..  owner of each bucket, 1 byte: index of a member, or 255 (nobody)
//	..  ..  next owner of each bucket, in the same way
//
// The digest of a share function is over its part of this encoding. There is one encoding of each table: directors that agree on the
// contents agree on the digest, and what does not encode to the same bytes again is malformed.
package coord
