// Package logging writes a daemon's log: to syslog under a facility, to the
// terminal, or to a file, one readable line an event.
//
// The line is "LEVEL message key=value …"; in a file or on a terminal the time
// and the program's name stand before it, which syslog adds by itself. A daemon
// that finds no syslog logs to standard error instead, so that containers and
// rescue systems keep their logs.
package logging

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Terminal is the Facility that means standard error.
const Terminal = "-"

// Options say where a log goes.
type Options struct {
	// Facility is a name of syslog ("daemon", "local0"), Terminal, or the
	// absolute name of a file that is appended to.
	Facility string
	// Debug lets messages of level debug through. SetDebug changes it later.
	Debug bool
	// Tag is the program's name.
	Tag string
	// Stderr is where Terminal goes, and everything if there is no syslog; nil
	// means os.Stderr.
	Stderr io.Writer
}

// facilities are the names of syslog.conf(5).
var facilities = map[string]syslog.Priority{
	"kern": syslog.LOG_KERN, "user": syslog.LOG_USER, "mail": syslog.LOG_MAIL,
	"daemon": syslog.LOG_DAEMON, "auth": syslog.LOG_AUTH, "syslog": syslog.LOG_SYSLOG,
	"lpr": syslog.LOG_LPR, "news": syslog.LOG_NEWS, "uucp": syslog.LOG_UUCP,
	"cron": syslog.LOG_CRON, "authpriv": syslog.LOG_AUTHPRIV, "ftp": syslog.LOG_FTP,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2,
	"local3": syslog.LOG_LOCAL3, "local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5,
	"local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// CheckFacility returns an error that says what is allowed if s cannot be an
// Options.Facility. A file is not opened.
func CheckFacility(s string) error {
	if _, ok := facilities[s]; ok || s == Terminal {
		return nil
	}
	if filepath.IsAbs(s) && !strings.HasSuffix(s, "/") && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil
	}
	return fmt.Errorf("must be %s (terminal), /FILE or a facility of syslog: %s",
		Terminal, strings.Join(slices.Sorted(maps.Keys(facilities)), ", "))
}

// New opens a log. Close the Closer last; if it is a Reopener, call Reopen when a
// log file may have been moved away (SIGHUP).
func New(o Options) (*slog.Logger, io.Closer, error) {
	if err := CheckFacility(o.Facility); err != nil {
		return nil, nil, fmt.Errorf("log facility %q: %w", o.Facility, err)
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	level := new(slog.LevelVar)
	setDebug(level, o.Debug)
	if filepath.IsAbs(o.Facility) {
		f := &file{name: o.Facility}
		if err := f.Reopen(); err != nil {
			return nil, nil, err
		}
		return slog.New(newHandler(level, plain{w: f, tag: o.Tag}.write)), f, nil
	}
	terminal := newHandler(level, plain{w: o.Stderr, tag: o.Tag}.write)
	if o.Facility == Terminal {
		return slog.New(terminal), nopCloser{}, nil
	}
	w, err := syslog.New(facilities[o.Facility]|syslog.LOG_INFO, o.Tag)
	if err != nil {
		log := slog.New(terminal)
		log.Debug("no syslog, logging to standard error", "error", err)
		return log, nopCloser{}, nil
	}
	s := &system{w: w, fallback: plain{w: o.Stderr, tag: o.Tag}}
	return slog.New(newHandler(level, s.write)), w, nil
}

// SetDebug lets messages of level debug through from now on, or no more, in a log
// of New and in all that were made from it (With). It may be called at any time.
// Other logs stay as they are.
func SetDebug(log *slog.Logger, on bool) {
	if h, ok := log.Handler().(*handler); ok {
		setDebug(h.level, on)
	}
}

func setDebug(level *slog.LevelVar, on bool) {
	if on {
		level.Set(slog.LevelDebug)
	} else {
		level.Set(slog.LevelInfo)
	}
}

// OnStderr reports whether the log of which New returned c is standard error: by
// choice or for want of a syslog. What the program prints there would stand twice.
func OnStderr(c io.Closer) bool {
	_, ok := c.(nopCloser)
	return ok
}

// Reopener is what New returns for a file as its Closer.
type Reopener interface {
	io.Closer
	// Reopen opens the file by its name again. After an error the old one
	// stays in use.
	Reopen() error
}

// nopCloser is the Closer of a log on standard error.
type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// file is an appended file that can be opened again while it is written to.
type file struct {
	name string
	mu   sync.Mutex
	f    *os.File
}

var _ Reopener = (*file)(nil)

func (f *file) Reopen() error {
	// 0640: logs name clients; a group may be given access, the world not.
	n, err := os.OpenFile(f.name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil {
		f.f.Close() // nothing is buffered
	}
	f.f = n
	return nil
}

func (f *file) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return 0, os.ErrClosed
	}
	return f.f.Write(b)
}

func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return os.ErrClosed
	}
	err := f.f.Close()
	f.f = nil
	return err
}

// system writes to syslog, and where that fails to standard error.
type system struct {
	w        *syslog.Writer
	fallback plain
}

func (s *system) write(r slog.Record, line string) error {
	var err error
	switch {
	case r.Level >= slog.LevelError:
		err = s.w.Err(line)
	case r.Level >= slog.LevelWarn:
		err = s.w.Warning(line)
	case r.Level >= slog.LevelInfo:
		err = s.w.Info(line)
	default:
		err = s.w.Debug(line)
	}
	if err != nil {
		return errors.Join(err, s.fallback.write(r, line))
	}
	return nil
}

// plain writes the time and the program's name before each line.
type plain struct {
	w   io.Writer
	tag string
}

// timeFormat is RFC 3339 with milliseconds and the offset: comparable between
// directors whose clocks are synchronised.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

func (p plain) write(r slog.Record, line string) error {
	_, err := io.WriteString(p.w, r.Time.Format(timeFormat)+" "+p.tag+": "+line+"\n")
	return err
}
