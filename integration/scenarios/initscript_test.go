package scenarios

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"saru/integration/farm"
)

// TestInitScript: what `make install` installed works as it stands: the init
// scripts start, show, restart and stop the real daemons, by dash and by
// busybox, and clean up after a kill. saru leaves its filter closed behind.
func TestInitScript(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 1, SyncSegment: true})
	d := f.Directors[0]
	keys, err := d.Run("saructl", "genkey")
	must(t, err)
	must(t, d.WriteFile("/etc/saru/keys", []byte(keys), 0o600))
	must(t, d.AddServices(services...))
	for _, daemon := range []struct {
		name string
		left func() string // what is left behind that should not be
	}{
		{"syncd", func() string {
			out, err := d.Run("sh", "-c", "ip link; nft list tables; ipvsadm -Ln --daemon; ls /run/saru")
			must(t, err)
			if strings.Contains(out, "syncd") || strings.Contains(out, "sync daemon") {
				return out
			}
			return ""
		}},
		{"saru", func() string {
			out, err := d.Run("sh", "-c", "nft list table inet saru; ls /run/saru")
			must(t, err)
			if !strings.Contains(out, farm.VIP.String()) || strings.Contains(out, "saru.") {
				return out
			}
			out, err = d.Run("sh", "-c", "nft list set inet saru owned; nft list set inet saru lease")
			must(t, err)
			if strings.Contains(out, "elements") {
				return out
			}
			_, err = d.Run("saru", "--open", "--log_facility", "-")
			must(t, err)
			if out, err = d.Run("nft", "list", "tables"); err != nil || strings.Contains(out, "saru") {
				return out
			}
			if out, err = d.Run("sh", "-c", "/etc/init.d/saru-closed start; nft list table inet saru"); err != nil || !strings.Contains(out, farm.VIP.String()) {
				return "saru-closed: " + out
			}
			return ""
		}},
	} {
		t.Run(daemon.name, func(t *testing.T) {
			file := "/etc/saru/" + daemon.name + ".conf"
			conf, err := d.ReadFile(file)
			must(t, err)
			changed := strings.ReplaceAll(string(conf), "\ninterface eth0\n", "\ninterface sync\n")
			if changed == string(conf) {
				t.Fatalf("the installed configuration names no interface eth0:\n%s", conf)
			}
			must(t, d.WriteFile(file, []byte(changed), 0o644))
			for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}} {
				day(t, d, daemon.name, shell)
				if left := daemon.left(); left != "" {
					t.Errorf("%v: left behind:\n%s", shell, left)
				}
			}
		})
	}
}

// day has the init script of a daemon do everything that it can.
func day(t *testing.T, d *farm.Node, daemon string, shell []string) {
	t.Helper()
	for _, step := range []struct {
		do   string
		exit int // as in the Linux Standard Base
		says string
	}{
		{"status", 3, "not running"},
		{"start", 0, "started"},
		{"start", 0, "running already"},
		{"status", 0, "is running"},
		{"reload", 0, ""},
		{"restart", 0, "started"},
		{"KILL", 0, ""},
		{"status", 1, "was killed"},
		{"start", 0, "started"},
		{"stop", 0, "stopped"},
		{"status", 3, "not running"},
	} {
		args := append(shell[1:len(shell):len(shell)], "/etc/init.d/"+daemon, step.do)
		name := shell[0]
		if step.do == "KILL" {
			pid := "$(cat /run/saru/" + daemon + ".pid)"
			name, args = "sh", []string{"-c", "kill -KILL " + pid + "; while [ -e /proc/" + pid + "/exe ]; do sleep 0.1; done"}
		}
		out, err := d.Run(name, args...)
		exit := 0
		if x, ok := errors.AsType[*exec.ExitError](err); ok {
			exit = x.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if exit != step.exit || !strings.Contains(out, step.says) {
			t.Fatalf("%v %s: exit %d, want %d and %q\n%s%v", shell, step.do, exit, step.exit, step.says, out, err)
		}
	}
}
