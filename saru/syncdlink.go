package saru

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/saru/core"
)

// Limits of what syncd is waited for. A bucket without an owner costs more than a connection that syncd has not brought yet.
const (
	// readyLimit is for how long buckets stay closed because syncd brings their entries into the kernel, or does not answer.
	readyLimit = time.Second
	// flushLimit is for how long a hand-over waits for the confirmation of the other directors' syncd, if the lease is not longer: the director that is given the buckets opens when a lease
	// has gone by in any case (docs/SAFETY.md section 4).
	flushLimit = time.Second
	// pollTime is how often syncd is asked whether it is synced, and whether it was restarted.
	pollTime = 200 * time.Millisecond
)

// syncdLink is the way to this director's syncd.
type syncdLink struct {
	client   *control.Client
	log      *slog.Logger
	patience time.Duration // of a hand-over
	// share makes what syncd is told, and its generation; nil: there is no table.
	share func() (*control.Share, uint64)
	// changed is called when what is known of syncd has changed.
	changed func()
	poke    chan struct{}
	done    func() // told: the worker may go on

	mu          sync.Mutex
	synced      bool
	err         string
	term        uint32 // newest that syncd was told
	incarnation string
	told        told
	asked       uint64 // newest that the worker waits for
	askedAt     time.Time
	forget      bool
}

// told is what syncd was told last.
type told struct {
	gen           uint64
	term, version uint32
}

func newSyncdLink(path string, lease time.Duration, share func() (*control.Share, uint64), log *slog.Logger) *syncdLink {
	return &syncdLink{client: control.NewClient(path), log: log, patience: max(flushLimit, lease), share: share, poke: make(chan struct{}, 1)}
}

// ready reports whether syncd has the entries of all that a generation opens. It is told what it has not been told, and waited for no longer than
// readyLimit.
func (s *syncdLink) ready(gen uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told.gen >= gen {
		return true
	}
	if s.asked < gen {
		if s.told.gen >= s.asked {
			s.askedAt = time.Now()
		}
		s.asked = gen
		s.wake()
	}
	return time.Since(s.askedAt) > readyLimit
}

func (s *syncdLink) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// state returns what is known of syncd.
func (s *syncdLink) state() (synced bool, term uint32, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced, s.term, s.err
}

// began makes syncd forget what it was told: this director begins anew, perhaps with a lower term.
func (s *syncdLink) began() {
	s.mu.Lock()
	s.forget = true
	s.mu.Unlock()
	s.wake()
}

// run asks and tells syncd until ctx ends.
func (s *syncdLink) run(ctx context.Context) error {
	t := time.NewTicker(pollTime)
	defer t.Stop()
	for {
		s.poll(ctx)
		s.tell(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-s.poke:
			s.tell(ctx)
		}
	}
}

// poll asks syncd how it is.
func (s *syncdLink) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var st control.SyncStatus
	err := s.client.Get(ctx, control.PathSyncStatus, &st)
	s.mu.Lock()
	was, wasErr := s.synced, s.err
	if s.synced, s.err = err == nil && st.Synced, ""; err != nil {
		s.err = err.Error()
	} else {
		s.term = max(s.term, st.Share.NewestTerm)
		if st.Incarnation != s.incarnation {
			s.incarnation, s.told = st.Incarnation, told{} // a syncd that was restarted knows nothing
		}
	}
	changed := was != s.synced || wasErr != s.err
	s.mu.Unlock()
	if changed {
		s.changed()
	}
}

// tell tells syncd what it does not know yet.
func (s *syncdLink) tell(ctx context.Context) {
	s.mu.Lock()
	forget, last, reachable := s.forget, s.told, s.err == ""
	s.mu.Unlock()
	if !reachable {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*readyLimit)
	defer cancel()
	if forget {
		if _, err := s.client.ForgetShare(ctx); err != nil {
			s.log.Warn("syncd is not told to forget the table", "error", err)
			return
		}
		s.mu.Lock()
		s.forget = false
		s.mu.Unlock()
	}
	share, gen := s.share()
	if share == nil {
		return
	}
	next := told{gen, share.Term, share.Version}
	if next == last {
		return
	}
	sum, err := s.client.TellShare(ctx, share)
	switch {
	case err != nil:
		s.log.Warn("syncd is not told the table", "term", share.Term, "version", share.Version, "error", err)
		return
	case !sum.Ready:
		s.log.Debug("syncd is not ready", "why", sum.Why)
		return
	}
	s.mu.Lock()
	s.told = next
	s.mu.Unlock()
	s.done()
}

// flush has syncd bring everything of some buckets to the other directors' kernels.
func (s *syncdLink) flush(ctx context.Context, buckets []uint16) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	share, _ := s.share()
	total := int(flow.Default.Buckets)
	if share != nil {
		total = int(share.Buckets)
	}
	var sum *control.FlushSummary
	err := s.client.PostStream(ctx, control.PathSyncFlush, url.Values{"buckets": {flow.FormatBuckets(buckets, total)}}, func(text json.RawMessage) error {
		var line control.FlushLine
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("answer to %s: %w", control.PathSyncFlush, err)
		}
		if line.Summary != nil {
			sum = line.Summary
		}
		return nil
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		s.log.Warn("the hand-over goes on without syncd's confirmation", "waited", s.patience, "buckets", len(buckets))
	case err != nil:
		s.log.Warn("syncd does not flush", "buckets", len(buckets), "error", err)
	case sum != nil && !sum.Complete:
		s.log.Warn("syncd's flush is not complete", "buckets", len(buckets), "why", sum.Why)
	case sum != nil:
		s.log.Debug("flushed", "buckets", len(buckets), "took_ms", sum.TookMS)
	}
}

// shareOf makes what syncd is told of a table.
func shareOf(r core.Report) *control.Share {
	t := r.Table
	if t == nil {
		return nil
	}
	s := &control.Share{
		Term: t.Term, Version: t.Version, Buckets: t.Function.Buckets, Seed: t.Function.Seed,
		Members: core.Names(t), Owner: t.Owner, Next: t.Next, Held: flow.FormatBuckets(bucketsOf(r.Open), int(t.Function.Buckets)),
	}
	for _, v := range t.Function.Virtuals {
		s.Virtuals = append(s.Virtuals, control.ShareVirtual{Address: v.Address, Sense: flow.Sense(v.Fields).String(), Mask: v.Mask})
	}
	return s
}
