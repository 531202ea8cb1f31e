// Package transfer is the wire format of pulls: how one syncd fetches entries of another one's table over a TCP connection. The
// multicast stream (package mirror) tells what happens; a pull brings what it cannot bring, a whole table or the parts of it that differ.
//
// Both sides say a hello and then exchange frames. All integers are big endian, except that varints are those of encoding/binary.
//
// # Hello
//
//	off len
//	0   4   magic "SARJ"
//	4   1   format version, 1
//	5   1   key id of the sender's frames; 0: they are unsigned
//	6   1   role: 1 client, which pulls; 2 teacher
//	7   1   zero
//	8   8   node: the first 8 bytes of the SHA-256 of its name
//	16  8   incarnation, not 0
//	24  8   group: the first 8 bytes of the SHA-256 of protocol and multicast group
//	32  32  nonce: random, drawn for this connection
//
// The client speaks first. The teacher answers with its hello, and with nothing else before the client's first frame is authentic.
//
// # Frame
//
//	off len
//	0   4   length of the payload, at most 65536
//	4   1   type (Type)
//	5   3   zero
//	8   ..  payload
//	..  16  tag: HMAC-SHA256, truncated to 128 bits, over the number of the frame in its direction (8 bytes, from 0), header
//	        and payload; zero when the sender is unsigned
//
// # Payloads
//
// Request, the client's first frame:
//
//	0   1   purpose (Purpose)
//	1   3   zero
//	4   8   node that the client means
//	12  8   its incarnation
//
// Start, the teacher's answer:
//
//	0   8   entries of its table
//	8   1   flags: 0x01 the table is complete as far as the teacher knows
//	9   3   zero
//
// Digests, a page that the client asks about:
//
//	0   8   cut: which entries count, by their clocks
//	8   ..  1 to 128 digests, 14 bytes each, in ascending order of buckets:
//	          0  2  bucket
//	          2  4  number of entries
//	          6  8  digest
//
// Differ, the teacher's answer: the teacher's digests of those buckets of the page that differ, 14 bytes each, in the same order.
//
// Want: the buckets that the client wants, 2 bytes each, ascending; perhaps none.
//
// Origins: directors that entries come from, in front of the first entry that needs them, each:
//
//	0   2   index: 0, 1, 2 and so on over the whole session
//	2   8   node
//	10  1   length of the name
//	11  ..  name, printable ASCII, at most 63 bytes; empty: not known
//
// Entries:
//
//	0   8   base: a clock near those of the entries
//	8   ..  sections in ascending order of buckets, each:
//	          0  2  bucket
//	          2  2  number of entries, at least 1
//	          4  .. entries, each:
//	                  uvarint  index of the origin
//	                  uvarint  grant: term
//	                  uvarint  grant: version
//	                  varint   clock less base, modulo 2^64
//	                  uvarint  age: seconds since it was last refreshed
//	                  ..       record of version 1 as in a sync message, unaligned
//
// A connection of IPv4 takes about 46 bytes.
//
// Finish, the teacher's last frame:
//
//	0   8   entries sent
//	8   1   flags: 0x01 the teacher's table was complete at the beginning and at the end
//	9   3   zero
//
// Error, the teacher's last frame instead:
//
//	0   2   code (Code)
//	2   2   zero
//
// # Order of frames
//
//	client   Request   [ Digests ]...   Want          (no Want and no Digests in a join)
//	teacher  Start     [ Differ  ]...   [ Origins | Entries ]...  Finish
//
// Every Digests frame is answered before the next one is sent.
//
// Nothing here allocates, except that a caller's buffer grows when it is too small.
package transfer
