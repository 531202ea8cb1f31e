package logging

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// handler is a slog.Handler that makes one line of each record. (slog's own text
// handler writes time= level= msg= before everything and quotes the message.)
type handler struct {
	level  *slog.LevelVar // shared, like mu, by all handlers made from one
	mu     *sync.Mutex    // keeps lines whole
	write  func(r slog.Record, line string) error
	attrs  string // of WithAttrs, ready to be appended
	prefix string // of WithGroup: "group."
}

func newHandler(level *slog.LevelVar, write func(slog.Record, string) error) *handler {
	return &handler{level: level, mu: new(sync.Mutex), write: write}
}

var _ slog.Handler = (*handler)(nil)

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(strings.ToLower(r.Level.String()))
	b.WriteByte(' ')
	b.WriteString(clean(r.Message))
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, h.prefix, a)
		return true
	})
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.write(r, b.String())
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(h.attrs)
	for _, a := range attrs {
		appendAttr(&b, h.prefix, a)
	}
	n := *h
	n.attrs = b.String()
	return &n
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.prefix += name + "."
	return &n
}

func appendAttr(b *strings.Builder, prefix string, a slog.Attr) {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range a.Value.Group() {
			appendAttr(b, prefix, g)
		}
		return
	}
	b.WriteByte(' ')
	b.WriteString(clean(prefix + a.Key))
	b.WriteByte('=')
	b.WriteString(quote(text(a.Value)))
}

func text(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format(timeFormat)
	case slog.KindAny:
		return fmt.Sprintf("%v", v.Any())
	}
	return v.String()
}

// quote returns s as it is if it is one plain word, else in quotes.
func quote(s string) string {
	plain := s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == '"' || r == '=' || !unicode.IsPrint(r)
	})
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// clean keeps text that may come from elsewhere on its one line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
