// Package packaging checks what make install installs.
package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"saru/saru"
	"saru/syncd"
)

// daemon is a program with a configuration.
type daemon struct {
	name        string
	flags       *pflag.FlagSet
	parse       func(args []string) error
	commandLine []string // options that no file may have
}

func daemons() []daemon {
	return []daemon{
		{"syncd", syncd.Flags(), func(args []string) error { _, err := syncd.ParseOptions(args); return err }, []string{"config", "check", "cleanup"}},
		{"saru", saru.Flags(), func(args []string) error { _, err := saru.ParseOptions(args); return err }, []string{"config", "check", "cleanup", "close", "open"}},
	}
}

// TestConfiguration reads the packaged configurations as they are, and with every
// commented option in force.
func TestConfiguration(t *testing.T) {
	for _, d := range daemons() {
		t.Run(d.name, d.checkConfiguration)
	}
}

func (d daemon) checkConfiguration(t *testing.T) {
	packaged := "etc/" + d.name + ".conf"
	text, err := os.ReadFile(packaged)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.parse([]string{"--config", packaged, "--node", "d1"}); err != nil {
		t.Errorf("as it is: %v", err)
	}

	// A commented option follows its "#" at once, a comment does not.
	all := regexp.MustCompile(`(?m)^#(\w)`).ReplaceAll(text, []byte("$1"))
	without := func(name string) []byte {
		return regexp.MustCompile(`(?m)^`+name+`\b.*$`).ReplaceAll(all, nil)
	}
	for _, excluded := range []string{"key_file", "insecure"} { // one excludes the other
		file := filepath.Join(t.TempDir(), "all.conf")
		if err := os.WriteFile(file, without(excluded), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.parse([]string{"--config", file}); err != nil {
			t.Errorf("with all but %s: %v", excluded, err)
		}
	}
	d.flags.VisitAll(func(f *pflag.Flag) {
		onlyCommandLine := slices.Contains(d.commandLine, f.Name)
		if regexp.MustCompile(`(?m)^`+f.Name+`\b`).Match(all) == onlyCommandLine {
			t.Errorf("option %s: in the file is %v", f.Name, !onlyCommandLine)
		}
		// Commented options with one value show the default; 0 stands for none.
		m := regexp.MustCompile(`(?m)^#` + f.Name + ` (.*)$`).FindSubmatch(text)
		if m != nil && f.DefValue != "" && f.DefValue != "0" && string(m[1]) != f.DefValue {
			t.Errorf("option %s: the file shows %q, the default is %q", f.Name, m[1], f.DefValue)
		}
	})
}

// install runs make install-files with the paths of a test.
func install(t *testing.T, variables ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "make", append([]string{"-s", "-f", "install.mk", "install-files"}, variables...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
}

func TestInstall(t *testing.T) {
	root := t.TempDir()
	install(t, "DESTDIR="+root, "PREFIX=/usr")
	conf := filepath.Join(root, "etc/saru/syncd.conf")
	if err := os.WriteFile(conf, []byte("interface eth7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install(t, "DESTDIR="+root, "PREFIX=/usr") // an upgrade

	modes := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		modes[strings.TrimPrefix(path, root)] = info.Mode().String()
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if m := regexp.MustCompile(`@[A-Z]+@`).Find(text); m != nil {
			t.Errorf("%s: %s was not replaced", path, m)
		}
		if bytes.Contains(text, []byte(root)) {
			t.Errorf("%s has DESTDIR in it", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/etc/init.d/syncd":                              "-rwxr-xr-x",
		"/etc/init.d/saru":                               "-rwxr-xr-x",
		"/etc/init.d/saru-closed":                        "-rwxr-xr-x",
		"/etc/saru/syncd.conf":                           "-rw-r--r--",
		"/etc/saru/saru.conf":                            "-rw-r--r--",
		"/usr/lib/systemd/system/syncd.service":          "-rw-r--r--",
		"/usr/lib/systemd/system/saru.service":           "-rw-r--r--",
		"/usr/lib/systemd/system/saru-closed.service":    "-rw-r--r--",
		"/usr/share/bash-completion/completions/syncd":   "-rw-r--r--",
		"/usr/share/bash-completion/completions/saru":    "-rw-r--r--",
		"/usr/share/bash-completion/completions/saructl": "-rw-r--r--",
		"/usr/share/man/man5/syncd.conf.5":               "-rw-r--r--",
		"/usr/share/man/man5/saru.conf.5":                "-rw-r--r--",
		"/usr/share/man/man8/syncd.8":                    "-rw-r--r--",
		"/usr/share/man/man8/saru.8":                     "-rw-r--r--",
		"/usr/share/man/man8/saructl.8":                  "-rw-r--r--",
	}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("files and modes (-want +got):\n%s", diff)
	}
	if b, err := os.ReadFile(conf); string(b) != "interface eth7\n" {
		t.Errorf("the operator's configuration became %q (%v)", b, err)
	}
	for unit, start := range map[string]string{
		"syncd": "/usr/sbin/syncd", "saru": "/usr/sbin/saru", "saru-closed": "/usr/sbin/saru --log_facility - --close",
	} {
		text, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system", unit+".service"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte("\nExecStart="+start+"\n")) {
			t.Errorf("the unit of %s does not start %s", unit, start)
		}
	}

	// What was installed goes again, apart from what is the operator's.
	out, err := exec.CommandContext(t.Context(), "make", "-s", "-f", "install.mk", "uninstall", "DESTDIR="+root, "PREFIX=/usr").CombinedOutput()
	if err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	var left []string
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, root))
		}
		return err
	})
	if diff := cmp.Diff([]string{"/etc/saru/saru.conf", "/etc/saru/syncd.conf"}, left); diff != "" || err != nil {
		t.Errorf("left behind (-want +got):\n%s%v", diff, err)
	}
}
