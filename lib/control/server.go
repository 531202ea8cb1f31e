package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// writeTimeout bounds every write to a client that has stopped reading.
	writeTimeout = 10 * time.Second
	// shutdownTimeout is how long running requests may go on when the daemon stops.
	shutdownTimeout = time.Second
	// streamBuffer is how much of a stream is collected before it is sent.
	streamBuffer = 64 << 10
	// maxForm bounds the parameters of a POST: a list of all 65,536 buckets that
	// there can be has 400 KiB.
	maxForm = 1 << 20
	// errorTrailer is the HTTP trailer by which a stream says that it broke off.
	errorTrailer = "Saru-Error"
)

// ErrBadRequest makes a request fail for what the client asked (status 400).
// Handlers wrap it.
var ErrBadRequest = errors.New("bad request")

// errorReply is the body of a reply other than 200.
type errorReply struct {
	Error string `json:"error"`
}

// Server answers requests on a control socket. Its zero value has no handlers.
// All handlers are added before Serve is called.
type Server struct {
	mux http.ServeMux
}

// HandleJSON answers requests for pattern, a path ("/sync/status"; GET) or a
// method and a path ("POST /sync/flush"), with what fn returns. query holds the
// parameters of the address, and those in the form of a POST. fn may be called
// concurrently; its context ends when the client goes away or the server stops.
func (s *Server) HandleJSON(pattern string, fn func(ctx context.Context, query url.Values) (any, error)) {
	s.handle(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r.Context(), r.Form)
		var body []byte
		if err == nil {
			body, err = json.Marshal(v)
		}
		if err != nil {
			replyError(w, err)
			return
		}
		setDeadline(w)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(body, '\n')) // an error means that the client is gone
	})
}

// HandleStream answers requests for pattern (as in HandleJSON) with every value
// that fn emits, one a line. They are collected and sent together. emit returns an
// error if the client is gone; fn returns it then.
func (s *Server) HandleStream(pattern string, fn func(ctx context.Context, query url.Values, emit func(any) error) error) {
	s.handle(pattern, func(w http.ResponseWriter, r *http.Request) {
		out := newLineWriter(w)
		out.end(fn(r.Context(), r.Form, func(v any) error {
			if err := r.Context().Err(); err != nil {
				return err
			}
			return out.emit(v)
		}))
	})
}

// HandleWork is HandleStream for what takes time: a value is at the client within
// a fifth of a second, and while there is none, empty lines tell it that fn is at
// work. emit may be called concurrently, but not after fn has returned.
func (s *Server) HandleWork(pattern string, fn func(ctx context.Context, query url.Values, emit func(any) error) error) {
	s.handle(pattern, func(w http.ResponseWriter, r *http.Request) {
		out := &promptWriter{lines: newLineWriter(w)}
		err := out.during(r.Context(), func() error {
			return fn(r.Context(), r.Form, func(v any) error {
				if err := r.Context().Err(); err != nil {
					return err
				}
				return out.emit(v)
			})
		})
		out.lines.end(err)
	})
}

// handle calls fn with the request's parameters in its Form.
func (s *Server) handle(pattern string, fn http.HandlerFunc) {
	s.mux.HandleFunc(method(pattern), func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			replyError(w, fmt.Errorf("%w: read the parameters: %w", ErrBadRequest, err))
			return
		}
		fn(w, r)
	})
}

// Serve answers requests until ctx ends, which is no error; it closes l. All
// handlers have returned when it returns.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Handlers end with their requests; stopping cancels those that shutdown
	// did not see off.
	handlers, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var running waitHandler
	running.next = &s.mux
	srv := &http.Server{
		Handler:           &running,
		BaseContext:       func(net.Listener) context.Context { return handlers },
		ReadHeaderTimeout: writeTimeout,
		ReadTimeout:       writeTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // clients' mistakes are told to clients
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()

	var err error
	select {
	case err = <-failed:
		err = fmt.Errorf("serve control socket: %w", err)
		srv.Close() // the listener is gone already
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		if srv.Shutdown(end) != nil {
			srv.Close() // the requests that would not end
		}
		cancel()
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = fmt.Errorf("serve control socket: %w", e)
		}
	}
	stop()
	running.wait()
	return err
}

// method adds the default method to a pattern.
func method(pattern string) string {
	if strings.Contains(pattern, " ") {
		return pattern
	}
	return "GET " + pattern
}

func replyError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if errors.Is(err, ErrBadRequest) {
		status = http.StatusBadRequest
	}
	setDeadline(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(errorReply{oneLine(err)}) // an error means that the client is gone
}

// oneLine returns err's text fit for a header and for a terminal.
func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
}
