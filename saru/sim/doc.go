// Package sim runs coordinators (package core) in a world of events: directed links that lose, double, delay and break; clocks of different rates; processes that are
// paused, killed and started again; kernels that commit late. It keeps account of which kernel would accept each bucket, from the open set and the lease that the
// kernel has, and finds every moment at which two would, or at which one follows another in less than the guard time.
//
// The model of the kernel and of the worker that talks to it is that of netfilter/share and of package saru: see kernel.go. Everything random comes from one seed.
package sim
