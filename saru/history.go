package saru

import (
	"saru/lib/control"
	"saru/proto/coord"
	"saru/saru/core"
)

// historySize is how many events are kept.
const historySize = 1000

// history keeps the newest events.
type history struct {
	events []control.Event
	first  uint64 // number of the first of them
}

func (h *history) add(e core.Event, t *coord.Table) {
	out := control.Event{Time: e.At, Name: e.Name, Text: e.Text, Alarm: e.Alarm}
	if t != nil {
		out.Term, out.Version = t.Term, t.Version
	}
	if h.events = append(h.events, out); len(h.events) > historySize {
		drop := len(h.events) - historySize
		h.events = append(h.events[:0], h.events[drop:]...)
		h.first += uint64(drop)
	}
}

// since returns the events from a number on, and the number of the one that will follow.
func (h *history) since(n uint64) ([]control.Event, uint64) {
	next := h.first + uint64(len(h.events))
	return append([]control.Event(nil), h.events[min(max(n, h.first), next)-h.first:]...), next
}
