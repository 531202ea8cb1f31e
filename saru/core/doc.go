// Package core is the coordinator of a director: who is a member, which table counts, what this director may hold, and until when. It is a step function:
// it is told what was heard, what time it is and what the kernel has done, and says what to send and what the filter is to let through. It has no sockets, no
// clock and no goroutines, so that the simulation (package sim) and tests drive it as the daemon does.
//
// docs/SAFETY.md is the argument that it follows; the names of its rules stand in the comments here.
//
//	core.go     configuration, inputs, outputs
//	view.go     what others have said of themselves and of each other
//	beat.go     what this director says
//	lease.go    hold: until when the lease lasts
//	ballot.go   the successor of a table: acceptor and proposer
//	tables.go   what happens when a table counts: not-before times, releases
//	master.go   which table there should be
//	lines.go    joining, foreign lines, minorities
//	found.go    the first table
//	holdings.go what is open
package core
