package scenarios

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"saru/integration/farm"
)

// TestInitScript: what `make install` installed works as it stands: the init
// script starts, shows, restarts and stops the real syncd, by dash and by
// busybox, and cleans up after a kill.
func TestInitScript(t *testing.T) {
	const script = "/etc/init.d/syncd"
	f := farm.New(t, farm.Spec{Directors: 1, SyncSegment: true})
	d := f.Directors[0]
	keys, err := d.Run("saructl", "genkey")
	must(t, err)
	must(t, d.WriteFile("/etc/saru/keys", []byte(keys), 0o600))
	conf, err := d.ReadFile("/etc/saru/syncd.conf")
	must(t, err)
	changed := strings.ReplaceAll(string(conf), "\ninterface eth0\n", "\ninterface sync\n")
	if changed == string(conf) {
		t.Fatalf("the installed configuration names no interface eth0:\n%s", conf)
	}
	must(t, d.WriteFile("/etc/saru/syncd.conf", []byte(changed), 0o644))
	for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}} {
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
			args := append(shell[1:len(shell):len(shell)], script, step.do)
			name := shell[0]
			if step.do == "KILL" {
				name, args = "sh", []string{"-c", "kill -KILL $(cat /run/saru/syncd.pid); while [ -e /proc/$(cat /run/saru/syncd.pid)/exe ]; do sleep 0.1; done"}
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
		out, err := d.Run("sh", "-c", "ip link; nft list tables; ipvsadm -Ln --daemon; ls /run/saru")
		must(t, err)
		if strings.Contains(out, "syncd") || strings.Contains(out, "sync daemon") {
			t.Errorf("%v: syncd left something behind:\n%s", shell, out)
		}
	}
}
