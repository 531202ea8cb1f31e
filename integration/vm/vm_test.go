package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

// entries reads an archive back: name, kind and content.
func entries(t *testing.T, b []byte) []string {
	t.Helper()
	var got []string
	r := cpio.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		line := h.Name
		switch {
		case h.Mode.IsDir():
			line += "/"
		case h.Mode&cpio.ModeType == cpio.TypeSymlink:
			line += " -> " + h.Linkname
		default:
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			line += " = " + string(text)
		}
		got = append(got, line)
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	for _, err := range []error{
		a.text("/lib/x/file", "one"),
		a.text("/usr/lib/x/file", "two"), // the same place: the first counts
		a.link("/sbin/tool", "../bin/other"),
		a.text("/library", "not under /lib"),
		a.close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"usr/", "usr/lib/", "usr/lib/x/", "usr/lib/x/file = one", "usr/sbin/", "usr/sbin/tool -> ../bin/other", "library = not under /lib"}
	if diff := cmp.Diff(want, entries(t, b.Bytes())); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

// TestTree: links are followed inside the tree, never out of it.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"usr/lib", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "usr/lib/libx.so.1.2")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"usr/lib/libx.so.1": "libx.so.1.2", "etc/alternative": "/usr/lib/libx.so.1", "etc/loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tr := tree(dir)
	for _, name := range []string{"/usr/lib/libx.so.1", "/etc/alternative"} {
		if got, err := tr.resolve(name); err != nil || got != file {
			t.Errorf("resolve(%s) = %s, %v; want %s", name, got, err, file)
		}
	}
	if got, err := tr.resolve("/etc/loop"); err == nil {
		t.Errorf("resolve of a loop = %s", got)
	}
	if got, err := tr.find("libx.so.1", libraryDirs); err != nil || got != "/usr/lib/libx.so.1" {
		t.Errorf("find = %s, %v", got, err)
	}
	if _, err := tr.find("liby.so", libraryDirs); err == nil {
		t.Error("find found what is not there")
	}
}

func TestJob(t *testing.T) {
	t.Setenv("SARU_ROUNDS", "7")
	t.Setenv("GODEBUG", "x=1")
	t.Setenv("SECRET", "no")
	cfg := Config{Kernel: "sid", Program: "/tmp/x.test", Args: []string{"-test.v=true", "-test.testlogfile=/tmp/y"}, Dir: "/src", Stdout: io.Discard}
	j := cfg.job()
	if diff := cmp.Diff([]string{"-test.v=true"}, j.Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	env := strings.Join(j.Env, "\n")
	for _, want := range []string{"SARU_ROUNDS=7", "GODEBUG=x=1", "LAB_KERNEL=sid", "LAB_OUT=/lab/out"} {
		if !strings.Contains(env, want) {
			t.Errorf("environment lacks %s:\n%s", want, env)
		}
	}
	if strings.Contains(env, "SECRET") {
		t.Error("the environment is passed whole")
	}
	if j.Program != "/lab/bin/x.test" || j.Dir != "/src" || j.Network {
		t.Errorf("job = %+v", j)
	}
}

func TestChosenModules(t *testing.T) {
	for file, want := range map[string]bool{
		"kernel/net/netfilter/ipvs/ip_vs.ko":         true,
		"kernel/net/netfilter/ipvs/ip_vs_mh.ko.xz":   true,
		"kernel/drivers/net/veth.ko.xz":              true,
		"kernel/drivers/char/virtio_console.ko":      true,
		"kernel/drivers/net/ethernet/intel/e1000.ko": false,
		"kernel/fs/xfs/xfs.ko":                       false,
	} {
		if got := chosen(file); got != want {
			t.Errorf("chosen(%s) = %v", file, got)
		}
	}
}
