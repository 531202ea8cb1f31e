// Package saru is the coordinator as a daemon: its options, its process, its status. What it decides stands in package core, what the kernel lets through
// in package share, who gets which bucket in package alloc.
package saru
