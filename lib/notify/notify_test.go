package notify

import (
	"context"
	"net"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"
)

// listen plays systemd and returns what it is told.
func listen(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestMessages(t *testing.T) {
	received := listen(t)
	tests := []struct {
		name string
		send func() error
		want string
	}{
		{"ready", func() error { return Ready("2 peers\nsynced") }, `^READY=1\nSTATUS=2 peers synced$`},
		{"status", func() error { return Status("joining") }, `^STATUS=joining$`},
		{"reloading", Reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`},
		{"stopping", Stopping, `^STOPPING=1$`},
	}
	for _, tt := range tests {
		if err := tt.send(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if got := received(); !regexp.MustCompile(tt.want).MatchString(got) {
			t.Errorf("%s: sent %q, want %s", tt.name, got, tt.want)
		}
	}
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	if err := Ready("x"); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if err := Watchdog(t.Context(), func() bool { t.Error("asked without a watchdog"); return true }); err != nil {
		t.Errorf("Watchdog: %v", err)
	}
}

func TestWatchdog(t *testing.T) {
	received := listen(t)
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	done := make(chan error, 1)
	// Healthy the first and the third time.
	go func() { done <- Watchdog(ctx, func() bool { return asked.Add(1) != 2 }) }()
	for range 2 {
		if got := received(); got != "WATCHDOG=1" {
			t.Errorf("sent %q", got)
		}
	}
	if n := asked.Load(); n < 3 {
		t.Errorf("two signs of life after %d questions, want at least 3", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watchdog: %v", err)
	}
}
