// Package share is the filter by which a director accepts only the buckets that it owns, for as long as its lease lasts: one nftables table of
// family inet (DESIGN 4.3 and 4.4, docs/SAFETY.md section 3).
//
// Every packet to a virtual address goes to the chain of that address:
//
//   - TCP, UDP and SCTP: the bucket of the fields of the address's sense, as package flow tells it. It must be in the set "owned", and the lease
//     must live, or the packet is dropped and counted. Ports of services that are balanced by source (persistent ones, FTP, IKE) have a bucket of the
//     source address alone, with a mask of their own;
//   - ICMP and ICMPv6 errors: the bucket of the connection that they are about, from the header that they carry. If that header has options, is a
//     later fragment or of another protocol, the fields that follow it are not where they are looked for: then the bucket of its destination
//     address (the client, which is at a fixed place) counts. That is one bucket on every director, so that there is one owner, and the
//     right one where the sense is the source address;
//   - IPv6 neighbour discovery passes, as ARP does, which is no IP: all directors answer with the same shared address;
//   - everything else (echo requests, AH, ESP, other protocols): the bucket of the source address.
//
// An address is closed until it is Open and a lease was granted. Packets over loopback and those that this host sends are not looked at.
//
// The table stands at prerouting, priority raw (-300): after defragmentation (-400), so that a datagram's fragments follow its ports, and before connection
// tracking (-200), which then never sees a foreign packet, and IPVS (from 98 at input on). Nothing but connection tracking and tproxy switches
// the kernel's IPv4 defragmentation at prerouting on; IPVS does it for IPv6 only, and for IPv4 relies on that of local delivery, which is later. So the table
// has a chain "defragment" that nothing ever calls, whose one rule has a tproxy expression: the kernel then defragments for as long as the rule is
// there, without connection tracking. Where the kernel has no nft_tproxy, fragmented datagrams are dropped at every director (their later fragments have no ports), and
// Check says so.
//
// The lease is an element with a timeout for each of the two families, looked up by "meta nfproto": the key is a constant that needs no packet data, is as
// short as a key can be, and nft lists it as "ipv4, ipv6". (By address it would be an element for each virtual address, all to be renewed each time.)
//
// A packet for a service that IPVS did not take is dropped at input, priority 150, behind IPVS: the client repeats it, instead of getting a reset from this host.
//
// With Inside, packets of LVS-NAT real servers are shared as well: replies by the mirrored fields, errors by the header that they carry, and connections that the servers
// open (Masquerade) by their own address and port, which are then masqueraded.
//
// With MAC, frames that reach the shared address by chance are dropped or forwarded by one director (see chance).
//
// The table is changed so that no packet in the middle of a change is let through (see replace), and replaced as a whole behind another one (see covered).
//
// What it costs (BenchmarkFilter, from the driver on in batches; BenchmarkFilterByVeth, one by one with what sending costs): a foreign packet costs up to 100 ns more than without any rule, since it is dropped before
// it is routed; with xt_cluster 100 to 300 ns more. Over a packet that is dropped without being looked at, the filter costs 100 to 260 ns, half of what xt_cluster does, which needs connection tracking.
// A quarter of it was the aim. Only a bare rule has that, over the veth and with IPv4: for one address, without lease, loopback, named counters and other protocols than UDP. Two look-ups in hash tables, an
// address and a hash over it are most of the price. A key of 2 bytes, a verdict map and the hook at ingress gain a few per cent of that each; ingress sees fragments, which would have to be judged here a second time.
//
// From Linux 6.9 on the table has the flags owner and persist: nobody but this process can change it, "nft flush ruleset" passes it by, and it stays, closed by
// its timeout, when the process dies. Before that, Watch mends it.
package share
