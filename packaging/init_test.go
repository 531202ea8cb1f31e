package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeDaemon behaves as the init script sees a daemon: it makes its socket (a file
// here), notes that it was told to clean up, and ends on SIGTERM. What the file "mode"
// holds makes it misbehave.
const fakeDaemon = `#!/bin/sh
dir=%[1]q
for arg; do
	[ "$arg" != --cleanup ] || { echo cleanup >>"$dir/log"; rm -f "$dir/socket"; exit 0; }
done
case $(cat "$dir/mode" 2>/dev/null) in
refuse) echo '%[2]s: --interface "eth9": no such interface' >&2; exit 2 ;;
deaf) trap '' TERM ;;
*) trap 'rm -f "$dir/socket"; exit 0' TERM ;;
esac
trap 'echo reload >>"$dir/log"' HUP
echo "start $*" >>"$dir/log"
: >"$dir/socket"
while :; do sleep 0.05; done
`

// fakeSaructl answers for as long as the socket is there.
const fakeSaructl = `#!/bin/sh
[ -e %[1]q/socket ] || exit 1
echo "$*" >%[1]q/asked
echo "synced no"
exit 1
`

// initScript is an installed init script with a fake daemon.
type initScript struct {
	t      *testing.T
	name   string // of the daemon
	shell  []string
	path   string // of its programs
	dir    string
	script string
}

func newInitScript(t *testing.T, name string, shell []string, path string) *initScript {
	dir := t.TempDir()
	s := &initScript{t: t, name: name, shell: shell, path: path, dir: dir, script: filepath.Join(dir, "etc/init.d", name)}
	install(t, "PREFIX="+dir+"/usr", "SYSCONFDIR="+dir+"/etc", "RUNDIR="+dir+"/run")
	s.write("usr/sbin/"+name, fmt.Sprintf(fakeDaemon, dir, name), 0o755)
	s.write("usr/sbin/saructl", fmt.Sprintf(fakeSaructl, dir), 0o755)
	s.write("etc/saru/"+name+".conf", "interface eth0\n  control\t"+dir+"/socket # here\n", 0o644)
	settings := strings.ToUpper(name)
	s.write("etc/default/"+name, settings+"_OPTIONS='--debug --node d1'\n"+settings+"_STOP_TIMEOUT=1\n", 0o644)
	// The script insists on root, whom the fakes do not need.
	s.write("fake/id", "#!/bin/sh\necho 0\n", 0o755)
	path = filepath.Join(dir, "fake") + ":" + path
	s.path = path
	s.setPath(s.script)
	t.Cleanup(func() {
		if pid := s.pid(); pid > 0 {
			syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	})
	return s
}

// setPath changes a script, which sets PATH for the boot: the test decides what is found.
func (s *initScript) setPath(script string) {
	s.t.Helper()
	text, err := os.ReadFile(script)
	if err != nil {
		s.t.Fatal(err)
	}
	changed := strings.Replace(string(text), "\nPATH=", "\nPATH="+s.path+" # ", 1)
	if err := os.WriteFile(script, []byte(changed), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

func (s *initScript) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	name = filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *initScript) read(name string) string {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return ""
	}
	return string(b)
}

// pid returns the number in the pid file, 0 if there is none.
func (s *initScript) pid() int {
	n, err := strconv.Atoi(strings.TrimSpace(s.read("run/saru/" + s.name + ".pid")))
	if err != nil {
		return 0
	}
	return n
}

// want runs the script and checks its exit status and a part of its output.
func (s *initScript) want(action string, status int, output string) {
	s.t.Helper()
	args := append(s.shell[1:len(s.shell):len(s.shell)], s.script, action)
	cmd := exec.CommandContext(s.t.Context(), s.shell[0], args...)
	cmd.Env = []string{"PATH=" + s.path}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatalf("%s: %v", action, err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status || !strings.Contains(string(out), output) {
		s.t.Errorf("%s: status %d, want %d with %q:\n%s", action, got, status, output, out)
	}
}

// log checks what the daemon has been told since the last time.
func (s *initScript) log(want string) {
	s.t.Helper()
	// A signal takes a moment.
	deadline := time.Now().Add(2 * time.Second)
	for s.read("log") != want && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	if got := s.read("log"); got != want {
		s.t.Errorf("the daemon noted %q, want %q", got, want)
	}
	os.Remove(filepath.Join(s.dir, "log")) // may be absent
}

// kill ends the daemon as SIGKILL does: the socket stays.
func (s *initScript) kill() {
	s.t.Helper()
	pid := s.pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("kill %d: %v", pid, err)
	}
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return
		}
	}
	s.t.Fatalf("process %d is still there", pid)
}

