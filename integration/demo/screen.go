package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen tells events, with a live line below them on a terminal and a line
// every few seconds elsewhere.
type screen struct {
	mu   sync.Mutex
	w    io.Writer
	live bool
	line string // what the live line shows
}

// How often the state is shown.
const (
	liveEvery = 500 * time.Millisecond
	lineEvery = 5 * time.Second
)

// newScreen asks labrun's variable whether the host's end is a terminal: in
// the guest it is a pipe always.
func newScreen(w io.Writer) *screen {
	return &screen{w: w, live: os.Getenv("LAB_TTY") != ""}
}

// say prints one line above the live line.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(s.w, format+"\n", args...)
	s.draw()
}

// follow shows status until stop is called.
func (s *screen) follow(status func() string) (stop func()) {
	every := lineEvery
	if s.live {
		every = liveEvery
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			text := status()
			if !s.live {
				s.say("%s", text)
				continue
			}
			s.mu.Lock()
			s.erase()
			s.line = text
			s.draw()
			s.mu.Unlock()
		}
	}()
	return func() {
		close(quit)
		<-ended
		s.mu.Lock()
		defer s.mu.Unlock()
		s.erase()
		s.line = ""
	}
}

func (s *screen) erase() {
	if s.live && s.line != "" {
		io.WriteString(s.w, "\r\x1b[K") //nolint:errcheck // as with Fprint: nowhere to report to
	}
}

func (s *screen) draw() {
	if s.live && s.line != "" {
		io.WriteString(s.w, s.line) //nolint:errcheck // as with Fprint: nowhere to report to
	}
}

// bar draws shares of all: # done, = running, x cut.
func bar(running, done, cut, all int) string {
	const width = 25
	part := func(n int) int { return (n*width + all - 1) / max(all, 1) }
	b := strings.Repeat("#", part(done)) + strings.Repeat("=", part(running)) + strings.Repeat("x", part(cut))
	if len(b) > width {
		b = b[len(b)-width:]
	}
	return "[" + b + strings.Repeat(" ", width-len(b)) + "]"
}
