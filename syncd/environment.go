package syncd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"saru/lib/logging"
	"saru/lib/seal"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// keyRing is what --key_file, --insecure and --auth come to.
type keyRing struct {
	ring *seal.Ring // nil with --insecure
	auth engine.Auth
}

func (k keyRing) signer() uint8 {
	if k.ring == nil || k.auth == engine.ReceiveOnly {
		return 0
	}
	return k.ring.Signer()
}

func (o *Options) loadKeys() (keyRing, error) {
	k := keyRing{auth: map[string]engine.Auth{
		AuthEnforce: engine.Enforce, AuthPermissive: engine.Permissive, AuthReceiveOnly: engine.ReceiveOnly,
	}[o.Auth]}
	if o.Insecure {
		return k, nil
	}
	keys, err := seal.ReadFile(o.KeyFile)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return k, fmt.Errorf("--key_file %s does not exist: make one with `saructl genkey`, copy it to every director, or use --insecure", o.KeyFile)
		}
		return k, fmt.Errorf("--key_file: %w", err)
	}
	if k.ring, err = seal.NewRing(keys, "syncd", o.Group.String()); err != nil {
		return k, fmt.Errorf("--key_file %s: %w", o.KeyFile, err)
	}
	return k, nil
}

// checkEnvironment looks at interfaces and privileges.
func (o *Options) checkEnvironment() error {
	for _, name := range o.Interfaces {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	return checkPrivileges()
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

// checkPrivileges asks for CAP_NET_ADMIN, without which neither the TUN device nor netlink works.
func checkPrivileges() error {
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
	return fmt.Errorf("run it as root: it needs the capability CAP_NET_ADMIN")
}

// check is --check: it prints what is missing and changes nothing.
func check(o Options, stdout, stderr io.Writer) int {
	var findings []error
	note := func(err error) {
		if err != nil {
			findings = append(findings, err)
		}
	}
	note(logging.CheckFacility(o.LogFacility))
	_, err := o.loadKeys()
	note(err)
	for _, name := range o.Interfaces {
		if err := checkInterface(name); err != nil {
			note(err)
			continue
		}
		note(interfaceUp(name))
	}
	if err := checkPrivileges(); err != nil {
		note(err)
	} else {
		cfg := o.tapConfig(slog.New(slog.DiscardHandler))
		for _, p := range tap.Check(cfg) {
			note(p.Err)
		}
	}
	if o.Insecure {
		fmt.Fprintln(stdout, "warning: --insecure: whoever can send on the segment can create, redirect and end every connection")
	}
	for _, err := range findings {
		fmt.Fprintf(stdout, "%s\n", oneLine(err))
	}
	if len(findings) > 0 {
		fmt.Fprintf(stderr, "syncd: --check: findings: %d\n", len(findings))
		return exitRefused
	}
	fmt.Fprintln(stdout, "syncd: configuration and kernel are good")
	return exitGood
}

func interfaceUp(name string) error {
	ifi, err := net.InterfaceByName(name)
	if err == nil && ifi.Flags&net.FlagUp == 0 {
		return fmt.Errorf("--interface %s: it is down (ip link set %s up)", name, name)
	}
	return nil
}

// needsRestart names the options that differ from those of the running daemon and that a reload does not change.
func (o Options) needsRestart(running Options) []string {
	var out []string
	differ := func(name string, same bool) {
		if !same {
			out = append(out, name)
		}
	}
	differ("node", o.Node == running.Node)
	differ("interface", slices.Equal(o.Interfaces, running.Interfaces))
	differ("group", o.Group == running.Group)
	differ("control", o.Control == running.Control)
	differ("metrics", o.Metrics == running.Metrics)
	differ("tap", o.Tap == running.Tap)
	differ("tap_address", o.TapAddress == running.TapAddress)
	differ("sysctl", o.Sysctl == running.Sysctl)
	differ("syncid", o.SyncID == running.SyncID)
	differ("mirror", o.Mirror == running.Mirror)
	differ("mirror_service", slices.Equal(o.MirrorServices, running.MirrorServices))
	differ("debug", o.Debug == running.Debug)
	differ("log_facility", o.LogFacility == running.LogFacility)
	return out
}
