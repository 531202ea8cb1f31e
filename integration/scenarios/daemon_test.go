package scenarios

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/lib/ipvs"
)

const (
	keyFile       = "/etc/saru/keys"
	controlSocket = "/run/saru/syncd.sock"
	// readyLimit bounds what a daemon does when it starts, and what a record
	// needs to get anywhere. Both take a fraction of it.
	readyLimit = 30 * time.Second
)

// genkey returns the text of a new key file.
func genkey(t testing.TB, d *farm.Node) string {
	t.Helper()
	keys, err := d.Run("saructl", "genkey")
	must(t, err)
	return keys
}

// daemon is a syncd that runs on a director.
type daemon struct {
	*farm.Process
	node *farm.Node
}

// syncdArgs are the options that every scenario needs; further ones may follow
// and win.
func syncdArgs(d *farm.Node) []string {
	return []string{"--node", d.Name, "--interface", string(farm.Sync), "--key_file", keyFile, "--log_facility", "-", "--control", controlSocket}
}

// launchSyncd starts the real syncd on a director and does not wait. With no
// keys it uses the key file that is there.
func launchSyncd(t testing.TB, d *farm.Node, keys string, args ...string) *daemon {
	t.Helper()
	if keys != "" {
		must(t, d.WriteFile(keyFile, []byte(keys), 0o600))
	}
	must(t, d.WriteFile("/run/saru/.keep", nil, 0o600))
	p, err := d.Start("syncd", append(syncdArgs(d), args...)...)
	must(t, err)
	return &daemon{Process: p, node: d}
}

// startSyncd starts the real syncd on a director and waits until it is synced.
func startSyncd(t testing.TB, d *farm.Node, keys string, args ...string) *daemon {
	t.Helper()
	s := launchSyncd(t, d, keys, args...)
	s.waitSynced(t)
	return s
}

// startSyncds starts one on each director with a common key, at the same time,
// and waits until all are synced and have admitted each other.
func startSyncds(t testing.TB, directors []*farm.Node, args ...string) []*daemon {
	t.Helper()
	keys := genkey(t, directors[0])
	var all []*daemon
	var names []string
	for _, d := range directors {
		all = append(all, launchSyncd(t, d, keys, args...))
		names = append(names, d.Name)
	}
	for _, s := range all {
		s.waitSynced(t)
		s.waitPeers(t, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == s.node.Name })...)
	}
	return all
}

// tryStatus asks by saructl.
func (s *daemon) tryStatus() (st control.SyncStatus, err error) {
	out, err := s.node.Run("saructl", "sync", "status", "--json", "--control", controlSocket)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("saructl sync status --json says %q: %w", out, err)
	}
	return st, nil
}

// status asks by saructl, which must succeed.
func (s *daemon) status(t testing.TB) control.SyncStatus {
	t.Helper()
	st, err := s.tryStatus()
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Output())
	}
	return st
}

// waitStatus polls until check returns "".
func (s *daemon) waitStatus(t testing.TB, check func(control.SyncStatus) string) control.SyncStatus {
	t.Helper()
	var st control.SyncStatus
	eventually(t, readyLimit, func() string {
		select {
		case <-s.Done():
			t.Fatalf("syncd on %s ended: %s", s.node.Name, s.Output())
		default:
		}
		var err error
		if st, err = s.tryStatus(); err != nil {
			return err.Error()
		}
		if why := check(st); why != "" {
			return fmt.Sprintf("%s: %s\n%+v\n%s", s.node.Name, why, st, s.Output())
		}
		return ""
	})
	return st
}

func (s *daemon) waitSynced(t testing.TB) {
	t.Helper()
	s.waitStatus(t, func(st control.SyncStatus) string {
		if !st.Synced {
			return "not synced"
		}
		return ""
	})
}

// waitPeers waits until the daemon has admitted exactly these peers, none of
// them silent for long.
func (s *daemon) waitPeers(t testing.TB, names ...string) control.SyncStatus {
	t.Helper()
	return s.waitStatus(t, func(st control.SyncStatus) string {
		var alive []string
		for _, p := range st.Peers {
			if p.LastHeardMS < 1000 {
				alive = append(alive, p.Node)
			}
		}
		slices.Sort(alive)
		slices.Sort(names)
		if !slices.Equal(alive, names) {
			return fmt.Sprintf("peers %v, want %v", alive, names)
		}
		return ""
	})
}

// connections is what `saructl sync connections --json` lists.
func (s *daemon) connections(t testing.TB, args ...string) []control.Connection {
	t.Helper()
	out, err := s.node.Run("saructl", append([]string{"sync", "connections", "--json", "--control", controlSocket}, args...)...)
	must(t, err)
	var all []control.Connection
	for line := range strings.Lines(out) {
		var c control.Connection
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("saructl sync connections --json says %q: %v", line, err)
		}
		all = append(all, c)
	}
	return all
}

// stopSyncd ends a daemon as an init system does; it must leave in order.
func (s *daemon) stopSyncd(t testing.TB) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatalf("stop syncd on %s: %v\n%s", s.node.Name, err, s.Output())
	}
}

// kernelConns is the director's connection table, without the tick's own. It is
// no snapshot: while the kernel works, an entry may be missed, so whoever misses
// one looks again. Those that are listed twice are left out here.
func kernelConns(t testing.TB, d *farm.Node) []ipvs.ProcConn {
	t.Helper()
	proc, err := d.Proc()
	must(t, err)
	var all []ipvs.ProcConn
	type key struct {
		protocol        uint8
		client, virtual netip.AddrPort
		template        bool
	}
	seen := map[key]bool{}
	for c, err := range ipvs.ReadConns(proc) {
		must(t, err)
		if k := (key{c.Protocol, c.Client, c.Virtual, c.Template}); !c.Virtual.Addr().IsLinkLocalUnicast() && !seen[k] {
			seen[k] = true
			all = append(all, c)
		}
	}
	return all
}
