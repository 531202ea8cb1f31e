// Package reconcile compares the kernel's own list of connections with the replica.
//
// What syncd knows of its kernel comes as messages, and those can be lost without a trace on both sides: the kernel drops
// reports when its queue is full, the TUN device when nobody reads it, and the backup thread's socket when more is injected
// than it takes. Somebody may also delete or alter an entry by hand. A Pass reads /proc/net/ip_vs_conn_sync once and says where
// the two differ (Finding) and why they may (Kind). Neither side stands still meanwhile, and the kernel's list is no
// snapshot, so that several passes are put together (Confirmation). Repairs says what is to be done.
//
// Nothing here writes to the kernel or to the replica.
//
// # What is no difference
//
// A connection whose end the kernel reported to nobody, because it only expired, or because only its server's packets
// changed its state. A connection that is being opened: the kernel reports it when it is established. An entry that the kernel
// keeps by its own rules. What was refreshed, or will expire, within a few seconds. When an entry expires, unless the
// kernel would lose it much too soon.
package reconcile
