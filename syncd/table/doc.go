// Package table is a director's replica of the farm's connections.
//
// It is built for a million entries and more: entries lie in chunks without any pointer, so that the garbage collector does not
// walk them; an index of extendible hashing grows by 2 KiB at a time, so that no update ever waits for a rehash; a wheel of
// one-second slots finds what expires; and a list for each bucket finds what has to be compared with other directors. An IPv4 connection takes
// 72 bytes and 9 to 19 of the index, an IPv6 connection 112 and 9 to 19.
//
// The key is what the kernel looks connections up by (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_in_get and ip_vs_ct_in_get):
// family, protocol, client and virtual endpoint, and whether it is a template.
//
// # Order
//
// Each entry has an origin, the director whose kernel it comes from, and a Stamp. A later stamp replaces an earlier one, wherever
// and in whatever order the two arrive; ties are broken by the origin, so that all directors agree.
//
// # Digests
//
// Directors compare their replicas bucket by bucket, by sums of strong hashes of the entries. Which entries count is decided by their stamps,
// so that timers, which no two directors run alike, make no difference; for the same reason an entry never expires before its time, though
// seconds are rounded each time it is taught.
package table
