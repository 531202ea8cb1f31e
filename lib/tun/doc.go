// Package tun opens the persistent TUN device over which syncd exchanges messages with the kernel's IPVS sync threads.
//
// The device carries plain IP packets (IFF_TUN, IFF_NO_PI): what the kernel sends on the interface is read from the
// descriptor, what is written to the descriptor arrives at the kernel as if it came in from that interface. It has one
// point-to-point address pair: Local is the kernel's end, Peer is the end of the process. A packet that is written should
// carry Peer as its source: the kernel takes that also with rp_filter=1, while a local source is dropped as martian.
//
// The device is persistent (TUNSETPERSIST): it outlives the process, SIGKILL included, so that the kernel's threads, which
// are bound to its interface index, go on working when the next process attaches to it. It becomes persistent as the last
// step of Open, so that a process that dies half-way leaves nothing behind.
//
// The queue from the kernel to the process has QueueLen packets; what comes when it is full is dropped without a trace but
// the interface's tx_dropped (drivers/net/tun.c, tun_net_xmit). While nobody is attached, everything is dropped.
package tun
