package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"saru/lib/control"
)

// pictures serves one status after the other, and ends the watch after the last.
func pictures(t *testing.T, all ...control.Status) (ctx context.Context, socket string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, serve(t, func(s *control.Server) {
		s.HandleJSON(control.PathStatus, func(context.Context, url.Values) (any, error) {
			if len(all) == 0 {
				cancel() // the last one has been shown
				return nil, errors.New("enough")
			}
			next := all[0]
			all = all[1:]
			return next, nil
		})
	})
}

func TestWatch(t *testing.T) {
	good, bad := goodStatus(), goodStatus()
	bad.Alarms = []string{"filter: gone"}
	for _, tt := range []struct {
		name string
		all  []control.Status
		json string
		code int
		want string
	}{
		{"ends well", []control.Status{bad, good}, "", exitGood, "TIME\n" + strings.Replace(goodText, "alarms   none", "ALARM    filter: gone", 1) + "\nTIME\n" + goodText},
		{"ends badly", []control.Status{good, bad}, "", exitBad, "TIME\n" + goodText + "\nTIME\n" + strings.Replace(goodText, "alarms   none", "ALARM    filter: gone", 1)},
	} {
		ctx, path := pictures(t, tt.all...)
		var stdout, stderr bytes.Buffer
		code := run(ctx, []string{"status", "--watch", "--interval", "100ms", "--control", path}, &stdout, &stderr)
		got := regexp.MustCompile(`(?m)^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d$`).ReplaceAllString(stdout.String(), "TIME")
		if diff := cmp.Diff(tt.want, got); diff != "" || code != tt.code || stderr.Len() > 0 {
			t.Errorf("%s: status %d, %q, output (-want +got):\n%s", tt.name, code, stderr.String(), diff)
		}
	}

	ctx, path := pictures(t, good, bad)
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"status", "--json", "--watch", "--interval", "100ms", "--control", path}, &stdout, &stderr)
	if n := strings.Count(stdout.String(), "\n"); n != 2 || code != exitBad || !strings.HasPrefix(stdout.String(), `{"node":"d1"`) {
		t.Errorf("json: status %d, %s", code, stdout.String())
	}
}

// TestWatchRestart watches a daemon that is not there yet.
func TestWatchRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saru.sock")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var s control.Server
	s.HandleJSON(control.PathStatus, func(context.Context, url.Values) (any, error) { return goodStatus(), nil })
	served := make(chan error, 1)
	out := &notice{text: "saru is not running", seen: func() {
		if len(served) > 0 || ctx.Err() != nil {
			return
		}
		l, err := control.Listen(path)
		if err != nil {
			served <- err
			return
		}
		go func() { served <- s.Serve(ctx, l) }()
	}}
	both := &notice{text: "alarms   none", seen: cancel}
	if code := run(ctx, []string{"status", "--watch", "--interval", "100ms", "--control", path}, io.MultiWriter(out, both), io.Discard); code != exitGood {
		t.Errorf("status %d: %s", code, out.String())
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestScreen draws pictures over each other.
func TestScreen(t *testing.T) {
	term, master := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(term.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 4, Col: 10}); err != nil {
		t.Fatal(err)
	}
	var stdout io.Writer = term
	s := &screen{out: stdout, terminal: terminal(stdout)}
	for _, text := range []string{"one\ntwo\nthree\n", "a line that is long\ntwo\nthree\nfour\n"} {
		if err := s.show(text); err != nil {
			t.Fatal(err)
		}
	}
	const end = "\x1b[K\r\n" // a terminal returns the carriage by itself
	want := "\x1b[Hone" + end + "two" + end + "three" + end + "\x1b[J" + "\x1b[Ha line th…" + end + "two" + end + "… 2 more …" + end + "\x1b[J"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(master, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if terminal(&bytes.Buffer{}) != nil {
		t.Error("a buffer is a terminal")
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if terminal(file) != nil {
		t.Error("/dev/null is a terminal")
	}
}
