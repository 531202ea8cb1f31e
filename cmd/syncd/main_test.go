package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"

	"saru/syncd"
)

// build returns the real program.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	readable(t, dir)
	program := filepath.Join(dir, "syncd")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// result of one run.
type result struct {
	status         int
	stdout, stderr string
}

func start(t *testing.T, program string, attributes *syscall.SysProcAttr, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = attributes
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// file writes a file for a case and returns its name.
func file(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRefusals runs the real program with each thing that can be wrong before it
// has changed anything: exit status 2, and one line that names the culprit.
func TestRefusals(t *testing.T) {
	program := build(t)
	key := "1 " + strings.Repeat("0f", 32) + "\n"
	keys := file(t, "keys", key, 0o600)
	conf := func(text string) []string { return []string{"--config", file(t, "syncd.conf", text, 0o644)} }
	// usable are options with which only the machine can be in the way.
	usable := func(more ...string) []string {
		return append([]string{"--key_file", keys, "--interface", "lo", "--control", filepath.Join(t.TempDir(), "syncd.sock")}, more...)
	}
	long := strings.Repeat("x", 200)

	tests := []struct {
		name string
		args []string
		want []string // parts of the line
	}{
		{"unknown option", []string{"--frobnicate"}, []string{"--frobnicate"}},
		{"short option", []string{"-v"}, []string{`"-v"`}},
		{"argument", []string{"start"}, []string{`"start"`}},
		{"no value", []string{"--syncid"}, []string{"--syncid"}},

		{"config", []string{"--config", "/nonexistent"}, []string{"--config", "/nonexistent"}},
		{"config", []string{"--config", "/"}, []string{"--config", "directory"}},
		{"debug", []string{"--debug=maybe"}, []string{"--debug", "maybe"}},
		{"log_facility", []string{"--log_facility", "nonsense"}, []string{"--log_facility", "nonsense", "local7"}},
		{"node", []string{"--node", "a b"}, []string{"--node", "a b"}},
		{"interface", []string{"--interface", "0123456789abcdef"}, []string{"--interface", "0123456789abcdef"}},
		{"interface", []string{"--insecure"}, []string{"--interface", "required"}},
		{"group", []string{"--group", "192.0.2.1:8848"}, []string{"--group", "192.0.2.1:8848", "multicast"}},
		{"group", []string{"--group", "[ff02::81]"}, []string{"--group", "[ff02::81]", "port"}},
		{"key_file", []string{"--key_file", ""}, []string{"--key_file"}},
		{"key_file", []string{"--interface", "lo", "--key_file", keys, "--insecure"}, []string{"--key_file", "--insecure"}},
		{"insecure", []string{"--insecure=2"}, []string{"--insecure", "2"}},
		{"control", []string{"--control", "/" + long}, []string{"--control", "107"}},
		{"metrics", []string{"--metrics", "9848"}, []string{"--metrics", "9848"}},
		{"check", []string{"--check=perhaps"}, []string{"--check", "perhaps"}},
		{"cleanup", []string{"--cleanup", "--check", "--interface", "lo"}, []string{"--cleanup", "--check"}},
		{"tap", []string{"--tap", "a/b"}, []string{"--tap", "a/b"}},
		{"tap_address", []string{"--tap_address", "fe80::1"}, []string{"--tap_address", "fe80::1", "IPv4"}},
		{"sysctl", []string{"--sysctl", "maybe"}, []string{"--sysctl", "maybe", "apply"}},
		{"auth", []string{"--auth", "none"}, []string{"--auth", "none", "enforce"}},
		{"syncid", []string{"--syncid", "256"}, []string{"--syncid", "256", "1 to 255"}},
		{"mirror", []string{"--mirror", "some"}, []string{"--mirror", "some", "templates"}},
		{"mirror_service", []string{"--mirror_service", "192.0.2.1:80"}, []string{"--mirror_service", "192.0.2.1:80", "tcp"}},
		{"kernel_entries", []string{"--kernel_entries", "next"}, []string{"--kernel_entries", "next", "needs saru"}},

		{"file: unknown option", conf("interface lo\nfrobnicate 1\n"), []string{"syncd.conf:2", "frobnicate"}},
		{"file: bad value", conf("# x\n\nsyncid 0 # none\n"), []string{"syncd.conf:3", "syncid", `"0"`}},

		{"key file missing", []string{"--interface", "lo", "--key_file", "/nonexistent"}, []string{"--key_file", "/nonexistent", "saructl genkey"}},
		{"key file for others", []string{"--interface", "lo", "--key_file", file(t, "open", key, 0o644)}, []string{"--key_file", "/open", "0600"}},
		{"key file malformed", []string{"--interface", "lo", "--key_file", file(t, "bad", "# x\n1 abc\n", 0o600)}, []string{"--key_file", "/bad:2"}},
		{"key file empty", []string{"--interface", "lo", "--key_file", file(t, "empty", "", 0o600)}, []string{"--key_file", "/empty"}},
		{"key file short", []string{"--interface", "lo", "--key_file", file(t, "short", "1 00ff\n", 0o600)}, []string{"--key_file", "/short:1", "32"}},
		{"interface unknown", []string{"--key_file", keys, "--interface", "nosuch0"}, []string{"--interface", "nosuch0"}},
		{"log file in no folder", usable("--log_facility", "/nonexistent/syncd.log"), []string{"--log_facility", "/nonexistent/syncd.log"}},
		{"files before interfaces", []string{"--key_file", "/nonexistent", "--interface", "nosuch0"}, []string{"--key_file"}},
	}
	tried := map[string]bool{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tried[tt.name] = true
			refused(t, start(t, program, nil, tt.args...), tt.want...)
		})
	}
	// An option that is added gets its case.
	syncd.Flags().VisitAll(func(f *pflag.Flag) {
		if !tried[f.Name] {
			t.Errorf("--%s is not tried with a bad value", f.Name)
		}
	})

	t.Run("not root", func(t *testing.T) {
		own := file(t, "keys", key, 0o600)
		readable(t, filepath.Dir(own))
		drop := []string{"setpriv", "--bounding-set", "-all", "--inh-caps", "-all"} // of a root who is nobody outside
		if os.Getuid() == 0 {
			drop = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
			if err := os.Chown(own, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		got := inNamespace(t, append(drop, program, "--key_file", own, "--interface", "m0", "--control", "/tmp/syncd-test.sock")...)
		refused(t, got, "root")
	})
	t.Run("no IPVS in the kernel", func(t *testing.T) {
		if _, err := os.Stat("/proc/net/ip_vs"); !errors.Is(err, os.ErrNotExist) {
			// Nothing else shows this case: where results count, it must not pass for want of a kernel without IPVS.
			if os.Getenv("CI") != "" {
				t.Fatal("this kernel has IPVS: the refusal without it cannot be shown here")
			}
			t.Log("NOT SHOWN: this kernel has IPVS")
			return
		}
		got := inNamespace(t, program, "--key_file", keys, "--interface", "m0", "--control", filepath.Join(t.TempDir(), "s"))
		refused(t, got, "IPVS")
	})
}

// inNamespace runs a command in a network namespace of its own, as its root, with an
// interface m0 that has multicast.
func inNamespace(t *testing.T, command ...string) result {
	t.Helper()
	args := append([]string{"-ec", `ip link add m0 type veth peer name m1; ip link set m0 up; exec "$@"`, "sh"}, command...)
	attributes := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return start(t, "/bin/sh", attributes, args...)
}

// readable lets others than root pass through the test's folders.
func readable(t *testing.T, folder string) {
	t.Helper()
	for ; len(folder) > len(os.TempDir()); folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// refused checks the exit status and the one line.
func refused(t *testing.T, got result, want ...string) {
	t.Helper()
	if got.status != 2 {
		t.Errorf("exit status %d, want 2", got.status)
	}
	if got.stdout != "" {
		t.Errorf("standard output has %q", got.stdout)
	}
	if !strings.HasPrefix(got.stderr, "syncd: ") || strings.Count(got.stderr, "\n") != 1 || !strings.HasSuffix(got.stderr, "\n") {
		t.Errorf("standard error is not one line of syncd: %q", got.stderr)
	}
	for _, part := range want {
		if !strings.Contains(got.stderr, part) {
			t.Errorf("standard error lacks %q: %q", part, got.stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	got := start(t, build(t), nil, "--help", "--frobnicate")
	if got.status != 0 || got.stderr != "" || got.stdout != syncd.Help() {
		t.Errorf("--help: %+v", got)
	}
}
