package farm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// anchorName is argv[0] of an anchor process; ps shows it.
const anchorName = "farm-node"

// anchorReady is what an anchor writes when its namespaces are furnished.
const anchorReady = "ready\n"

// Init turns this process into an anchor if it was started as one, and
// returns otherwise. Call it before anything else.
func Init() {
	if len(os.Args) != 2 || os.Args[0] != anchorName {
		return
	}
	if err := anchor(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stdout, "node %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// anchor furnishes the new namespaces and then only holds them open: until
// its standard input ends, which happens at the latest when the program that
// started it is gone.
func anchor(hostname string) error {
	if err := furnish(hostname); err != nil {
		return err
	}
	// PID 1 of the node inherits orphans.
	sig := make(chan os.Signal, 16)
	signal.Notify(sig, unix.SIGCHLD)
	go func() {
		for range sig {
			for {
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if err != nil || pid <= 0 {
					break
				}
			}
		}
	}()
	if _, err := os.Stdout.WriteString(anchorReady); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// furnish mounts what a node has for itself.
func furnish(hostname string) error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	// /etc is filled while it is still mounted elsewhere, then moved.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	const staging = "/run/etc"
	if err := os.Mkdir(staging, 0o755); err != nil {
		return fmt.Errorf("own /etc: %w", err)
	}
	if err := unix.Mount("tmpfs", staging, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("own /etc: %w", err)
	}
	if err := copyTree("/etc", staging); err != nil {
		return fmt.Errorf("own /etc: %w", err)
	}
	if err := os.WriteFile(filepath.Join(staging, "hostname"), []byte(hostname+"\n"), 0o644); err != nil {
		return fmt.Errorf("own /etc: %w", err)
	}
	if err := unix.Mount(staging, "/etc", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("own /etc: %w", err)
	}
	return os.Remove(staging)
}

// maxEtcFile keeps big caches of a host's /etc out of the copies.
const maxEtcFile = 1 << 20

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || rel == "." {
			return err
		}
		dst := filepath.Join(to, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.Mkdir(dst, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		case d.Type().IsRegular() && info.Size() <= maxEtcFile:
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(dst, text, info.Mode().Perm())
		}
		return nil
	})
}

// anchorProcess is a running anchor as its starter sees it.
type anchorProcess struct {
	cmd  *exec.Cmd
	hold io.Closer // closing it ends the anchor
}

// anchorWait bounds the start of an anchor; under emulation it takes 0.3 s.
const anchorWait = 20 * time.Second

// startAnchor starts the anchor of a node.
func startAnchor(hostname string) (*anchorProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", hostname, err)
	}
	cmd := exec.Command(self)
	cmd.Args = []string{anchorName, hostname}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1", "GOGC=off"}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", hostname, err)
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", hostname, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start node %s (root is needed): %w", hostname, err)
	}
	a := &anchorProcess{cmd: cmd, hold: hold}
	timer := time.AfterFunc(anchorWait, func() { cmd.Process.Kill() }) //nolint:errcheck // it has ended, then
	defer timer.Stop()
	line := make([]byte, 1024)
	n, err := said.Read(line)
	if err != nil || !bytes.Equal(line[:n], []byte(anchorReady)) {
		a.kill()
		return nil, fmt.Errorf("start node %s: %q %w", hostname, line[:n], errors.Join(err, errAnchor))
	}
	return a, nil
}

var errAnchor = errors.New("the anchor process did not come up (does the program call farm.Init?)")

func (a *anchorProcess) pid() int { return a.cmd.Process.Pid }

// kill ends the anchor, and with it every process of its PID namespace, by
// SIGKILL. When it returns they are dead: the kernel lets PID 1 go last.
func (a *anchorProcess) kill() {
	a.cmd.Process.Kill() //nolint:errcheck // it has ended, then
	a.cmd.Wait()         //nolint:errcheck // "signal: killed" is what was asked for
	a.hold.Close()
}
