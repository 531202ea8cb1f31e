package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"saru/integration/farm"
)

// mirror is what keeps connections known on both directors.
type mirror interface {
	name() string
	// about says how it is set up, one setting a line.
	about() []string
	// must tells that no download may be cut.
	must() bool
	// start sets a director up that has just been switched on and has its
	// services; active tells that it has the VIP. It returns when the
	// director is ready to be second, as far as the mirror can tell.
	start(d *farm.Node, active bool) error
	// promote is called when the director has taken the VIP over.
	promote(d *farm.Node) error
}

func newMirror(name string) (mirror, error) {
	switch name {
	case "syncd":
		return &syncdMirror{}, nil
	case "kernel-defaults":
		return &kernelMirror{title: "kernel, defaults"}, nil
	case "kernel-tuned":
		return &kernelMirror{title: "kernel, tuned", sysctls: [][2]string{
			{"net/ipv4/vs/sync_threshold", "0 0"},
			{"net/ipv4/vs/sync_refresh_period", "10"},
		}}, nil
	}
	return nil, fmt.Errorf("--mirror %q: syncd, kernel-defaults or kernel-tuned", name)
}

// kernelMirror is the kernel's own: the director with the VIP is master, the
// other backup, and roles change at take-over as keepalived changes them.
type kernelMirror struct {
	title   string
	sysctls [][2]string
	found   []string // what the sysctls are
}

func (k *kernelMirror) name() string { return k.title }
func (k *kernelMirror) must() bool   { return false }

func (k *kernelMirror) about() []string {
	return append([]string{"ipvsadm --start-daemon master|backup --mcast-interface sync; the roles change with the VIP"}, k.found...)
}

func (k *kernelMirror) start(d *farm.Node, active bool) error {
	for _, s := range k.sysctls {
		if err := d.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if k.found == nil {
		for _, name := range []string{"sync_threshold", "sync_refresh_period", "sync_retries", "sync_version"} {
			v, err := d.ReadSysctl("net/ipv4/vs/" + name)
			if err != nil {
				return err
			}
			k.found = append(k.found, fmt.Sprintf("net.ipv4.vs.%s = %s", name, v))
		}
	}
	role := "backup"
	if active {
		role = "master"
	}
	_, err := d.Run("ipvsadm", "--start-daemon", role, "--mcast-interface", string(farm.Sync), "--syncid", "1")
	return err
}

func (k *kernelMirror) promote(d *farm.Node) error {
	if _, err := d.Run("ipvsadm", "--stop-daemon", "backup"); err != nil {
		return err
	}
	_, err := d.Run("ipvsadm", "--start-daemon", "master", "--mcast-interface", string(farm.Sync), "--syncid", "1")
	return err
}

// syncdMirror is this project's: the same daemon on every director, no roles.
type syncdMirror struct {
	keys string
}

const (
	keyFile = "/etc/saru/keys"
	socket  = "/run/saru/syncd.sock"
	// readyLimit bounds the start of syncd, the transfer of the table included.
	readyLimit = 40 * time.Second
	readyPoll  = 300 * time.Millisecond // saructl costs 100 ms in the guest
)

func (s *syncdMirror) name() string { return "syncd" }
func (s *syncdMirror) must() bool   { return true }

func (s *syncdMirror) args(node string) []string {
	return []string{"--node", node, "--interface", string(farm.Sync), "--key_file", keyFile, "--log_facility", "-", "--control", socket}
}

func (s *syncdMirror) about() []string {
	return []string{"on both directors: syncd " + strings.Join(s.args("NAME"), " ")}
}

func (s *syncdMirror) start(d *farm.Node, _ bool) error {
	if s.keys == "" {
		keys, err := d.Run("saructl", "genkey")
		if err != nil {
			return err
		}
		s.keys = keys
	}
	if err := d.WriteFile(keyFile, []byte(s.keys), 0o600); err != nil {
		return err
	}
	if err := d.WriteFile("/run/saru/.keep", nil, 0o600); err != nil {
		return err
	}
	p, err := d.Start("syncd", s.args(d.Name)...)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(readyLimit)
	for {
		var status struct {
			Synced bool `json:"synced"`
		}
		out, err := d.Run("saructl", "sync", "status", "--json", "--control", socket)
		if jsonErr := json.Unmarshal([]byte(out), &status); jsonErr == nil && status.Synced {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("syncd on %s ended: %s", d.Name, p.Output())
		case <-time.After(readyPoll):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("syncd on %s is not synced after %v (%s, %w)\n%s", d.Name, readyLimit, strings.TrimSpace(out), err, p.Output())
		}
	}
}

func (s *syncdMirror) promote(*farm.Node) error { return nil }
