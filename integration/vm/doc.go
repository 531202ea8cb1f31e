// Package vm runs one program inside a throw-away virtual machine that boots a
// stock Debian kernel.
//
// Most machines on which this project is built have no IPVS in their kernel.
// Package vm makes that irrelevant: it fetches a distribution kernel, QEMU and
// the tools that tests use as oracles by a private apt (no root, nothing of
// the host touched), writes an initramfs around the program, boots it under
// software emulation (or KVM where that works), streams the program's output
// and returns its exit status.
//
// The same binary serves on both sides: on the host it calls [Run], in the
// guest it is /init and calls [Init].
package vm
