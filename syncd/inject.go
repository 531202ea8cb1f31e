package syncd

import (
	"context"
	"errors"
	"time"

	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

const (
	// injectWindow is how many bytes are injected before it is looked at whether the kernel keeps up, and queuedLimit how many it may
	// have left then, as it counts them. Its receive buffer has 208 KiB at the least (net.core.rmem_default).
	injectWindow = 48 << 10
	queuedLimit  = 32 << 10
)

// output is what the engine writes to. It is called with Mirrorer.mu held.
type output struct{ m *Mirrorer }

func (o output) Send(b []byte) { o.m.out.put(b) }

func (o output) Inject(r *ipvssync.Record) {
	m := o.m
	m.recMu.Lock()
	err := m.records.Add(r)
	if errors.Is(err, ipvssync.ErrFull) {
		m.finishRecords()
		err = m.records.Add(r)
	}
	m.recMu.Unlock()
	if err != nil {
		m.log.Debug("record not injected", "client", r.Client, "virtual", r.Virtual, "error", err)
		return
	}
	poke(m.inject.wake)
}

// finishRecords hands the message that is being filled to the injector. recMu is held.
func (m *Mirrorer) finishRecords() {
	if m.records.Count() > 0 {
		if b, err := m.records.Finish(); err == nil {
			m.inject.put(b)
		}
	}
	m.records.Reset(m.recBuf[:0], 0, tap.MaxInject)
}

// drainInjections gives the kernel what the engine injects, no faster than it takes it.
func (m *Mirrorer) drainInjections(ctx context.Context) {
	_, dropped, err := m.tap.Queued()
	m.intake.look(dropped, err)
	sent := 0
	var items [][]byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.inject.wake:
		}
		for {
			items = m.inject.swap(items)
			if len(items) == 0 {
				m.recMu.Lock()
				m.finishRecords()
				m.recMu.Unlock()
				if items = m.inject.swap(items); len(items) == 0 {
					break
				}
			}
			for _, b := range items {
				if sent += len(b); sent > injectWindow {
					m.pace(ctx, queuedLimit)
					sent = len(b)
				}
				if err := m.tap.Inject(b); err != nil {
					m.intake.lose()
					m.dropped.note(m.log, "inject", "the tap", err)
				}
			}
		}
		m.confirm(ctx)
	}
}

// noRecords is a message of version 1 without records.
var noRecords = []byte{0, 0, 0, 8, 0, 1, 0, 0}

// confirm tells the engine what the kernel has entered. Everything that was taken out of the queue has been handed over. What was lost must
// have been made good first, before the mark is taken: then that was handed over, too.
func (m *Mirrorer) confirm(ctx context.Context) {
	m.mu.Lock()
	m.recMu.Lock()
	_, open := m.intake.lost()
	idle := !open && m.records.Count() == 0 && m.inject.length() == 0 && m.engine.Unconfirmed()
	m.recMu.Unlock()
	var mark engine.Mark
	if idle {
		mark = m.engine.Mark()
	}
	m.mu.Unlock()
	if !idle {
		return
	}
	// A message that has left the receive buffer may still be at work. The kernel takes one after the other: when one without records,
	// which is silent, has left it, all before have been entered.
	if err := m.tap.Inject(noRecords); err != nil {
		m.dropped.note(m.log, "inject", "the tap", err)
		return
	}
	if !m.pace(ctx, 1) {
		return
	}
	_, dropped, err := m.tap.Queued() // after the last message: it counts what was dropped of all
	m.intake.look(dropped, err)
	if _, open := m.intake.lost(); !open {
		m.mu.Lock()
		m.engine.Injected(time.Now(), mark)
		m.mu.Unlock()
	}
}

// paceTime is how long pace waits at most: a kernel that takes longer is stuck.
const paceTime = 5 * time.Second

// pace waits until the kernel has less than limit bytes left of what was injected, and reports whether it has.
func (m *Mirrorer) pace(ctx context.Context, limit uint64) bool {
	for end := time.Now().Add(paceTime); ; {
		queued, _, err := m.tap.Queued()
		if err != nil {
			m.intake.lose()
			m.dropped.note(m.log, "look at the receive buffer of", "the kernel", err)
			return false
		}
		if queued < limit {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Millisecond):
		}
	}
}
