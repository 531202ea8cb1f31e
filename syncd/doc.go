// Package syncd is the connection mirror as a daemon: its options, its process, its status. What it decides stands in package engine,
// how it reaches the kernel in package tap, what it remembers in package table.
package syncd
