package logging

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLines(t *testing.T) {
	tests := []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"plain", func(l *slog.Logger) { l.Info("table is complete") }, "info table is complete"},
		{"values", func(l *slog.Logger) {
			l.Warn("sysctl changed", "name", "a/b", "old", "3\t50", "new", "0 0", "n", 7, "d", 20*time.Millisecond, "empty", "")
		}, `warn sysctl changed name=a/b old="3\t50" new="0 0" n=7 d=20ms empty=""`},
		{"error", func(l *slog.Logger) { l.Error("join", "error", errors.New(`no "eth9"`)) }, `error join error="no \"eth9\""`},
		{"with", func(l *slog.Logger) { l.With("peer", "d2").WithGroup("g").With("a", 1).Info("x", "b", 2) }, "info x peer=d2 g.a=1 g.b=2"},
		{"group", func(l *slog.Logger) { l.Info("x", slog.Group("lag", "p50", 1.5, "p99", 3)) }, "info x lag.p50=1.5 lag.p99=3"},
		{"hostile", func(l *slog.Logger) { l.Info("a\nb", "k\nk", "v\n2026 forged line") }, `info a?b k?k="v\n2026 forged line"`},
		{"debug is off", func(l *slog.Logger) { l.Debug("x") }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			log, closer, err := New(Options{Facility: Terminal, Tag: "syncd", Stderr: &out})
			if err != nil {
				t.Fatal(err)
			}
			defer closer.Close()
			tt.log(log)
			if tt.want == "" {
				if out.Len() != 0 {
					t.Fatalf("logged %q, want nothing", out.String())
				}
				return
			}
			stamp, line, _ := strings.Cut(out.String(), " ")
			if _, err := time.Parse(time.RFC3339, stamp); err != nil {
				t.Errorf("time: %v", err)
			}
			if diff := cmp.Diff("syncd: "+tt.want+"\n", line); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSetDebug switches a log and one made from it while they are in use.
func TestSetDebug(t *testing.T) {
	var out bytes.Buffer
	log, closer, err := New(Options{Facility: Terminal, Tag: "syncd", Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	derived := log.With("peer", "d2")
	say := func(text string) {
		log.Debug(text)
		derived.Debug(text)
	}
	say("before")
	SetDebug(derived, true)
	say("during")
	SetDebug(log, false)
	say("after")
	log.Info("end")
	SetDebug(slog.New(slog.DiscardHandler), true) // of somebody else: nothing happens
	got := regexp.MustCompile(`(?m)^\S+ syncd: `).ReplaceAllString(out.String(), "")
	if want := "debug during\ndebug during peer=d2\ninfo end\n"; got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
}

// TestFile moves the log away as logrotate does.
func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "syncd.log")
	log, closer, err := New(Options{Facility: name, Debug: true, Tag: "syncd"})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("one")
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	log.Info("two")
	if err := closer.(Reopener).Reopen(); err != nil {
		t.Fatal(err)
	}
	log.Info("three")
	if err := closer.Close(); err != nil {
		t.Fatal(err)
	}
	stamp := regexp.MustCompile(`(?m)^\S+ `)
	for file, want := range map[string]string{name + ".1": "syncd: debug one\nsyncd: info two\n", name: "syncd: info three\n"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, stamp.ReplaceAllString(string(b), "")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
	if _, _, err := New(Options{Facility: filepath.Join(t.TempDir(), "no", "x.log")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder that does not exist: error %v, want ErrNotExist", err)
	}
}

func TestCheckFacility(t *testing.T) {
	for _, good := range []string{"daemon", "local0", "local7", "user", "-", "/var/log/syncd.log"} {
		if err := CheckFacility(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "nonsense", "Daemon", "local8", "log/file", "/var/log/", "/a\nb"} {
		if err := CheckFacility(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		} else if strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%q: error is not one line: %q", bad, err)
		}
	}
}

// TestNoSyslog checks the fallback where no syslog listens.
func TestNoSyslog(t *testing.T) {
	for _, name := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
		if _, err := os.Stat(name); err == nil {
			t.Logf("a syslog socket %s is present: the message goes there", name)
			return
		}
	}
	var out bytes.Buffer
	log, closer, err := New(Options{Facility: "daemon", Tag: "syncd", Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	log.Info("still here")
	if s := out.String(); !strings.HasSuffix(s, " syncd: info still here\n") || strings.Count(s, "\n") != 1 {
		t.Errorf("standard error has %q", s)
	}
	if !OnStderr(closer) {
		t.Error("OnStderr denies it")
	}
}
