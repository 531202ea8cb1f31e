// Package engine decides what syncd does: which connections of this director's kernel go to the peers, and which of the peers'
// go into this director's kernel. It is a step function. Messages of the kernel's tap, datagrams of the network and ticks of a clock go
// in; datagrams to send and records to inject come out, through Output. It has neither sockets nor goroutines nor a clock of its own.
//
//	kernel's messages  -> FromTap      -> Output.Send     live updates of local connections
//	datagrams of peers -> FromNetwork  -> Output.Inject   what is newer than the replica
//	time               -> Tick         -> both            heartbeats, requests for what is missing, expiry
//	time               -> NextPull     -> a session       that the daemon holds: a join, or an audit
//	entries of a pull  -> Learned      -> Output.Inject   what is newer than the replica
//	the kernel's word  -> Injected     -> Output.Send     confirmations
//
// The rules by which updates win, and the states of a join, are tables in docs/PROTOCOL.md.
package engine
