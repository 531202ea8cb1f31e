// Package mcast sends and receives multicast datagrams on several interfaces at once, IPv4 or IPv6, many datagrams a
// system call.
//
// Each interface is a Link with two sockets:
//
//   - one that receives, bound to the interface and to group:port and to nothing else, so that another group, another
//     interface or a unicast datagram never mixes in. It shares its address (SO_REUSEADDR): the kernel's own IPVS sync
//     threads and other programs on the same group go on working, and their datagrams are received as well;
//   - one that sends, bound to the interface and to its address, so that the source address does not change with
//     whatever else gets configured on the host.
//
// Datagrams leave with TTL 1 by default and are not looped back to the own host.
package mcast
