// Package farm turns a description of a load-balancing farm into network
// namespaces on the running kernel.
//
// Each node (director, real server, client) is an anchor process in its own
// network, mount, UTS and PID namespaces, with its own /run, /etc, /proc and
// host name. Killing the anchor is a power loss: the kernel kills every
// process of the node and takes the network namespace down. Nodes hang on
// bridges that flood every frame to every port, as a segment does on which
// directors share a MAC address.
//
// A program that uses this package calls [Init] first thing in main or
// TestMain: anchors are started from the program's own binary.
//
// It needs root, and IPVS where services are wanted: run it by labrun.
package farm
