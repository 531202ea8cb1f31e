package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve runs s on a socket until the test ends and returns a client for it.
func serve(t *testing.T, s *Server) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "test.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind (%v)", err)
		}
	})
	return NewClient(path), path
}

func TestJSON(t *testing.T) {
	var s Server
	want := SyncStatus{Node: "d1", Synced: true, Peers: []SyncPeer{{Node: "d2", Incarnation: "00000000000000ff", Sequence: 7}}, Counters: NewSyncCounter()}
	s.HandleJSON(PathSyncStatus, func(context.Context, url.Values) (any, error) { return want, nil })
	s.HandleJSON("/bad", func(_ context.Context, q url.Values) (any, error) {
		return nil, fmt.Errorf("%w: x is %q", ErrBadRequest, q.Get("x"))
	})
	s.HandleJSON("/unencodable", func(context.Context, url.Values) (any, error) { return func() {}, nil })
	client, _ := serve(t, &s)

	var got SyncStatus
	if err := client.Get(t.Context(), PathSyncStatus, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	for path, want := range map[string]string{
		"/bad?x=a%0Ab": `bad request: x is "a\nb"`,
		"/unencodable": "json: unsupported type: func()",
		"/nowhere?x=1": "the daemon does not know /nowhere",
	} {
		if err := client.Get(t.Context(), path, &got); err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", path, err, want)
		}
	}
}

func TestStream(t *testing.T) {
	const many = 100_000 // some megabytes: more than all buffers together
	var s Server
	s.HandleStream("/all", func(_ context.Context, _ url.Values, emit func(any) error) error {
		for i := range many {
			if err := emit(Connection{Client: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	s.HandleStream("/none", func(context.Context, url.Values, func(any) error) error { return nil })
	s.HandleStream("/refused", func(context.Context, url.Values, func(any) error) error {
		return fmt.Errorf("%w: nonsense", ErrBadRequest)
	})
	s.HandleStream("/broken", func(_ context.Context, _ url.Values, emit func(any) error) error {
		for i := range many {
			if err := emit(i); err != nil {
				return err
			}
		}
		return errors.New("table is gone")
	})
	gone := make(chan error, 1)
	s.HandleStream("/endless", func(ctx context.Context, _ url.Values, emit func(any) error) error {
		for {
			if err := emit(1); err != nil {
				gone <- err
				return err
			}
		}
	})
	client, _ := serve(t, &s)

	stop := errors.New("enough")
	tests := []struct {
		path string
		want int
		err  string
	}{
		{"/all", many, ""},
		{"/none", 0, ""},
		{"/refused", 0, "bad request: nonsense"},
		{"/broken", many, "/broken broke off: table is gone"},
	}
	for _, tt := range tests {
		n := 0
		err := client.Stream(t.Context(), tt.path, func(json.RawMessage) error { n++; return nil })
		message := ""
		if err != nil {
			message = err.Error()
		}
		if message != tt.err || n != tt.want {
			t.Errorf("%s: %d values and error %q, want %d and %q", tt.path, n, message, tt.want, tt.err)
		}
	}
	if err := client.Stream(t.Context(), "/endless", func(json.RawMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("/endless: error %v, want %v", err, stop)
	}
	select {
	case <-gone: // the daemon's side has noticed
	case <-time.After(5 * time.Second):
		t.Error("the handler goes on after its client has left")
	}
}

func TestListen(t *testing.T) {
	t.Run("mode", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("mode %o, want 600", got)
		}
		if _, err := Listen(path); !errors.Is(err, ErrInUse) {
			t.Errorf("second Listen: error %v, want ErrInUse", err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false) // as after SIGKILL
		old.Close()
		if err := NewClient(path).Get(t.Context(), "/", nil); !errors.Is(err, ErrNotRunning) {
			t.Errorf("client: error %v, want ErrNotRunning", err)
		}
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	t.Run("no socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Listen(path); err == nil {
			l.Close()
			t.Error("a file was replaced")
		}
		if b, err := os.ReadFile(path); string(b) != "precious" {
			t.Errorf("the file is %q (%v)", b, err)
		}
	})
}

// TestClientExplains checks the lines that an operator sees.
func TestClientExplains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no.sock")
	err := NewClient(path).Get(t.Context(), "/", nil)
	if want := "the daemon is not running: nobody listens on " + path; !errors.Is(err, ErrNotRunning) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// TestServeEndsHandlers checks that a handler that waits does not keep the daemon
// from stopping, and that Serve waits for it.
func TestServeEndsHandlers(t *testing.T) {
	var s Server
	begun, ended := make(chan struct{}), false
	s.HandleJSON("/wait", func(ctx context.Context, _ url.Values) (any, error) {
		close(begun)
		<-ctx.Done()
		ended = true
		return nil, ctx.Err()
	})
	l, err := Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Serve(ctx, l) }()
	client := make(chan error, 1)
	go func() { client <- NewClient(l.Addr().String()).Get(t.Context(), "/wait", nil) }()
	<-begun
	cancel()
	if err := <-done; err != nil || !ended {
		t.Errorf("Serve returned %v, handler ended: %v", err, ended)
	}
	if err := <-client; err == nil {
		t.Error("the client got a reply")
	}
}

func TestFilter(t *testing.T) {
	for _, s := range []string{"192.0.2.1/32", "192.0.2.0/24", "192.0.2.1:80", "[2001:db8::1]:80", ":80", "2001:db8::/32", ""} {
		f, err := ParseEndpointFilter(s)
		if err != nil || f.String() != s {
			t.Errorf("%q is read as %q (%v)", s, f, err)
		}
	}
	for _, s := range []string{"x", "192.0.2.1/33", "192.0.2.1:x", ":0", ":65536", "1.2.3", "fe80::1%eth0", "/24"} {
		if f, err := ParseEndpointFilter(s); err == nil {
			t.Errorf("%q is read as %q, want an error", s, f)
		}
	}
	q, err := url.ParseQuery("client=192.0.2.0/24&virtual=:80&protocol=TCP")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseConnectionFilter(q)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseConnectionFilter(f.Query())
	if err != nil || again != f {
		t.Errorf("%v became %v (%v)", f, again, err)
	}
	c, v, r := netip.MustParseAddrPort("192.0.2.9:1234"), netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("10.0.0.1:8080")
	if !f.MatchEndpoints(c, v, r) || f.MatchEndpoints(v, v, r) || f.MatchEndpoints(c, c, r) {
		t.Error("endpoints are selected wrongly")
	}
	if !f.MatchNames("tcp", "ESTABLISHED", "d1") || f.MatchNames("udp", "UDP", "d1") {
		t.Error("names are selected wrongly")
	}
	if _, err := ParseConnectionFilter(url.Values{"clinet": {"x"}}); !errors.Is(err, ErrBadRequest) || !strings.Contains(err.Error(), "clinet") {
		t.Errorf("unknown filter: error %v", err)
	}
}
