package farm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs in a node.
type Process struct {
	Name string
	node *Node
	cmd  *exec.Cmd
	log  string // file with what it said
	from int64  // where its part of the log begins
	done chan struct{}
	err  error // after done
}

// runLimit bounds programs whose end is waited for, and waitLimit the waiting
// for the end of others. Emulation makes everything 10 to 30 times slower.
const (
	runLimit  = 60 * time.Second
	waitLimit = 30 * time.Second
)

// namespaces that a process of a node enters, in this order: after mnt, /proc
// is the node's and shows this process no more.
var namespaces = []struct {
	file string
	flag int
}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}

// inside runs start on a thread that has entered all namespaces of the node;
// what it forks belongs to the node. The thread is not used again.
func (n *Node) inside(start func() error) error {
	pid, err := n.Pid()
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- func() error {
			// Threads share their root and working folder until told otherwise,
			// and setns refuses a mount namespace then.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("enter %s: %w", n.Name, err)
			}
			var files []*os.File
			defer func() {
				for _, f := range files {
					f.Close()
				}
			}()
			for _, ns := range namespaces {
				f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.file))
				if err != nil {
					return fmt.Errorf("enter %s: %w", n.Name, err)
				}
				files = append(files, f)
			}
			for i, ns := range namespaces {
				if err := unix.Setns(int(files[i].Fd()), ns.flag); err != nil {
					return fmt.Errorf("enter %s namespace of %s: %w", ns.file, n.Name, err)
				}
			}
			return start()
		}()
	}()
	return <-result
}

// nodeEnv is the environment of a node's processes.
func nodeEnv() []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LC_ALL=C"}
	for _, name := range []string{"GOCOVERDIR", "GORACE", "GOTRACEBACK", "LAB_OUT"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// command prepares a program of the node.
func command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(name) // the folders are the same in every node
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Env, cmd.Dir = nodeEnv(), "/"
	cmd.WaitDelay = time.Second // children may keep the pipes
	return cmd, nil
}

// Start starts a program in the node. What it says goes to NAME.log in the
// node's folder, appended to what earlier ones of that name said.
func (n *Node) Start(name string, args ...string) (*Process, error) {
	return n.StartCmd(nil, name, args...)
}

// StartCmd is Start with a hook that may change the command, its user for
// instance, before it runs.
func (n *Node) StartCmd(change func(*exec.Cmd), name string, args ...string) (*Process, error) {
	cmd, err := command(context.Background(), name, args...)
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, n.Name, err)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if change != nil {
		change(cmd)
	}
	p := &Process{Name: filepath.Base(name), node: n, cmd: cmd, done: make(chan struct{})}
	p.log = filepath.Join(n.dir, p.Name+".log")
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, n.Name, err)
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s %s\n", time.Now().Format("15:04:05.000"), strings.Join(cmd.Args, " "))
	if p.from, err = log.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, n.Name, err)
	}
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if cmd.Stderr == nil {
		cmd.Stderr = log
	}
	if err := n.inside(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, n.Name, err)
	}
	n.mu.Lock()
	n.procs = append(n.procs, p)
	n.mu.Unlock()
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Signal sends a signal.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Pid is the process id as this process sees it, not the node.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits, half a minute at most, for the end of the process; the error is
// that of [exec.Cmd.Wait].
func (p *Process) Wait() error { return p.WaitTimeout(waitLimit) }

// WaitTimeout is Wait with a limit.
func (p *Process) WaitTimeout(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		return fmt.Errorf("%s in %s still runs after %v", p.Name, p.node.Name, limit)
	}
}

// ExitCode is the exit status; -1 while it runs and when a signal killed it.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Stop ends the process by SIGTERM and waits for it; by SIGKILL if it does
// not follow in time.
func (p *Process) Stop() error {
	p.Signal(unix.SIGTERM) //nolint:errcheck // it may have ended
	if err := p.WaitTimeout(waitLimit); err == nil {
		return nil
	}
	select {
	case <-p.done:
		return p.err
	default:
		p.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
		<-p.done
		return fmt.Errorf("%s in %s ignored SIGTERM for %v", p.Name, p.node.Name, waitLimit)
	}
}

// Output is what the process has said so far.
func (p *Process) Output() string {
	text, err := os.ReadFile(p.log)
	if err != nil || int64(len(text)) < p.from {
		return ""
	}
	return string(text[p.from:])
}

// logPoll is how often WaitFor looks.
const logPoll = 20 * time.Millisecond

// errEnded stands for an end without an error.
var errEnded = errors.New("exit status 0")

// WaitFor waits until the process has said text.
func (p *Process) WaitFor(text string, limit time.Duration) error {
	deadline := time.After(limit)
	for {
		out := p.Output()
		if strings.Contains(out, text) {
			return nil
		}
		select {
		case <-p.done:
			if strings.Contains(p.Output(), text) {
				return nil
			}
			return fmt.Errorf("%s in %s ended before it said %q: %w\n%s", p.Name, p.node.Name, text, cmp.Or(p.err, errEnded), p.Output())
		case <-deadline:
			return fmt.Errorf("%s in %s did not say %q within %v:\n%s", p.Name, p.node.Name, text, limit, out)
		case <-time.After(logPoll):
		}
	}
}

// Run runs a program in the node to its end, a minute at most, and returns
// what it said on standard output. The error contains standard error.
func (n *Node) Run(name string, args ...string) (string, error) {
	return n.RunInput("", name, args...)
}

// RunInput is Run with text on standard input.
func (n *Node) RunInput(input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd, err := command(ctx, name, args...)
	if err != nil {
		return "", fmt.Errorf("run %s in %s: %w", name, n.Name, err)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := n.inside(cmd.Start); err != nil {
		return "", fmt.Errorf("run %s in %s: %w", name, n.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s in %s: %w: %s", name, strings.Join(args, " "), n.Name, errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
