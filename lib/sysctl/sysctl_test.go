package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// fakeRoot has files as the kernel shows them.
func fakeRoot(t *testing.T) (root, statePath string) {
	t.Helper()
	root = t.TempDir()
	set(t, root, map[string]string{
		"net/ipv4/vs/sync_threshold": "3\t50\n", "net/ipv4/vs/sync_version": "1\n", "net/ipv4/vs/backup_only": "0\n",
		"kernel/random/boot_id": "one\n",
	})
	return root, filepath.Join(t.TempDir(), "run", "saru", "sysctl.json")
}

func set(t *testing.T, root string, values map[string]string) {
	t.Helper()
	for name, v := range values {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(v), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func value(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var wanted = []Setting{{"net/ipv4/vs/sync_threshold", "0 0"}, {"net/ipv4/vs/sync_version", " 1 "}}

func TestApplyAndRestore(t *testing.T) {
	root, path := fakeRoot(t)
	s := Open(root, path)
	want := []Change{{"net/ipv4/vs/sync_threshold", "3\t50", "0 0"}}
	if got, err := s.Check(wanted); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("Check: %v, %v", got, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("Check has written a state file")
	}
	if got, err := s.Apply(wanted); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("Apply: %v, %v", got, err)
	}
	if v := value(t, root, wanted[0].Name); v != "0 0\n" {
		t.Errorf("value %q", v)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v", st, err)
	}
	if got, err := s.Apply(wanted); err != nil || got != nil {
		t.Errorf("second Apply: %v, %v", got, err)
	}
	if got, err := s.Restore(); err != nil || cmp.Diff([]Change{{wanted[0].Name, "0 0", "3\t50"}}, got) != "" {
		t.Errorf("Restore: %v, %v", got, err)
	}
	if v := value(t, root, wanted[0].Name); v != "3\t50\n" {
		t.Errorf("value %q", v)
	}
	if got, err := s.Restore(); err != nil || got != nil {
		t.Errorf("second Restore: %v, %v", got, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestFirstValueSurvives kills the process (a new Store) and applies other settings: what was there first comes back.
func TestFirstValueSurvives(t *testing.T) {
	root, path := fakeRoot(t)
	for _, v := range []string{"0 0", "1 2", "0 0"} {
		if _, err := Open(root, path).Apply([]Setting{{"net/ipv4/vs/sync_threshold", v}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(root, path).Apply([]Setting{{"net/ipv4/vs/sync_version", "0"}}); err != nil {
		t.Fatal(err)
	}
	got, err := Open(root, path).Restore()
	want := []Change{{"net/ipv4/vs/sync_version", "0", "1"}, {"net/ipv4/vs/sync_threshold", "0 0", "3\t50"}}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestOtherBoot(t *testing.T) {
	root, path := fakeRoot(t)
	if _, err := Open(root, path).Apply(wanted); err != nil {
		t.Fatal(err)
	}
	set(t, root, map[string]string{"kernel/random/boot_id": "two", wanted[0].Name: "7 70"})
	if got, err := Open(root, path).Restore(); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if v := value(t, root, wanted[0].Name); v != "7 70" {
		t.Errorf("value of this boot was replaced: %q", v)
	}
}

func TestMissingAndGone(t *testing.T) {
	root, path := fakeRoot(t)
	s := Open(root, path)
	both := []Setting{{"net/ipv4/vs/no_such", "1"}, wanted[0]}
	got, err := s.Check(both)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no_such") || len(got) != 1 {
		t.Errorf("Check: %v, %v", got, err)
	}
	if got, err := s.Apply(both); !errors.Is(err, fs.ErrNotExist) || got != nil {
		t.Errorf("Apply: %v, %v", got, err)
	}
	if v := value(t, root, wanted[0].Name); v != "3\t50\n" {
		t.Errorf("half of the settings were applied: %q", v)
	}
	if _, err := s.Apply(wanted); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "net")); err != nil { // the module was unloaded
		t.Fatal(err)
	}
	if got, err := s.Restore(); err != nil || len(got) != 0 {
		t.Errorf("Restore: %v, %v", got, err)
	}
	for _, name := range []string{"../../etc/passwd", "/etc/passwd", ""} {
		if _, err := s.Check([]Setting{{name, "x"}}); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
}

func TestDamagedState(t *testing.T) {
	root, path := fakeRoot(t)
	set(t, "/", map[string]string{path: "{"})
	s := Open(root, path)
	if _, err := s.Apply(wanted); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Apply: %v", err)
	}
	if v := value(t, root, wanted[0].Name); v != "3\t50\n" {
		t.Errorf("changed without memory: %q", v)
	}
	if _, err := s.Restore(); err == nil {
		t.Error("Restore: no error")
	}
}

func TestStateCannotBeWritten(t *testing.T) {
	root, _ := fakeRoot(t)
	s := Open(root, filepath.Join(root, "kernel/random/boot_id", "state")) // a file in the place of the folder
	if _, err := s.Apply(wanted); err == nil {
		t.Error("no error")
	}
	if v := value(t, root, wanted[0].Name); v != "3\t50\n" {
		t.Errorf("changed without memory: %q", v)
	}
}

// TestRealKernel uses parameters of a network namespace: one with two words, one that the kernel refuses to set.
func TestRealKernel(t *testing.T) {
	nstest.New(t)
	s := Open(DefaultRoot, filepath.Join(t.TempDir(), "state"))
	const ports = "net/ipv4/ip_local_port_range"
	before := value(t, DefaultRoot, ports)
	got, err := s.Apply([]Setting{{ports, "20000 30000"}, {"net/ipv4/ip_forward", "1"}})
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if diff, err := s.Check([]Setting{{ports, "20000\t30000"}}); err != nil || diff != nil {
		t.Errorf("%v, %v", diff, err)
	}
	got, err = s.Apply([]Setting{{ports, "5 4"}}) // the wrong way round
	if err == nil || !strings.Contains(err.Error(), ports) || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	if after := value(t, DefaultRoot, ports); after != before {
		t.Errorf("%q, before %q", after, before)
	}
}
