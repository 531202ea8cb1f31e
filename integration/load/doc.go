// Package load is the traffic of the lab: servers that send pseudo-random
// content at a given pace, and fleets of clients that check every byte.
//
// All clients of a fleet are goroutines of one process; only their sockets
// live in the node, because starting a process costs 100 ms in an emulated
// guest.
package load

// Host is where sockets are made; a *farm.Node is one.
type Host interface {
	// Do runs fn in the host's network namespace.
	Do(fn func() error) error
}
