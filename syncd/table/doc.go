// Package table is a director's replica of the farm's connections.
//
// It is built for a million entries and more: entries lie in chunks without any pointer, so that the garbage collector does not
// walk them; an index of linear hashing grows by one slot at a time, so that no update ever waits for a rehash; and a wheel of
// one-second slots finds what expires. An IPv4 connection takes 72 bytes and about 4 of the index.
//
// The key is what the kernel looks connections up by (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_in_get and ip_vs_ct_in_get):
// family, protocol, client and virtual endpoint, and whether it is a template.
//
// # Order
//
// Each entry has an origin, the director whose kernel it comes from, and a Stamp. A later stamp replaces an earlier one, wherever
// and in whatever order the two arrive; ties are broken by the origin, so that all directors agree.
package table
