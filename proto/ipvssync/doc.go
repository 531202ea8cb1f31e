// Package ipvssync encodes and decodes the messages in which Linux IPVS directors tell each other about their
// connections: versions 0 and 1, IPv4 and IPv6, with every option.
//
// The reference is the kernel (net/netfilter/ipvs/ip_vs_sync.c). What it accepts is accepted here, what it drops for
// its form is an error here, and what it encodes is encoded here to the same bytes. Rules that depend on a kernel's
// configuration (the syncid that its backup thread waits for, registered protocols, states, loaded persistence
// engines) are the caller's matter.
//
// A message is the whole payload of a UDP datagram, by default to 224.0.0.81:8848. All integers are big endian, except
// where said.
//
// # Message header, version 1
//
//	off len
//	0   1   0, so that readers of version 0 see a message without records
//	1   1   syncid
//	2   2   size of the whole message, exactly
//	4   1   number of records
//	5   1   version, 1
//	6   2   0
//	8   ..  records, each at a multiple of 4 from the start of the message
//
// # Record, version 1
//
//	IPv4 IPv6
//	off  off  len
//	0    0    1     type: bit 0 set for IPv6; otherwise 0 for IPv4 (other even values are refused)
//	1    1    1     protocol (IPPROTO_*)
//	2    2    2     high 4 bits: version of the record, 0; low 12 bits: length of the record without padding
//	4    4    4     flags
//	8    8    2     state
//	10   10   2     client port
//	12   12   2     virtual port
//	14   14   2     port of the real server
//	16   16   4     fwmark
//	20   20   4     timeout of the current state in full, seconds
//	24   24   4/16  client address
//	28   40   4/16  virtual address
//	32   56   4/16  address of the real server
//	36   72   ..    options
//
// The sender puts 0 to 3 zero bytes in front of a record to align it. They count in the size of the message, not in the length of a
// record; after the last record there are none.
//
// # Options, version 1
//
//	off len
//	0   1   type; with bit 0x40 the option may be ignored by those who do not know it
//	1   1   length of the data, never 0
//	2   ..  data; the next option follows at once, unaligned
//
//	type 1  24 bytes     sequence deltas: In then Out, each initial, delta, previous delta (4 bytes each)
//	type 2  1 to 255     data of the persistence engine
//	type 3  1 to 16      name of the persistence engine, without a final zero
//
// A known type counts with bit 0x40 too, and no more than once. An unknown type without the bit makes the kernel leave out that record alone.
//
// # Message header, version 0
//
//	off len
//	0   1   number of records
//	1   1   syncid
//	2   2   size of the whole message, exactly
//	4   ..  records, back to back
//
// Whatever does not have the three constants of a version 1 header is version 0. A future version 2 is therefore
// a message of version 0 without records, which is what its leading zero byte is for.
//
// # Record, version 0
//
//	off len
//	0   1   0
//	1   1   protocol
//	2   2   client port
//	4   2   virtual port
//	6   2   port of the real server
//	8   4   client address
//	12  4   virtual address
//	16  4   address of the real server
//	20  2   flags, the low 16 bits
//	22  2   state
//	24  24  only with a flag of FlagSeqMask: In and Out as above, in the SENDER'S byte order
//
// Version 0 has no IPv6, timeouts, fwmarks and persistence engines.
//
// # After the last record
//
// Bytes after the last record are counted in the size, and no kernel looks at them. [Message.End] tells where they begin. A message of version 1 with zero
// records is valid. Both together leave room for other protocols (package mirror), which stock kernels and Wireshark ignore.
//
// # Errors
//
// Errors are the sentinels of this package, never wrapped, so that hostile input costs no allocation. A damaged record ends its message, as in the
// kernel: the records before it count, those after it do not. [Skipped] tells the errors that cost one record only.
//
// Nothing here allocates, except that a caller's buffer grows when it is too small.
package ipvssync