// tools makes a folder with the programs that the script uses, and no others.
func tools(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append(names, "sh", "cat", "id", "mkdir", "readlink", "rm", "sed", "sleep", "tail") {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestInitScript runs the whole life of a daemon. (With the real
// one and with busybox it runs in the lab.)
func TestInitScript(t *testing.T) {
	// Under nohup SIGHUP is ignored, what is started here inherits that, and a shell cannot trap what it found ignored (POSIX, trap).
	// What Go catches is set back to its default in its children.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	type environment struct {
		name  string
		shell []string
		path  string
	}
	all := []environment{
		{"all programs", []string{"/bin/sh"}, "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"few programs", []string{"/bin/sh"}, tools(t)},
		{"few programs and setsid", []string{"/bin/sh"}, tools(t, "setsid")},
	}
	// It needs not be there; the lab has it always.
	if busybox, err := exec.LookPath("busybox"); err == nil {
		folder := t.TempDir()
		if out, err := exec.CommandContext(t.Context(), busybox, "--install", "-s", folder).CombinedOutput(); err != nil {
			t.Fatalf("busybox: %v\n%s", err, out)
		}
		all = append(all, environment{"busybox", []string{busybox, "sh"}, folder})
	}
	// A group ends when all of it has ended; the signal is caught for as long.
	t.Run("each", func(t *testing.T) {
		for _, tt := range all {
			for daemon, status := range map[string]string{"syncd": "sync status", "saru": "status"} {
				t.Run(daemon+" with "+tt.name, func(t *testing.T) {
					t.Parallel()
					newInitScript(t, daemon, tt.shell, tt.path).life(status)
				})
			}
			t.Run("saru-closed with "+tt.name, func(t *testing.T) {
				t.Parallel()
				newInitScript(t, "saru", tt.shell, tt.path).closed()
			})
		}
	})
}

// life is that of a daemon whose state saructl tells by the command status.
func (s *initScript) life(status string) {
	t := s.t
	s.want("status", 3, "is not running")
	s.want("stop", 0, "is not running")
	s.want("reload", 7, "is not running")
	s.want("nonsense", 2, "Usage:")
	s.log("")

	s.want("start", 0, "started")
	s.log("start --debug --node d1\n")
	first := s.pid()
	s.want("start", 0, "is running already")
	s.want("status", 0, "synced no")
	if asked := s.read("asked"); asked != "--control "+s.dir+"/socket "+status+"\n" {
		t.Errorf("saructl was asked %q", asked)
	}
	s.want("reload", 0, "")
	s.log("reload\n")
	s.want("force-reload", 0, "")
	s.log("reload\n")
	s.want("restart", 0, "started")
	s.log("start --debug --node d1\n")
	if second := s.pid(); second == first || second == 0 {
		t.Errorf("process %d became %d with restart", first, second)
	}
	s.want("stop", 0, "stopped")
	s.log("")
	if entries, err := os.ReadDir(filepath.Join(s.dir, "run/saru")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}

	s.want("start", 0, "started")
	s.kill()
	s.want("status", 1, "was killed")
	s.want("start", 0, "started")
	s.log("start --debug --node d1\ncleanup\nstart --debug --node d1\n")
	s.kill()
	s.want("stop", 0, "was killed, cleaning up")
	s.log("cleanup\n")
	s.want("stop", 0, "is not running")

	s.write("mode", "deaf", 0o644)
	s.want("start", 0, "started")
	s.want("stop", 0, "killing it")
	s.log("start --debug --node d1\ncleanup\n")

	s.write("mode", "refuse", 0o644)
	s.want("start", 1, `--interface "eth9": no such interface`)
	s.want("status", 3, "is not running")

	// A number that another process has got since is not taken for the daemon.
	s.write("run/saru/"+s.name+".pid", fmt.Sprint(os.Getpid()), 0o644)
	s.want("status", 1, "was killed")
	s.want("stop", 0, "cleaning up")
}

// closed is what saru-closed does at boot, beside a daemon's own script.
func (s *initScript) closed() {
	s.script += "-closed"
	s.setPath(s.script)
	s.write("usr/sbin/saru", fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%[1]q/log\n[ ! -e %[1]q/mode ]\n", s.dir), 0o755)
	s.want("start", 0, "")
	s.log("--log_facility - --debug --node d1 --close\n")
	s.want("restart", 0, "")
	s.log("--log_facility - --debug --node d1 --close\n")
	s.want("stop", 0, "")
	s.want("status", 4, "nft list table")
	s.want("nonsense", 2, "Usage:")
	s.log("")
	s.write("mode", "", 0o644) // it fails
	s.want("start", 1, "")
	s.log("--log_facility - --debug --node d1 --close\n")
}
