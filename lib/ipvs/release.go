package ipvs

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KernelRelease returns the running kernel's release, as uname -r prints it.
func KernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// ProcLinear reports whether a kernel of this release reads its list of connections in time proportional to their
// number: from 6.14 on ("ipvs: speed up reads from ip_vs_conn proc file", 178883fd039d). Before, each read of 4 KiB starts over
// at the first connection. What a distribution has taken back into an older kernel does not show in its release: such a
// kernel counts as an old one, like one whose release cannot be understood.
func ProcLinear(release string) bool {
	major, rest, ok := strings.Cut(release, ".")
	if !ok {
		return false
	}
	if end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		rest = rest[:end]
	}
	a, err := strconv.ParseUint(major, 10, 16)
	if err != nil {
		return false
	}
	b, err := strconv.ParseUint(rest, 10, 16)
	if err != nil {
		return false
	}
	return a > 6 || a == 6 && b >= 14
}
