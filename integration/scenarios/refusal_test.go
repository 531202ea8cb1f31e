package scenarios

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/integration/farm"
)

// keepalivedConf makes keepalived run the kernel's sync daemon.
const keepalivedConf = `global_defs {
    router_id lab
    lvs_sync_daemon sync VI_1 id 9
}
vrrp_instance VI_1 {
    state BACKUP
    interface sync
    virtual_router_id 51
    priority 100
    advert_int 1
    virtual_ipaddress { 10.0.3.200/32 }
}
`

// TestRefusals: beside somebody else's sync daemon, and with backup_only, syncd refuses by one line that says what to do, and changes nothing.
func TestRefusals(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 1, RealServers: 1, Clients: 1, SyncSegment: true})
	d := f.Directors[0]
	must(t, d.WriteFile(keyFile, []byte(genkey(t, d)), 0o600))
	run := func(name string, args ...string) {
		t.Helper()
		_, err := d.Run(name, args...)
		must(t, err)
	}
	var keepalived *farm.Process
	daemonsRunning := func(n int) {
		t.Helper()
		eventually(t, readyLimit, func() string {
			out, err := d.Run("ipvsadm", "-ln", "--daemon")
			must(t, err)
			if strings.Count(out, "sync daemon") < n {
				return fmt.Sprintf("not %d sync daemons:\n%s", n, out)
			}
			return ""
		})
	}
	for _, c := range []struct {
		name       string
		begin, end func()
		says       []string
		args       []string
	}{
		{"master", func() { run("ipvsadm", "--start-daemon", "master", "--mcast-interface", "sync") },
			func() { run("ipvsadm", "--stop-daemon", "master") }, []string{"master on sync", "ipvsadm --stop-daemon master"}, nil},
		{"backup", func() { run("ipvsadm", "--start-daemon", "backup", "--mcast-interface", "sync", "--syncid", "3") },
			func() { run("ipvsadm", "--stop-daemon", "backup") }, []string{"backup on sync", "ipvsadm --stop-daemon backup"}, nil},
		{"backup_only", func() { must(t, d.Sysctl("net/ipv4/vs/backup_only", "1")) },
			func() { must(t, d.Sysctl("net/ipv4/vs/backup_only", "0")) }, []string{"sysctl -w net.ipv4.vs.backup_only=0"}, nil},
		{"backup_only with --sysctl off", func() { must(t, d.Sysctl("net/ipv4/vs/backup_only", "1")) },
			func() { must(t, d.Sysctl("net/ipv4/vs/backup_only", "0")) }, []string{"sysctl -w net.ipv4.vs.backup_only=0"}, []string{"--sysctl", "off"}},
		{"keepalived", func() {
			must(t, d.WriteFile("/etc/keepalived.conf", []byte(keepalivedConf), 0o644))
			var err error
			keepalived, err = d.Start("keepalived", "-n", "-l", "-D", "-P", "-f", "/etc/keepalived.conf")
			must(t, err)
			daemonsRunning(1)
		}, func() { must(t, keepalived.Stop()) }, []string{"on sync with syncid 9", "lvs_sync_daemon", "keepalived.conf"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			clean := state(t, d)
			c.begin()
			before := state(t, d)
			s := launchSyncd(t, d, "", c.args...)
			err := s.Wait()
			if err == nil || s.ExitCode() != 1 || strings.Count(s.Output(), "\n") != 1 {
				t.Errorf("exit %d, want 1 and one line: %v\n%s", s.ExitCode(), err, s.Output())
			}
			for _, want := range c.says {
				if !strings.Contains(s.Output(), want) {
					t.Errorf("it does not say %q:\n%s", want, s.Output())
				}
			}
			t.Log(s.Output())
			check, err := d.Start("syncd", append(append(syncdArgs(d), "--check"), c.args...)...)
			must(t, err)
			if check.Wait() == nil || check.ExitCode() != 1 || !strings.Contains(check.Output(), c.says[0]) {
				t.Errorf("--check: exit %d\n%s", check.ExitCode(), check.Output())
			}
			unchanged(t, d, before, "refusal")
			c.end()
			eventually(t, readyLimit, func() string { return cmp.Diff(clean, state(t, d)) })
		})
	}
	// Nothing was left behind that keeps it from starting now; and nobody can start a sync daemon beside it.
	s := startSyncd(t, d, "")
	if out, err := d.Run("ipvsadm", "--start-daemon", "master", "--mcast-interface", "sync"); err == nil {
		t.Errorf("ipvsadm started a master beside syncd's: %s", out)
	}
	s.stopSyncd(t)
}

