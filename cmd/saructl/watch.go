package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watch prints the status again and again until ctx ends. A daemon that does not
// answer is a part of the picture: it may be restarted meanwhile. The result is that
// of the last picture.
func (a *app) watch(ctx context.Context, interval time.Duration) error {
	s := &screen{out: a.out, terminal: terminal(a.out)}
	next := time.NewTicker(interval)
	defer next.Stop()
	var last error
	for {
		var picture bytes.Buffer
		if !a.json {
			fmt.Fprintf(&picture, "%s\n", time.Now().Format(time.DateTime))
		}
		good, err := a.status(ctx, &picture)
		if ctx.Err() != nil {
			return last
		}
		switch {
		case err != nil:
			last = bad()
			if a.json {
				fmt.Fprintf(a.errOut, "saructl: %v\n", err)
			} else {
				fmt.Fprintf(&picture, "%s\n", printable(err.Error()))
			}
		case good:
			last = nil
		default:
			last = bad()
		}
		if a.json {
			_, err = a.out.Write(picture.Bytes())
		} else {
			err = s.show(picture.String())
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return last
		case <-next.C:
		}
	}
}

// screen shows one text after the other: on a terminal in each other's place,
// otherwise with an empty line between them.
type screen struct {
	out      io.Writer
	terminal *os.File // nil: out is none
	begun    bool
}

// Control sequences of terminals (ECMA-48): cursor to the upper left corner; clear
// from the cursor to the end of the line, and of the screen.
const (
	cursorHome   = "\x1b[H"
	clearLine    = "\x1b[K"
	clearToEnd   = "\x1b[J"
	defaultRows  = 24
	defaultWidth = 80
)

func (s *screen) show(text string) error {
	begun := s.begun
	s.begun = true
	if s.terminal == nil {
		if begun {
			text = "\n" + text
		}
		_, err := io.WriteString(s.out, text)
		return err
	}
	rows, width := defaultRows, defaultWidth
	if size, err := unix.IoctlGetWinsize(int(s.terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 1 && size.Col > 0 {
		rows, width = int(size.Row), int(size.Col)
	}
	var b strings.Builder
	b.WriteString(cursorHome)
	for _, line := range fit(text, rows-1, width) {
		b.WriteString(line + clearLine + "\n")
	}
	b.WriteString(clearToEnd)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// fit returns the lines of text that a screen has room for. What is cut off is
// mentioned: a line that wraps, or a screen that scrolls, would spoil the next
// picture.
func fit(text string, rows, width int) []string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) > rows {
		lines = append(lines[:rows-1], fmt.Sprintf("… %d more lines", len(lines)-rows+1))
	}
	for i, line := range lines {
		if r := []rune(line); len(r) > width {
			lines[i] = string(r[:width-1]) + "…"
		}
	}
	return lines
}
