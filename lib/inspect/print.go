package inspect

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// line is a line of JSON: the fields of the message, then those of the record.
type line struct {
	*message
	*record
}

// printJSON writes one line a record. A message without records, or with an error, has a line of its own.
func printJSON(w io.Writer, m *message) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	whole := *m
	whole.Error = "" // it belongs to the message, not to its records
	whole.Time = m.Time.UTC()
	for i := range m.records {
		if err := enc.Encode(line{&whole, &m.records[i]}); err != nil {
			return err
		}
	}
	whole.Error = m.Error
	if len(m.records) > 0 && m.Error == "" {
		return nil
	}
	return enc.Encode(line{message: &whole})
}

// timeFormat is that of text lines, in local time.
const timeFormat = "2006-01-02 15:04:05.000000"

// plain returns a name from the wire as it is, if it is one word that does nothing to a terminal, and quoted otherwise.
func plain(s string) string {
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// printText writes a line for the message and one for each record.
func printText(w io.Writer, m *message) error {
	var b strings.Builder
	b.WriteString(m.Time.Local().Format(timeFormat))
	if m.Link != "" {
		fmt.Fprintf(&b, " %s", plain(m.Link))
	}
	fmt.Fprintf(&b, " %s > %s %s", m.Source, m.Destination, m.Sender)
	if m.Sender != senderUnknown {
		fmt.Fprintf(&b, " v%d syncid %d, %d records", m.Version, m.SyncID, m.Count)
	}
	fmt.Fprintf(&b, ", %d bytes", m.Size)
	if m.TrailingBytes > 0 {
		fmt.Fprintf(&b, ", %d of them unknown behind the records", m.TrailingBytes)
	}
	if m.Trailer != nil {
		m.Trailer.text(&b)
	}
	if m.Error != "" {
		fmt.Fprintf(&b, ": MALFORMED: %s", m.Error)
	}
	b.WriteByte('\n')
	if m.Trailer != nil && m.Trailer.Heartbeat != nil {
		m.Trailer.Heartbeat.text(&b)
	}
	if m.Trailer != nil && m.Trailer.Request != nil {
		m.Trailer.Request.text(&b)
	}
	for i := range m.records {
		m.records[i].text(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *trailer) text(b *strings.Builder) {
	sender := t.Sender
	if t.Node != "" {
		sender = plain(t.Node)
	}
	fmt.Fprintf(b, "; %s %d of %s incarnation %s", t.Kind, t.Sequence, sender, t.Incarnation)
	control := t.Heartbeat != nil || t.Request != nil // origin and grant are of records
	if t.Origin != t.Sender && !control {
		fmt.Fprintf(b, " origin %s", plain(t.originName))
	}
	if !control {
		fmt.Fprintf(b, " grant %d.%d", t.Term, t.TermVersion)
	}
	fmt.Fprintf(b, " clock %d", t.ClockUS)
	for _, flag := range []struct {
		set  bool
		name string
	}{{t.Synced, "synced"}, {t.Repeat, "repeat"}, {t.Confirm, "confirm"}} {
		if flag.set {
			fmt.Fprintf(b, " %s", flag.name)
		}
	}
	if t.Signature == signatureUnsigned {
		b.WriteString(", unsigned")
	} else {
		fmt.Fprintf(b, ", key %d %s", t.KeyID, t.Signature)
	}
}

func (h *heartbeat) text(b *strings.Builder) {
	fmt.Fprintf(b, "    %s up %d.%03d s, stream at %d, repeats from %d, %d entries", plain(h.Node), h.UptimeMS/1000, h.UptimeMS%1000, h.Stream, h.Oldest, h.Entries)
	if h.Teaches != "" {
		fmt.Fprintf(b, ", teaches on %s", h.Teaches)
	}
	b.WriteByte('\n')
	for _, e := range h.Echoes {
		fmt.Fprintf(b, "    heard %s incarnation %s %d ms ago, control %d, stream %d, confirmed %d", plain(e.Node), e.Incarnation, e.AgeMS, e.Control, e.Stream, e.Confirmed)
		if e.Counts {
			b.WriteString(", counts")
		}
		b.WriteByte('\n')
	}
}

func (r *request) text(b *strings.Builder) {
	fmt.Fprintf(b, "    asks %s incarnation %s for", plain(r.Node), r.Incarnation)
	for i, g := range r.Ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, " %d", g.First)
		if g.Count > 1 {
			fmt.Fprintf(b, "-%d", g.First+uint64(g.Count)-1)
		}
	}
	b.WriteByte('\n')
}

func (r *record) text(b *strings.Builder) {
	fmt.Fprintf(b, "    %-4s %s > %s > %s %s [%s] %d s", r.Protocol, r.Client, r.Virtual, r.Real, r.State, strings.Join(r.Flags, " "), r.ExpiresS)
	if r.Fwmark != 0 {
		fmt.Fprintf(b, " fwmark %d", r.Fwmark)
	}
	if r.Seq != nil {
		in, out := r.Seq.In, r.Seq.Out
		fmt.Fprintf(b, " seq in %d%+d (before %+d) out %d%+d (before %+d)", in.Init, in.Delta, in.PrevDelta, out.Init, out.Delta, out.PrevDelta)
	}
	if r.PE != nil {
		fmt.Fprintf(b, " pe %s", plain(r.PE.Name))
		if r.PE.Hex != "" {
			fmt.Fprintf(b, " 0x%s", r.PE.Hex)
		} else {
			fmt.Fprintf(b, " %s", strconv.QuoteToASCII(r.PE.Data))
		}
	}
	if r.Skipped != "" {
		fmt.Fprintf(b, ": KERNELS SKIP IT: %s", r.Skipped)
	}
	b.WriteByte('\n')
}
