package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning is returned by a Client if nobody listens on the socket.
var ErrNotRunning = errors.New("the daemon is not running")

// ErrUnknown is returned by a Client if the daemon does not know the path: it is
// older than the program that asks, or another daemon.
var ErrUnknown = errors.New("the daemon does not know")

// answerTimeout is how long a daemon may be silent before it counts as hung: it
// answers from memory, but may be stopped for a moment by its kernel's work.
const answerTimeout = 10 * time.Second

// Client asks a daemon over its control socket. It may be used concurrently.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at path, without connecting.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			return idleConn{conn}, nil
		},
		DisableKeepAlives: true, // a request per run of saructl
	}
	return c
}

// idleConn gives up on a daemon that has been silent for answerTimeout.
type idleConn struct{ net.Conn }

func (c idleConn) Read(b []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// Get asks for path, which may have a query, and decodes the reply into out. The
// error wraps ErrNotRunning if there is no daemon, ErrUnknown if it does not know
// the path, and ErrBadRequest if it does not take the parameters.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.explain(err)
	}
	return nil
}

// Stream asks for path and calls fn with each value of the reply, whose memory is
// fn's only until it returns. An error of fn ends the stream and is returned. Any
// other error means that the stream is not complete; those of Get are wrapped.
func (c *Client) Stream(ctx context.Context, path string, fn func(json.RawMessage) error) error {
	return c.stream(ctx, http.MethodGet, path, nil, fn)
}

// PostStream is Stream for what changes something. parameters may be nil.
func (c *Client) PostStream(ctx context.Context, path string, parameters url.Values, fn func(json.RawMessage) error) error {
	return c.stream(ctx, http.MethodPost, path, parameters, fn)
}

func (c *Client) stream(ctx context.Context, method, path string, parameters url.Values, fn func(json.RawMessage) error) error {
	resp, err := c.do(ctx, method, path, parameters)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var line json.RawMessage
		err := dec.Decode(&line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c.explain(err)
		}
		if err := fn(line); err != nil {
			return err
		}
	}
	if text := resp.Trailer.Get(errorTrailer); text != "" {
		return fmt.Errorf("%s broke off: %s", path, text)
	}
	return nil
}

// do sends the request, with a form if there are parameters, and returns a reply
// of status 200.
func (c *Client) do(ctx context.Context, method, path string, parameters url.Values) (*http.Response, error) {
	var body io.Reader
	if parameters != nil {
		body = strings.NewReader(parameters.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return nil, err
	}
	if parameters != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read the reply to %s: %w", path, err)
	}
	return nil, refusal(resp, path, text)
}

// refusal is the error of a reply of another status than 200.
func refusal(resp *http.Response, path string, text []byte) error {
	path, _, _ = strings.Cut(path, "?")
	var e errorReply
	known := json.Unmarshal(text, &e) == nil && e.Error != "" // else the daemon's own code has not answered
	switch {
	case known && resp.StatusCode == http.StatusBadRequest:
		if rest, ok := strings.CutPrefix(e.Error, ErrBadRequest.Error()+": "); ok {
			return fmt.Errorf("%w: %s", ErrBadRequest, rest)
		}
		return fmt.Errorf("%w: %s", ErrBadRequest, e.Error)
	case known:
		return errors.New(e.Error)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w %s", ErrUnknown, path)
	}
	return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
}

// explain says what an error of the connection means to an operator.
func (c *Client) explain(err error) error {
	// "Get "http://localhost/…": " would mislead.
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err // the caller's doing
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use %s: run as root", c.path)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer from %s within %s: the daemon hangs", c.path, answerTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%s: the answer breaks off: the daemon has stopped meanwhile", c.path)
	}
	return fmt.Errorf("ask %s: %w", c.path, err)
}