// TestKeepalivedComesLater: keepalived with lvs_sync_daemon stops and starts sync daemons with each change of its role. What it stops comes
// back; what it starts in that place ends syncd with a line that says so.
func TestKeepalivedComesLater(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 1, RealServers: 1, Clients: 1, SyncSegment: true})
	d := f.Directors[0]
	must(t, d.WriteFile(keyFile, []byte(genkey(t, d)), 0o600))
	before := state(t, d)
	s := startSyncd(t, d, "")
	must(t, d.WriteFile("/etc/keepalived.conf", []byte(keepalivedConf), 0o644))
	keepalived, err := d.Start("keepalived", "-n", "-l", "-D", "-P", "-f", "/etc/keepalived.conf")
	must(t, err)
	must(t, keepalived.WaitFor("Entering MASTER STATE", readyLimit))
	must(t, keepalived.Stop())
	both := func() string {
		out, err := d.Run("ipvsadm", "-ln", "--daemon")
		must(t, err)
		select {
		case <-s.Done(): // keepalived was quicker and has started one of its own
			return ""
		default:
		}
		if !strings.Contains(out, "master sync daemon (mcast=syncd0") || !strings.Contains(out, "backup sync daemon (mcast=syncd0") {
			return "syncd's threads are not back:\n" + out
		}
		return ""
	}
	eventually(t, readyLimit, both)
	t.Logf("syncd beside keepalived: %s", s.Output())
	select {
	case <-s.Done():
		s = startSyncd(t, d, "")
	default:
	}

	// Between two looks of syncd: when it looks just then, its own thread is back first, so try again.
	eventually(t, readyLimit, func() string {
		out, err := d.Run("sh", "-c", "ipvsadm --stop-daemon master; ipvsadm --start-daemon master --mcast-interface sync --syncid 9")
		if err != nil {
			return out + err.Error()
		}
		return ""
	})
	select {
	case <-s.Done():
	case <-time.After(readyLimit):
		out, err := d.Run("ipvsadm", "-ln", "--daemon")
		t.Fatalf("syncd goes on without its master thread:\n%s%v\n%s", out, err, s.Output())
	}
	if s.ExitCode() != 1 || !strings.Contains(s.Output(), "master on sync with syncid 9") {
		t.Errorf("exit %d, want 1 and a line about the other daemon:\n%s", s.ExitCode(), s.Output())
	}
	_, err = d.Run("ipvsadm", "--stop-daemon", "master") // it was left alone
	must(t, err)
	unchanged(t, d, before, "end beside another's sync daemon")
}

// TestSysctlModes: --sysctl apply, check and off.
func TestSysctlModes(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 1, RealServers: 1, Clients: 1, SyncSegment: true})
	d := f.Directors[0]
	must(t, d.WriteFile(keyFile, []byte(genkey(t, d)), 0o600))
	before := state(t, d)
	needs := map[string]string{}
	const dir = "/proc/sys/net/ipv4/vs/"

	s := startSyncd(t, d, "", "--sysctl", "apply")
	for name, v := range state(t, d) {
		old := before[name]
		if !strings.HasPrefix(name, dir) || v == old {
			continue
		}
		short := strings.TrimPrefix(name, "/proc/sys/")
		needs[short] = strings.Join(strings.Fields(v), " ")
		if !strings.Contains(s.Output(), "sysctl changed name="+short+" old=") {
			t.Errorf("the change of %s is not logged:\n%s", short, s.Output())
		}
	}
	if needs["net/ipv4/vs/sync_threshold"] != "0 0" || needs["net/ipv4/vs/sync_refresh_period"] == "" {
		t.Errorf("apply changed %v", needs)
	}
	s.stopSyncd(t)
	for name := range needs {
		if !strings.Contains(s.Output(), "sysctl restored name="+name) {
			t.Errorf("that %s is restored is not logged:\n%s", name, s.Output())
		}
	}
	unchanged(t, d, before, "apply")

	s = launchSyncd(t, d, "", "--sysctl", "check")
	if err := s.Wait(); err == nil || s.ExitCode() != 1 || strings.Count(s.Output(), "\n") != 1 {
		t.Errorf("--sysctl check: exit %d, want 1 and one line: %v\n%s", s.ExitCode(), err, s.Output())
	}
	for name, v := range needs {
		if !strings.Contains(s.Output(), strings.ReplaceAll(name, "/", ".")) || !strings.Contains(s.Output(), strconv.Quote(v)) {
			t.Errorf("--sysctl check does not list %s = %s: %s", name, v, s.Output())
		}
	}
	unchanged(t, d, before, "refused check")

	s = startSyncd(t, d, "", "--sysctl", "off")
	for name, v := range state(t, d) {
		if strings.HasPrefix(name, dir) && v != before[name] {
			t.Errorf("--sysctl off: %s is %q, was %q", name, v, before[name])
		}
	}
	s.stopSyncd(t)
	unchanged(t, d, before, "off")

	for name, v := range needs {
		must(t, d.Sysctl(name, v))
	}
	before = state(t, d)
	s = startSyncd(t, d, "", "--sysctl", "check")
	s.stopSyncd(t)
	unchanged(t, d, before, "check with good values")
}
