package syncd

import (
	"context"
	"testing"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
	"saru/syncd/engine"
	"saru/syncd/table"
)

// A session does not enter anything before what the kernel had reported when this process was stopped has been read: otherwise an old
// report would look like a take-over.
func TestStalledDoesNotLearn(t *testing.T) {
	m := loneMirrorer(t, "a", newBrokenTap())
	now := time.Now()
	for range 200 { // it is alone
		now = now.Add(TickInterval)
		m.With(func(e *engine.Engine) {
			e.Tick(now)
			if e.Unconfirmed() {
				e.Injected(now, e.Mark())
			}
		})
	}
	r := testConn(1)
	var w ipvssync.Builder
	w.Reset(nil, 9, 0)
	if err := w.Add(&r); err != nil {
		t.Fatal(err)
	}
	report, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	tell := func() { m.With(func(e *engine.Engine) { e.FromTap(now, report); e.Flush() }) }
	tell()
	// It is stopped. Its kernel reports a last packet; then b takes over. It runs again.
	sent := m.barrier.tick()
	if !m.stall.tick(time.Now().Add(time.Minute), sent) {
		t.Fatal("no stall is found")
	}
	b := peer.IDOf("b")
	taken := table.Entry{
		Record: testConn(1), Origin: b, Remaining: 900 * time.Second,
		Stamp: table.Stamp{Grant: mirror.NewGrant(0, 1), Clock: uint64(now.Add(time.Second).UnixMicro())},
	}
	enter := func(e *engine.Engine, now time.Time, entries []table.Entry, names map[peer.ID]string) {
		e.Learned(now, entries, names)
	}
	learn := func(ctx context.Context) {
		replica{m}.learn(ctx, enter)([]table.Entry{taken}, map[peer.ID]string{b: "b"})
	}
	ended, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	learn(ended) // whoever asked for the session is gone
	learned := make(chan struct{})
	go func() { learn(t.Context()); close(learned) }()
	time.Sleep(20 * time.Millisecond)
	tell() // the old report
	m.With(func(e *engine.Engine) {
		if c := e.Counters(); c[engine.Takeovers] != 0 || c[engine.LearnedRecords] != 0 {
			t.Errorf("%d takeovers, %d learned before the old report", c[engine.Takeovers], c[engine.LearnedRecords])
		}
	})
	m.barrier.back(uint16(sent - 1))
	m.afterStall(t.Context(), sent)
	<-learned
	m.With(func(e *engine.Engine) {
		if en, local, _ := e.Lookup(now, &r); local || en.Origin != b {
			t.Errorf("the connection is of %v, not of b, who has it now", en.Origin)
		}
	})
}

// When this process is stopped again while the first stall is being handled, what the kernel reported until the end of the second is
// read before the network is.
func TestSecondStall(t *testing.T) {
	m := loneMirrorer(t, "a", newBrokenTap())
	now := time.Now().Add(-2 * time.Second)
	m.stall.start(now)
	tick := func(after time.Duration) (sent uint64, found bool) { // as ticks does
		now = now.Add(after)
		sent = m.barrier.tick()
		return sent, m.stall.tick(now, sent)
	}
	first, found := tick(time.Second)
	if !found {
		t.Fatal("the first is not found")
	}
	second, again := tick(time.Second - time.Microsecond) // stopped again before the first tick is back
	if again {
		t.Error("a second is to be handled beside the first")
	}
	m.barrier.back(uint16(first - 1)) // what was reported between the two is unread
	ended := make(chan struct{})
	go func() { m.afterStall(t.Context(), first); close(ended) }()
	read := make(chan struct{})
	go func() { m.stall.wait(t.Context()); close(read) }()
	select {
	case <-read:
		t.Errorf("the network is read before tick %d has come back", second)
	case <-ended:
		t.Errorf("the stall is over before tick %d has come back", second)
	case <-time.After(barrierTime / 5):
	}
	m.barrier.back(uint16(second - 1))
	<-ended
	for i := 0; ; i++ {
		tick(time.Since(now)) // ticks runs on, or that would be a stall
		select {
		case <-read:
			return
		case <-time.After(10 * time.Millisecond):
		}
		if i == 500 {
			t.Fatal("the network is not read any more")
		}
	}
}
