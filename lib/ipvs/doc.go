// Package ipvs talks to the kernel's IPVS: virtual services and their destinations, the sync threads, and the list of
// connections in /proc.
//
// Everything happens in the network namespace of the thread that opens a connection; IPVS is separate in each. Writing
// needs CAP_NET_ADMIN in the initial user namespace.
//
// Services are written by github.com/moby/ipvs and read by generic netlink of our own. Version 1.1.0 of moby/ipvs
//   - reports success when the kernel has no IPVS: it is only touched after Probe has found the kernel's family;
//   - repeats a request that gets no answer for ever: each call has a deadline here;
//   - logs to standard error, by logrus: that is silenced;
//   - leaves out the persistence engine and the number of persistent connections when it lists.
//
// Package ipvstest has a kernel in memory that implements Services and Daemons.
package ipvs
