package program

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"saru/lib/seal"
)

// LoadKeys reads a key file and derives the keys of a protocol ("syncd", "saru") on a group.
func LoadKeys(file, protocol string, group netip.AddrPort) (*seal.Ring, error) {
	keys, err := seal.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("--key_file %s does not exist: make one with `saructl genkey`, copy it to every director, or use --insecure", file)
	}
	if err != nil {
		return nil, fmt.Errorf("--key_file: %w", err)
	}
	ring, err := seal.NewRing(keys, protocol, group.String())
	if err != nil {
		return nil, fmt.Errorf("--key_file %s: %w", file, err)
	}
	return ring, nil
}

// CheckMachine looks at interfaces and privileges, and stops at the first thing that is missing.
func CheckMachine(interfaces []string) error {
	for _, name := range interfaces {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	return CheckPrivileges()
}

// InterfaceFindings are what --check finds at the interfaces, links that are down included.
func InterfaceFindings(interfaces []string) []error {
	var findings []error
	for _, name := range interfaces {
		err := checkInterface(name)
		if err == nil {
			err = interfaceUp(name)
		}
		if err != nil {
			findings = append(findings, err)
		}
	}
	return findings
}

func checkInterface(name string) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("--interface %s: there is no such interface", name)
	}
	if ifi.Flags&net.FlagMulticast == 0 {
		return fmt.Errorf("--interface %s: it has no multicast (ip link set %s multicast on)", name, name)
	}
	return nil
}

func interfaceUp(name string) error {
	ifi, err := net.InterfaceByName(name)
	if err == nil && ifi.Flags&net.FlagUp == 0 {
		return fmt.Errorf("--interface %s: it is down (ip link set %s up)", name, name)
	}
	return nil
}

// CheckPrivileges asks for CAP_NET_ADMIN, without which neither TUN devices nor netlink work.
func CheckPrivileges() error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err == nil && caps&(1<<unix.CAP_NET_ADMIN) != 0 {
				return nil
			}
		}
	}
	return errors.New("run it as root: it needs the capability CAP_NET_ADMIN")
}
