package vm

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InGuest tells whether this process is /init of a guest that [Run] started.
func InGuest() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(jobFile)
	return err == nil
}

// Init is the guest's first process: it brings the system up, runs the job,
// sends output and results to the host and switches the machine off. It
// returns only when even that is impossible.
func Init() {
	g := &guest{}
	rep := g.run()
	if err := g.deliver(rep); err != nil {
		fmt.Fprintln(os.Stderr, "labrun: guest:", err)
	}
	unix.Sync()
	// QEMU runs with -no-reboot: a restart ends it.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintln(os.Stderr, "labrun: guest: reboot:", err)
	}
}

// guest is the state of /init.
type guest struct {
	ports map[string]*os.File
}

func (g *guest) run() report {
	bad := func(err error) report { return report{Exit: 125, Error: err.Error()} }
	text, err := os.ReadFile(jobFile)
	if err != nil {
		return bad(err)
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return bad(fmt.Errorf("read job: %w", err))
	}
	if err := setup(&j); err != nil {
		return bad(err)
	}
	if g.ports, err = openPorts(); err != nil {
		return bad(err)
	}
	if j.Program == "" {
		return report{}
	}
	return g.execute(&j)
}

// setup mounts the kernel's file systems, loads modules and brings lo up.
func setup(j *job) error {
	mounts := []struct {
		fstype, target, data string
		flags                uintptr
	}{
		{"proc", "/proc", "", 0},
		{"sysfs", "/sys", "", 0},
		{"devtmpfs", "/dev", "", 0},
		{"devpts", "/dev/pts", "ptmxmode=0666", 0},
		{"tmpfs", "/dev/shm", "mode=1777", 0},
		{"tmpfs", "/run", "mode=755", 0},
		{"cgroup2", "/sys/fs/cgroup", "", 0},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.data); err != nil && m.fstype != "cgroup2" {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, l := range [][2]string{{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("devices: %w", err)
		}
	}
	// No tmpfs over /tmp: the checkout's working directory may be below it.
	for dir, mode := range map[string]fs.FileMode{"/tmp": fs.ModeSticky | 0o777, "/var/tmp": fs.ModeSticky | 0o777, "/root": 0o700, "/home/user": 0o755, "/var/lib": 0o755, "/var/log": 0o755, guestOut: fs.ModeSticky | 0o777} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("folders: %w", err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return fmt.Errorf("folders: %w", err)
		}
	}
	if err := os.Symlink("/run", "/var/run"); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("folders: %w", err)
	}
	if err := os.Chown("/home/user", 1000, 1000); err != nil {
		return fmt.Errorf("folders: %w", err)
	}
	if err := unix.Sethostname([]byte(j.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	modules := preload
	if j.Network {
		modules = append(modules[:len(modules):len(modules)], "virtio_net")
	}
	// modprobe's status is not looked at: what is built into one kernel is a
	// module, or absent, in another. Without the ports the guest is told so.
	out, _ := exec.Command("/usr/sbin/modprobe", append([]string{"-a", "-q"}, modules...)...).CombinedOutput()
	if len(out) > 0 {
		fmt.Fprintf(os.Stderr, "labrun: guest: modprobe: %s\n", out)
	}
	return linkUp("lo")
}

// linkUp sets an interface up with one ioctl; ip would cost 100 ms.
func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// portWait bounds the wait for the ports: the host announces them after the
// driver has come up.
const portWait = 10 * time.Second

// openPorts opens the virtio ports by the names that the host gave them.
func openPorts() (map[string]*os.File, error) {
	found := map[string]*os.File{}
	deadline := time.Now().Add(portWait)
	for len(found) < len(ports) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, fmt.Errorf("virtio ports: %w", err)
		}
		for _, n := range names {
			text, err := os.ReadFile(n)
			name := strings.TrimSpace(string(text))
			if err != nil || name == "" || found[name] != nil {
				continue
			}
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			if err != nil {
				continue // the device file may come a moment later
			}
			found[name] = f
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("virtio ports: %d of %d after %v (is virtio_console in this kernel?)", len(found), len(ports), portWait)
		}
		time.Sleep(10 * time.Millisecond) // nothing notifies about device files
	}
	return found, nil
}

// grace is given to a program after SIGQUIT at the time limit, and to what it
// left running to close its output.
const grace = 5 * time.Second

// execute runs the program and waits for it and for its output.
func (g *guest) execute(j *job) report {
	cmd := exec.Command(j.Program, j.Args...)
	cmd.Dir, cmd.Env = j.Dir, j.Env
	// Pipes instead of the ports themselves: a port can be opened only once,
	// so a program could not open /dev/stdout.
	var wg sync.WaitGroup
	var ends []io.Closer
	for _, s := range []struct {
		dst *os.File
		set *io.Writer
	}{{g.ports[portOut], &cmd.Stdout}, {g.ports[portErr], &cmd.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return report{Exit: 125, Error: err.Error()}
		}
		*s.set = w
		ends = append(ends, w)
		wg.Go(func() {
			io.Copy(s.dst, r) //nolint:errcheck // where would it be reported?
		})
	}
	if err := cmd.Start(); err != nil {
		return report{Exit: 125, Error: fmt.Sprintf("run %s: %v", j.Program, err)}
	}
	for _, w := range ends {
		w.Close()
	}
	stop := reapOrphans(cmd.Process.Pid)
	defer stop()
	done := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // ProcessState has it all
		close(done)
	}()
	rep := report{}
	select {
	case <-done:
	case <-time.After(j.Timeout):
		rep.TimedOut = true
		cmd.Process.Signal(unix.SIGQUIT) //nolint:errcheck // it may have ended by now
		select {
		case <-done:
		case <-time.After(grace):
			cmd.Process.Kill() //nolint:errcheck // it may have ended by now
			<-done
		}
	}
	drained := make(chan struct{})
	go func() { wg.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(grace): // something that it started still holds the pipe
	}
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	rep.Exit = status.ExitStatus()
	if status.Signaled() {
		rep.Exit = 128 + int(status.Signal())
	}
	return rep
}

// reapOrphans collects dead processes that fell to /init, without touching
// the one that exec.Cmd waits for.
func reapOrphans(child int) (stop func()) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, unix.SIGCHLD)
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case <-quit:
				return
			case <-ch:
			}
			for {
				var info unix.Siginfo
				if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
					break
				}
				pid := siginfoPid(&info)
				if pid == 0 || pid == child {
					break
				}
				if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
					break
				}
			}
		}
	}()
	return func() { signal.Stop(ch); close(quit) }
}

// deliver sends the files, then the report.
func (g *guest) deliver(rep report) error {
	if g.ports == nil {
		if rep.Error != "" {
			return errors.New(rep.Error) // the console is all that is left
		}
		return nil
	}
	w := tar.NewWriter(g.ports[portFiles])
	if err := errors.Join(w.AddFS(os.DirFS(guestOut)), w.Close()); err != nil && rep.Error == "" {
		rep.Error = fmt.Sprintf("send files: %v", err)
	}
	text, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	_, err = g.ports[portControl].Write(append(text, '\n'))
	return err
}
