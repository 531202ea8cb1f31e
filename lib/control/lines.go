package control

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// promptInterval is how long a value of HandleWork may wait to be sent: often
	// enough for a progress that a person watches, and still few writes for many
	// values.
	promptInterval = 200 * time.Millisecond
	// aliveInterval is how often a handler that has nothing to say is shown to be
	// at work. It is far below the client's answerTimeout.
	aliveInterval = 2 * time.Second
)

// lineWriter is the reply of a stream.
type lineWriter struct {
	w   http.ResponseWriter
	out deadlineWriter
	buf *bufio.Writer
	enc *json.Encoder
}

func newLineWriter(w http.ResponseWriter) *lineWriter {
	l := &lineWriter{w: w, out: deadlineWriter{w: w}}
	l.buf = bufio.NewWriterSize(&l.out, streamBuffer)
	l.enc = json.NewEncoder(l.buf)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Trailer", errorTrailer)
	return l
}

func (l *lineWriter) emit(v any) error { return l.enc.Encode(v) }

// send sends what was collected.
func (l *lineWriter) send() {
	if l.buf.Flush() == nil {
		_ = http.NewResponseController(l.w).Flush() // an error means that the client is gone, as above
	}
}

// end sends the rest and how it ended. What was emitted before an error is worth
// seeing, so only an error that comes first has a status of its own.
func (l *lineWriter) end(err error) {
	switch {
	case err == nil:
		setDeadline(l.w)
		_ = l.buf.Flush() // an error means that the client is gone
	case !l.out.begun && l.buf.Buffered() == 0:
		l.w.Header().Del("Trailer")
		replyError(l.w, err)
	default:
		_ = l.buf.Flush()
		l.w.Header().Set(errorTrailer, oneLine(err))
	}
}

// promptWriter sends what is emitted soon.
type promptWriter struct {
	mu     sync.Mutex // of lines, while during runs
	lines  *lineWriter
	silent time.Duration // since something was sent
}

func (p *promptWriter) emit(v any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines.emit(v)
}

// during runs fn and sends meanwhile what it emits.
func (p *promptWriter) during(ctx context.Context, fn func() error) error {
	ctx, stop := context.WithCancel(ctx)
	var sender sync.WaitGroup
	sender.Go(func() {
		t := time.NewTicker(promptInterval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				p.tick()
			}
		}
	})
	defer sender.Wait()
	defer stop()
	return fn()
}

func (p *promptWriter) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent += promptInterval
	if p.lines.buf.Buffered() == 0 {
		if p.silent < aliveInterval {
			return
		}
		_ = p.lines.buf.WriteByte('\n') // white space between values; an error shows when it is sent
	}
	p.lines.send()
	p.silent = 0
}

// setDeadline gives the client time for the next write. Connections that know no
// deadlines (tests') have none.
func setDeadline(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // see above
}

// deadlineWriter gives each write its own time, as a stream may be long.
type deadlineWriter struct {
	w     http.ResponseWriter
	begun bool
}

var _ io.Writer = (*deadlineWriter)(nil)

func (d *deadlineWriter) Write(b []byte) (int, error) {
	d.begun = true
	setDeadline(d.w)
	return d.w.Write(b)
}
