package syncd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/engine"
	"saru/syncd/table"
)

const (
	// shareTime is how long a share is waited for until it is ready: what a kernel needs for a million entries.
	shareTime = 5 * time.Second
	// bringBatch is how many entries are looked at with the engine held once: a millisecond or two.
	bringBatch = 10000
	// progressTime is how often it is told how far that is.
	progressTime = time.Second
)

// newShare makes what the engine needs of what saru has told.
func newShare(s *control.Share, node string) (*engine.Share, error) {
	functions, err := s.Functions()
	if err != nil {
		return nil, err
	}
	held, err := flow.ParseBuckets(s.Held, int(s.Buckets))
	if err != nil {
		return nil, fmt.Errorf("held: %w", err)
	}
	share := &engine.Share{
		Grant: mirror.NewGrant(s.Term, s.Version), Buckets: s.Buckets, Seed: s.Seed, Functions: functions,
		Owned: s.Of(node, s.Owner), Next: s.Of(node, s.Next), Held: make([]bool, s.Buckets),
	}
	for _, b := range held {
		if !share.Owned[b] {
			return nil, fmt.Errorf("held: bucket %d is not %s's by the table", b, node)
		}
		share.Held[b] = true
	}
	return share, nil
}

// share takes what saru tells, nil to forget it, brings what this kernel lacks of the buckets that are this director's now, and waits until the
// kernel has it.
func (m *Mirrorer) share(ctx context.Context, s *control.Share, emit func(any) error) (control.ShareSummary, error) {
	begin := time.Now()
	var sum control.ShareSummary
	var told *engine.Share
	var ticket, before uint64
	var err error
	total, joined := 0, false
	m.With(func(e *engine.Engine) {
		if s != nil {
			told, err = newShare(s, e.Node())
		}
		if err == nil {
			ticket, err = e.SetShare(begin, told)
		}
		before, total, joined = e.Counters()[engine.Brought], e.Len(), e.Published()
	})
	if err != nil {
		return sum, fmt.Errorf("%w: share: %w", control.ErrBadRequest, err)
	}
	poke(m.inject.wake)
	if told != nil {
		sum.Held, sum.Kept = trues(told.Held), told.Kept()
	}
	looked, said := 0, begin
	for more := true; ; {
		now := time.Now()
		m.With(func(e *engine.Engine) {
			if more {
				more = e.BringOwned(now, bringBatch)
			}
			sum.Ready = e.ShareReady(ticket)
			sum.Entries = e.Counters()[engine.Brought] - before
		})
		if late := now.Sub(begin) > shareTime; sum.Ready || late || !joined && !more {
			break
		}
		if more {
			looked += bringBatch
			m.inject.wait(ctx, injectLimit)
		} else {
			poke(m.inject.wake)
		}
		if now.Sub(said) > progressTime {
			said = now
			p := control.Progress{Phase: "bringing entries into the kernel", Done: uint64(min(looked, total)), Total: uint64(total)}
			if err := emit(control.ShareLine{Progress: &p}); err != nil {
				return sum, err
			}
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return sum, ctx.Err()
		case <-time.After(flushPoll):
		}
	}
	switch {
	case sum.Ready:
	case !joined:
		sum.Why = "this director has not joined yet"
	default:
		sum.Why = fmt.Sprintf("the kernel has not entered everything within %v", shareTime)
	}
	sum.TookMS = milliseconds(time.Since(begin))
	return sum, nil
}

// serveShare answers saru.
func (m *Mirrorer) serveShare(ctx context.Context, q url.Values, emit func(any) error) error {
	s, err := control.ParseShare(q)
	if err != nil {
		return err
	}
	sum, err := m.share(ctx, s, emit)
	switch {
	case errors.Is(err, control.ErrBadRequest):
		m.log.Error("what saru tells is refused", "error", oneLine(err))
		return err
	case err != nil:
		return err
	case s == nil:
		m.log.Info("what saru has told is forgotten")
	default:
		m.log.Debug("told by saru", "term", s.Term, "version", s.Version, "held", sum.Held, "kept", sum.Kept, "entries", sum.Entries,
			"ready", sum.Ready, "why", sum.Why)
	}
	return emit(control.ShareLine{Summary: &sum})
}

// shareStatus says what saru has told.
func shareStatus(s *engine.ShareStatus) control.SyncShare {
	out := control.SyncShare{Ready: s.Ready, Settled: s.Settled, NewestTerm: s.Term}
	if t := s.Share; t != nil {
		out.Told, out.Term, out.Version = true, t.Grant.Term(), t.Grant.Version()
		out.Held, out.Kept = trues(t.Held), t.Kept()
	}
	return out
}

// kernelEntries returns the value of --kernel_entries.
func kernelEntries(next bool) string {
	if next {
		return KernelEntriesNext
	}
	return KernelEntriesAll
}

func trues(all []bool) (n int) {
	for _, v := range all {
		if v {
			n++
		}
	}
	return n
}

// keptRemote counts the entries of others that this kernel is to have, with the engine held for a thousand at a time.
func (m *Mirrorer) keptRemote() (n uint64) {
	for c := (table.Cursor{}); !c.Done; {
		m.With(func(e *engine.Engine) {
			kept := e.Kept()
			if kept == nil {
				n, c.Done = uint64(e.Remote()), true
				return
			}
			c = e.Walk(time.Now(), c, auditMost, func(en *table.Entry, _ string) bool {
				if !e.IsSelf(en.Origin) && kept(&en.Record) {
					n++
				}
				return true
			})
		})
	}
	return n
}

// bucketing says which buckets flush is asked about, and which one a record is of, as saru's filter does where saru has told how.
type bucketing struct {
	share *engine.Share
}

// buckets is how many there are.
func (b bucketing) buckets() int {
	if b.share == nil {
		return int(flow.Default.Buckets)
	}
	return int(b.share.Buckets)
}

// any reports whether a record is of one of some buckets, or of none in particular: it may serve the packets of any.
func (b bucketing) any(r *ipvssync.Record, wanted map[uint32]bool) bool {
	if b.share == nil {
		return wanted[flow.Default.Bucket(r.Client, r.Virtual)]
	}
	n, ok := b.share.Bucket(r)
	return !ok || wanted[n]
}
