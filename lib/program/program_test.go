package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/lib/config"
	"saru/lib/control"
	"saru/lib/logging"
	"saru/lib/mcast"
)

// ending is how a program ends.
type ending struct {
	Status         int
	Stdout, Stderr string
}

func TestEndings(t *testing.T) {
	failed := errors.New("a\nb")
	for _, tt := range []struct {
		name string
		do   func(stdout, stderr io.Writer) int
		want ending
	}{
		{"failed", func(_, e io.Writer) int { return Fail("x", e, failed) }, ending{1, "", "x: a; b\n"}},
		{"environment", func(_, e io.Writer) int { return Fail("x", e, fmt.Errorf("c: %w", Environment(failed))) }, ending{2, "", "x: c: a; b\n"}},
		{"help", func(o, e io.Writer) int { return Unparsed("x", config.ErrHelp, "help\n", o, e) }, ending{0, "help\n", ""}},
		{"usage", func(o, e io.Writer) int { return Unparsed("x", config.Usagef("--a: b"), "help\n", o, e) }, ending{2, "", "x: --a: b\n"}},
		{"good", func(o, e io.Writer) int { return Report("x", []string{"w"}, nil, o, e) }, ending{0, "warning: w\nx: configuration and kernel are good\n", ""}},
		{"findings", func(o, e io.Writer) int { return Report("x", nil, []error{failed, failed}, o, e) }, ending{1, "a; b\na; b\n", "x: --check: findings: 2\n"}},
		{"no log", func(_, e io.Writer) int {
			return WithLog(logging.Options{Facility: "/nonexistent/x", Tag: "x", Stderr: e}, func(*slog.Logger, io.Closer) error { return nil })
		}, ending{2, "", "x: --log_facility: open log file: open /nonexistent/x: no such file or directory\n"}},
		{"said once", func(_, e io.Writer) int {
			return WithLog(logging.Options{Facility: logging.Terminal, Tag: "x", Stderr: e}, func(*slog.Logger, io.Closer) error { return failed })
		}, ending{1, "", "x: a; b\n"}},
	} {
		var stdout, stderr bytes.Buffer
		status := tt.do(&stdout, &stderr)
		if diff := cmp.Diff(tt.want, ending{status, stdout.String(), stderr.String()}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// A log file has the reason as well.
func TestEndingInFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	var stderr bytes.Buffer
	status := WithLog(logging.Options{Facility: name, Tag: "x", Stderr: &stderr}, func(log *slog.Logger, file io.Closer) error {
		log.Info("begun")
		if err := os.Rename(name, name+".1"); err != nil {
			return err
		}
		if err := ReopenLog(file); err != nil {
			return err
		}
		return Environment(errors.New("no"))
	})
	old, err := os.ReadFile(name + ".1")
	if err != nil || !strings.Contains(string(old), "begun") {
		t.Errorf("the log that was moved away has %q (%v)", old, err)
	}
	now, err := os.ReadFile(name)
	if err != nil || !strings.Contains(string(now), "x stops error=no") || status != ExitUsage || stderr.String() != "x: no\n" {
		t.Errorf("status %d, standard error %q, log %q (%v)", status, stderr.String(), now, err)
	}
}

func TestAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "x.sock")
	calls := 0
	do := func() error { calls++; return nil }
	if err := Alone(path, do); err != nil || calls != 1 {
		t.Fatalf("nobody runs: %v, %d calls", err, calls)
	}
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Alone(path, do); !errors.Is(err, ErrRuns) || calls != 1 {
		t.Errorf("somebody runs: %v, %d calls", err, calls)
	}
	// As SIGKILL leaves it.
	l.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := Alone(path, do); err != nil || calls != 2 {
		t.Errorf("somebody was killed: %v, %d calls", err, calls)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	failed := errors.New("failed")
	if err := Alone(path, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v, want that of the work", err)
	}
	if err := Alone("/proc/none/x.sock", do); err == nil || errors.Is(err, ErrRuns) || calls != 2 {
		t.Errorf("no folder: %v, %d calls", err, calls)
	}
}

// All sockets are opened, or none stays.
func TestOpenSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	group := mcast.Config{Interfaces: []string{"lo"}, Group: netip.MustParseAddrPort("224.0.0.81:18850")}
	s, err := OpenSockets(t.Context(), path, "127.0.0.1:0", group)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Conn.Links()) != 1 || s.Metrics == nil {
		t.Errorf("opened: %+v", s)
	}
	taken := s.Metrics.Addr().String()
	for _, tt := range []struct {
		path, metrics string
		group         mcast.Config
		want          string
	}{
		{path, "", group, "--control " + path},
		{path + "2", taken, group, "--metrics: "},
		{path + "2", "", mcast.Config{Interfaces: []string{"nosuch0"}, Group: group.Group}, "--interface: "},
	} {
		_, err := OpenSockets(t.Context(), tt.path, tt.metrics, tt.group)
		if e := (environmentError{}); !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v (%T), want one of the environment with %q", err, err, tt.want)
		}
		if _, err := os.Stat(path + "2"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the socket stayed: %v", tt.want, err)
		}
	}
	s.Close()
	s.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

// Each SIGHUP reloads; a refusal is logged.
func TestReloads(t *testing.T) {
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	hup, stop := CatchReload()
	defer stop()
	done := make(chan error, 1)
	reloaded := make(chan bool)
	n := 0
	go func() {
		done <- Reloads(ctx, hup, slog.New(slog.NewTextHandler(&log, nil)), "works", func() error {
			n++
			reloaded <- true
			if n == 2 {
				return errors.New("bad\nfile")
			}
			return nil
		})
	}()
	for range 2 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-reloaded:
		case <-time.After(5 * time.Second):
			t.Fatal("SIGHUP was not handled")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the end of the context is an error: %v", err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "reload refused") || !strings.Contains(got, "bad; file") {
		t.Errorf("log: %q", got)
	}
}

func TestLoadKeys(t *testing.T) {
	group := netip.MustParseAddrPort("224.0.0.81:8850")
	name := filepath.Join(t.TempDir(), "keys")
	if _, err := LoadKeys(name, "x", group); err == nil || !strings.Contains(err.Error(), "saructl genkey") {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(name, []byte("3 "+strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := LoadKeys(name, "x", group)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadKeys(name, "y", group)
	if err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 32)
	a.Sign(message)
	if a.Signer() != 3 || a.Verify(3, message) != nil || b.Verify(3, message) == nil {
		t.Error("a protocol's keys are not its own")
	}
}
