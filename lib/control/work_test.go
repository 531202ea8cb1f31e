package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWork checks that values come while the work goes on.
func TestWork(t *testing.T) {
	var s Server
	seen := make(chan struct{})
	s.HandleWork("POST /work", func(ctx context.Context, q url.Values, emit func(any) error) error {
		if err := emit(q.Get("peer")); err != nil {
			return err
		}
		select {
		case <-seen: // the client has the first value
			return emit("end")
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	s.HandleWork("POST /refused", func(context.Context, url.Values, func(any) error) error { return ErrBadRequest })
	s.HandleWork("POST /broken", func(_ context.Context, _ url.Values, emit func(any) error) error {
		return errors.Join(emit("some"), errors.New("peer is gone"))
	})
	stopped := make(chan error, 1)
	s.HandleWork("/silent", func(ctx context.Context, _ url.Values, emit func(any) error) error {
		err := emit("begin")
		<-ctx.Done()
		stopped <- err
		return ctx.Err()
	})
	client, _ := serve(t, &s)

	tests := []struct {
		path string
		want string
		err  string
	}{
		{"/work", `"d 2" "end"`, ""},
		{"/refused", "", "bad request: bad request"},
		{"/broken", `"some"`, "/broken broke off: peer is gone"},
		{"/silent", "", "the daemon does not know /silent"}, // it is no POST
	}
	for _, tt := range tests {
		var got []string
		err := client.PostStream(t.Context(), tt.path, url.Values{"peer": {"d 2"}}, func(line json.RawMessage) error {
			if got = append(got, string(line)); tt.path == "/work" && len(got) == 1 {
				close(seen)
			}
			return nil
		})
		message := ""
		if err != nil {
			message = err.Error()
		}
		if s := strings.Join(got, " "); s != tt.want || message != tt.err {
			t.Errorf("%s: %s and error %q, want %s and %q", tt.path, s, message, tt.want, tt.err)
		}
	}
	if err := client.Stream(t.Context(), "/work", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("GET of a POST: error %v, want ErrUnknown", err)
	}

	// A handler that says nothing notices as well that its client leaves.
	enough := errors.New("enough")
	if err := client.Stream(t.Context(), "/silent", func(json.RawMessage) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v, want %v", err, enough)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Errorf("emit: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the handler goes on after its client has left")
	}
}

// TestAlive counts the ticks after which a silent handler is shown to be at work.
func TestAlive(t *testing.T) {
	w := httptest.NewRecorder()
	p := &promptWriter{lines: newLineWriter(w)}
	want := func(when, text string) {
		t.Helper()
		if got := w.Body.String(); got != text {
			t.Errorf("%s: sent %q, want %q", when, got, text)
		}
	}
	ticks := int(aliveInterval / promptInterval)
	for range ticks - 1 {
		p.tick()
	}
	want("silent for less", "")
	p.tick()
	want("silent for long", "\n")
	if err := p.emit(1); err != nil {
		t.Fatal(err)
	}
	want("emitted", "\n")
	p.tick()
	want("a tick later", "\n1\n")
	for range ticks {
		p.tick()
	}
	want("silent again", "\n1\n\n")
}

// TestForm checks what is taken as parameters.
func TestForm(t *testing.T) {
	var s Server
	s.HandleWork("POST /echo", func(_ context.Context, q url.Values, emit func(any) error) error { return emit(len(q.Get("x"))) })
	client, _ := serve(t, &s)
	for n, want := range map[int]string{0: "0", 400 << 10: "409600", maxForm: "bad request"} {
		var got string
		err := client.PostStream(t.Context(), "/echo", url.Values{"x": {strings.Repeat("1", n)}}, func(line json.RawMessage) error {
			got = string(line)
			return nil
		})
		if errors.Is(err, ErrBadRequest) {
			got, err = "bad request", nil
		}
		if got != want || err != nil {
			t.Errorf("parameter of %d bytes: %q (%v), want %q", n, got, err, want)
		}
	}
	if err := client.PostStream(t.Context(), "/echo?x=1", nil, func(line json.RawMessage) error {
		if string(line) != "1" {
			t.Errorf("parameter in the address: %s", line)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestBreaksOff talks to a daemon that dies in the middle of its answer.
func TestBreaksOff(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := l.Addr().String()
	for answer, want := range map[string]string{
		"": path + ": the answer breaks off: the daemon has stopped meanwhile",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n": path + ": the answer breaks off: the daemon has stopped meanwhile",
		"HTTP/1.1 500 Broken\r\nContent-Length: 2\r\n\r\nno":                "500 Broken: no",
	} {
		served := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, err = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, answer)
				conn.Close()
			}
			served <- err
		}()
		err := NewClient(path).Stream(t.Context(), "/x", func(json.RawMessage) error { return nil })
		if err == nil || err.Error() != want {
			t.Errorf("answer %q: error %v, want %s", answer, err, want)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
