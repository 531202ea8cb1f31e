package vm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPid returns si_pid of a SIGCHLD's siginfo. unix.Siginfo leaves the
// union as bytes; on 64-bit Linux it starts at offset 16 with si_pid (int).
func siginfoPid(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
