//go:build race

package mcast

// raceEnabled excuses allocations: sync.Pool, which x/net uses, throws things away at random under the race detector.
const raceEnabled = true
