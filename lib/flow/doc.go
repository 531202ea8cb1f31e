// Package flow tells which bucket a flow belongs to, bit for bit like the kernel's nftables expression
//
//	jhash ip saddr . th sport mod 4096 seed 0x73617275
//
// What the kernel hashes are the registers into which nft loads the fields, one behind the other in the order of the expression, each
// padded with zeros to a multiple of 4 bytes. Only a field that stands alone is hashed in its own length: a lone port is 2 bytes (nft
// gives the length of the expression, netlink_linearize.c; a rule made by other means must do the same). A mask is applied to the address
// before it is hashed (nft: bitwise). "mod" is no remainder but the kernel's reciprocal_scale, (hash * buckets) >> 32.
//
// The kernel's jhash (include/linux/jhash.h) reads whole blocks of 12 bytes as words of the machine's own byte order, and so does this
// package. Directors of different byte orders would disagree about every flow of more than 12 bytes, that is, about IPv6: a farm must not mix
// them.
package flow
