// Package guard closes syncd's tap (the TUN device to the kernel's IPVS sync threads) to everybody else, by one nftables
// table of its own.
//
// Without it any local user can put connections into the kernel, redirect or end them, by a UDP datagram to the group on
// the tap: the kernel loops it back to its backup thread, and syncd would take it for a message of the master thread. The
// rules are (see Config for the names):
//
//   - output: on the tap only packets without a socket, which are the kernel's own and those that IPVS forwards, and those
//     of root. Kernel sockets have no file, so that "meta skuid" does not match them. The tap's local address is closed
//     to users other than root as well: the tick's virtual service listens there;
//   - input: from the tap only what syncd sends: datagrams to the group, and TCP to the tick's service, both from the
//     peer's address;
//   - forward: nothing, neither into the tap nor out of it;
//   - prerouting: nothing from outside (the network, containers) to either address of the tap;
//   - no connection tracking for what passes the tap.
//
// What it cannot do:
//
//   - keep out root: whoever has CAP_NET_ADMIN can change the rules, write to the device or forge records otherwise;
//   - make somebody else's firewall let the tap's packets in. An accept here ends this table's judgement only; a table with
//     a default-drop input policy needs a rule of its own, such as "iifname syncd0 accept". syncd finds that out by a
//     probe;
//   - keep its counters, or everything out, while it replaces a table that is not as it should be: a transaction is not atomic for a packet in the middle of it (see package share).
//
// The rules name the device, so that they hold before it exists and after it was made anew. Install them first.
package guard
