package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"saru/lib/seal"
	wire "saru/proto/transfer"
)

// link is a connection that carries frames.
type link struct {
	ctx     context.Context
	conn    net.Conn
	end     time.Time    // of the session, or of the handshake
	in, out *seal.Stream // nil: unsigned
	limit   int          // of a payload that is read
	buf     []byte       // of the frame that was read last
	torn    bool         // a write failed: whatever follows could be taken for the rest of that frame

	received, sent uint64 // bytes
}

// readDeadline gives the next frame its time. The context is looked at afterwards: whoever ends it sets a deadline of its own, which this one may
// have overwritten.
func (l *link) readDeadline() error {
	if err := l.conn.SetReadDeadline(l.deadline()); err != nil {
		return fmt.Errorf("set deadline: %w", l.failure(err)) // closed, as the context has ended or as it is crowded out
	}
	return l.ctx.Err()
}

func (l *link) deadline() time.Time {
	if t := time.Now().Add(frameTime); t.Before(l.end) {
		return t
	}
	return l.end
}

// failure says what an error of reading or writing means.
func (l *link) failure(err error) error {
	if ctx := l.ctx.Err(); ctx != nil {
		return ctx
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe):
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// readFull reads len(b) bytes until the deadline that is set.
func (l *link) readFull(b []byte) error {
	n, err := io.ReadFull(l.conn, b)
	l.received += uint64(n)
	if err != nil {
		return l.failure(err)
	}
	return nil
}

// read reads a frame and checks its tag. The payload is valid until the next call.
func (l *link) read() (wire.Type, []byte, error) {
	if err := l.readDeadline(); err != nil {
		return 0, nil, err
	}
	if len(l.buf) < wire.HeaderLen {
		l.buf = make([]byte, 256)
	}
	if err := l.readFull(l.buf[:wire.HeaderLen]); err != nil {
		return 0, nil, fmt.Errorf("read frame: %w", err)
	}
	h, err := wire.ParseHeader(l.buf)
	if err == nil && h.Length > l.limit {
		err = wire.ErrFrame
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read frame: %w", err)
	}
	n := wire.HeaderLen + h.Length + wire.TagLen
	if n > len(l.buf) {
		b := make([]byte, max(n, min(2*len(l.buf), wire.MaxFrame)))
		copy(b, l.buf[:wire.HeaderLen])
		l.buf = b
	}
	frame := l.buf[:n]
	if err := l.readFull(frame[wire.HeaderLen:]); err != nil {
		return 0, nil, fmt.Errorf("read %s frame: %w", h.Type, err)
	}
	if l.in != nil {
		err = l.in.Open(frame)
	} else if [wire.TagLen]byte(frame[n-wire.TagLen:]) != [wire.TagLen]byte{} {
		err = wire.ErrFrame
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read %s frame: %w", h.Type, err)
	}
	return h.Type, frame[wire.HeaderLen : n-wire.TagLen], nil
}

// write signs and writes a frame that wire.EndFrame has completed.
func (l *link) write(frame []byte) error {
	if l.out != nil {
		l.out.Seal(frame)
	}
	return l.writeRaw(frame)
}

func (l *link) writeRaw(b []byte) error {
	if err := l.conn.SetWriteDeadline(l.deadline()); err != nil {
		return l.failure(err)
	}
	if l.ctx.Err() != nil {
		// What is written now is the last.
		if err := l.conn.SetWriteDeadline(time.Now().Add(stopTime)); err != nil {
			return l.failure(err)
		}
	}
	n, err := l.conn.Write(b)
	l.sent += uint64(n)
	if err != nil {
		l.torn = true
		return fmt.Errorf("write: %w", l.failure(err))
	}
	return nil
}

// send completes, signs and writes the frame that begins at the start of b.
func (l *link) send(b []byte) error {
	b, err := wire.EndFrame(b, 0)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return l.write(b)
}
