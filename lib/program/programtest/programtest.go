// Package programtest tries a daemon's real program, and its options, against the contract that both daemons have.
package programtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"
)

// Program is a program that was built for a test.
type Program struct{ Name, Path string }

// Build builds the program whose main package is in the test's folder.
func Build(t *testing.T, name string) Program {
	t.Helper()
	dir := t.TempDir()
	Readable(t, dir)
	path := filepath.Join(dir, name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return Program{name, path}
}

// Result of one run.
type Result struct {
	Status         int
	Stdout, Stderr string
}

// Run runs the program to its end.
func (p Program) Run(t *testing.T, args ...string) Result {
	t.Helper()
	return start(t, p.Path, nil, args...)
}

func start(t *testing.T, path string, attributes *syscall.SysProcAttr, args ...string) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = attributes
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// InNamespace runs a command of sh in a network namespace of its own, as its root, with an interface m0 that has multicast and the address
// 192.0.2.11/24. "$@" in it are the arguments.
func InNamespace(t *testing.T, command string, args ...string) Result {
	t.Helper()
	setUp := "ip link add m0 type veth peer name m1; ip address add 192.0.2.11/24 dev m0; ip link set lo up; ip link set m0 up; ip link set m1 up; "
	attributes := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return start(t, "/bin/sh", attributes, append([]string{"-ec", setUp + command, "sh"}, args...)...)
}

// Unprivileged runs the program with these arguments as nobody, in a namespace. Files that it reads, such as keys, are given to nobody.
func (p Program) Unprivileged(t *testing.T, files []string, args ...string) Result {
	t.Helper()
	drop := []string{"setpriv", "--bounding-set", "-all", "--inh-caps", "-all"} // of a root who is nobody outside
	if os.Getuid() == 0 {
		drop = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
		for _, name := range files {
			Readable(t, filepath.Dir(name))
			if err := os.Chown(name, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	return InNamespace(t, `exec "$@"`, append(append(drop, p.Path), args...)...)
}

// File writes a file for a case and returns its name.
func File(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// Readable lets others than root pass through the test's folders.
func Readable(t *testing.T, folder string) {
	t.Helper()
	for ; len(folder) > len(os.TempDir()); folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// Refused checks the exit status and the one line, which must have all parts of want.
func (p Program) Refused(t *testing.T, got Result, want ...string) {
	t.Helper()
	if got.Status != 2 {
		t.Errorf("exit status %d, want 2", got.Status)
	}
	if got.Stdout != "" {
		t.Errorf("standard output has %q", got.Stdout)
	}
	if !strings.HasPrefix(got.Stderr, p.Name+": ") || strings.Count(got.Stderr, "\n") != 1 || !strings.HasSuffix(got.Stderr, "\n") {
		t.Errorf("standard error is not one line of %s: %q", p.Name, got.Stderr)
	}
	for _, part := range want {
		if !strings.Contains(got.Stderr, part) {
			t.Errorf("standard error lacks %q: %q", part, got.Stderr)
		}
	}
}

// Refusal is a run that must be refused.
type Refusal struct {
	Name string // of the option, if it is one
	Args []string
	Want []string // parts of the line
}

// Refusals runs the program with each thing that can be wrong before it has changed anything. Each option needs its case.
func (p Program) Refusals(t *testing.T, flags *pflag.FlagSet, all []Refusal) {
	t.Helper()
	tried := map[string]bool{}
	for _, r := range all {
		t.Run(r.Name, func(t *testing.T) {
			tried[r.Name] = true
			p.Refused(t, p.Run(t, r.Args...), r.Want...)
		})
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if !tried[f.Name] {
			t.Errorf("--%s is not tried with a bad value", f.Name)
		}
	})
}
