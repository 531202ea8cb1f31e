package scenarios

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"saru/integration/farm"
)

const initScript = "/etc/init.d/syncd"

// service runs the installed init script by a shell and returns what it says on both outputs.
func service(t *testing.T, d *farm.Node, shell, action string, exit int) string {
	t.Helper()
	p, err := d.Start("sh", "-c", "exec "+shell+" "+initScript+" "+action)
	must(t, err)
	err = p.Wait()
	if x, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ok && x.ExitCode() < 0 {
		t.Fatalf("%s %s: %v\n%s", shell, action, err, p.Output())
	}
	if p.ExitCode() != exit {
		t.Errorf("%s %s: exit %d, want %d\n%s", shell, action, p.ExitCode(), exit, p.Output())
	}
	return p.Output()
}

// TestPackaging: what `make install` puts into place runs a director's day, by the init script and the installed configuration with
// nothing but the interface's name changed: refused and good starts, a reload, kills. What it changes is as before in the end.
func TestPackaging(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 2, RealServers: 1, Clients: 1, SyncSegment: true})
	addProbes(t, f)
	d1, d2 := f.Directors[0], f.Directors[1]
	keys := genkey(t, d1)
	for _, d := range f.Directors {
		for _, name := range []string{"/etc/saru/syncd.conf", "/etc/saru/saru.conf"} {
			conf, err := d.ReadFile(name)
			must(t, err)
			text := strings.Replace(string(conf), "\ninterface eth0\n", "\ninterface sync\n", 1)
			must(t, d.WriteFile(name, []byte(text), 0o644))
		}
	}
	peer := startSyncd(t, d2, keys)
	saructl := func(args ...string) string {
		t.Helper()
		out, err := d1.Run("saructl", args...)
		if err != nil {
			t.Errorf("saructl: %v\n%s", err, out)
		}
		return out
	}
	syncdSays := func(want string) {
		t.Helper()
		eventually(t, readyLimit, func() string {
			text, err := d1.ReadFile("/run/saru/syncd.stderr") // there is no syslog here
			if err != nil {
				return err.Error()
			}
			if !strings.Contains(string(text), want) {
				return "syncd does not say " + want + ":\n" + string(text)
			}
			return ""
		})
	}
	before := state(t, d1)

	for _, shell := range []string{"dash", "busybox sh"} {
		_, err := d1.Run("rm", "-f", keyFile)
		must(t, err)
		if out := service(t, d1, shell, "start", 1); !strings.Contains(out, "saructl genkey") {
			t.Errorf("%s: a start without keys does not say what is missing:\n%s", shell, out)
		}
		must(t, d1.WriteFile(keyFile, []byte(keys), 0o600))
		_, err = d1.Run("ipvsadm", "--start-daemon", "backup", "--mcast-interface", "sync")
		must(t, err)
		if out := service(t, d1, shell, "start", 1); !strings.Contains(out, "ipvsadm --stop-daemon backup") {
			t.Errorf("%s: a start beside a sync daemon does not say how to stop that:\n%s", shell, out)
		}
		service(t, d1, shell, "status", 3)
		_, err = d1.Run("ipvsadm", "--stop-daemon", "backup")
		must(t, err)

		service(t, d1, shell, "start", 0)
		saructl("check")
		eventually(t, readyLimit, func() string {
			out, err := d1.Run("saructl", "sync", "status")
			if err != nil || !strings.Contains(out, "d2") {
				return "saructl sync status: " + out
			}
			return ""
		})
		peer.waitPeers(t, "d1")
		mirrorsBothWays(t, f)

		service(t, d1, shell, "reload", 0)
		syncdSays("reloaded")
		must(t, d1.WriteFile(keyFile, []byte("1 beef\n"), 0o600))
		service(t, d1, shell, "reload", 0)
		syncdSays("reload refused")
		must(t, d1.WriteFile(keyFile, []byte(keys), 0o600))
		mirrorsBothWays(t, f)

		for _, next := range []string{"start", "restart"} {
			_, err = d1.Run("sh", "-c", "kill -KILL $(cat /run/saru/syncd.pid); while [ -e /proc/$(cat /run/saru/syncd.pid)/exe ]; do sleep 0.1; done")
			must(t, err)
			service(t, d1, shell, "status", 1)
			service(t, d1, shell, next, 0)
			service(t, d1, shell, "status", 0)
			mirrorsBothWays(t, f)
		}
		service(t, d1, shell, "stop", 0)
		unchanged(t, d1, before, shell+": stop")

		service(t, d1, shell, "start", 0)
		_, err = d1.Run("sh", "-c", "kill -KILL $(cat /run/saru/syncd.pid); while [ -e /proc/$(cat /run/saru/syncd.pid)/exe ]; do sleep 0.1; done")
		must(t, err)
		service(t, d1, shell, "stop", 0)
		unchanged(t, d1, before, shell+": stop after a kill")
	}
	peer.stopSyncd(t)
}
