// Package segment is an Ethernet segment in user space, and a bad one if asked: it loses, doubles and reorders frames.
//
// It is for tests only. What hangs on it are TAP devices in network namespaces of package nstest. A segment is a hub: each frame goes
// to all other ports. TAP devices offer no offloads unless asked to, so every frame is a whole one with its checksum, as on a wire.
//
// What happens to a frame is drawn for each receiver by itself, as receivers lose by themselves (a full buffer, a switch's queue). The
// draws follow from the seed and from the order of frames that a port sends to another, not from how goroutines run.
package segment
