package syncd

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"saru/lib/tun/nstest"
	"saru/lib/tun/nstest/segment"
	"saru/proto/mirror"
	"saru/syncd/engine"
	"saru/syncd/table"
	"saru/syncd/transfer"
)

// lossResult is a heading under which scripts find the figures.
const lossResult = "RESULT loss native"

// traffic counts the datagrams that a segment carries.
type traffic struct {
	stream, repeats, requests, heartbeats count
	lost                                  atomic.Uint64 // copies of stream datagrams, repeated ones included
}

type count struct{ datagrams, bytes atomic.Uint64 }

func (c *count) add(n int) { c.datagrams.Add(1); c.bytes.Add(uint64(n)) }

func (tr *traffic) watch(frame []byte, lost int) {
	b := segment.Datagram(frame, testGroup)
	t, _, err := mirror.ParseTrailer(b)
	switch {
	case err != nil:
		return
	case t.Kind.Stream():
		tr.lost.Add(uint64(lost))
		if t.Flags&mirror.FlagRepeat != 0 {
			tr.repeats.add(len(b))
		} else {
			tr.stream.add(len(b))
		}
	case t.Kind == mirror.KindRequest:
		tr.requests.add(len(b))
	default:
		tr.heartbeats.add(len(b))
	}
}

// lossPlan is for how long the test goes on and at which rate. With the race detector everything is several times slower.
func lossPlan(tb testing.TB) (seconds int, rate float64) {
	tb.Helper()
	if raceEnabled {
		return 3, 5000
	}
	return 3, 20_000
}

// TestLoss: three directors on a segment that loses, doubles and reorders. One second after the load has stopped, on a segment that is as
// bad as before, the replicas and the kernels of all have everything.
func TestLoss(t *testing.T) {
	seconds, rate := lossPlan(t)
	for _, percent := range []int{1, 5, 20} {
		t.Run(fmt.Sprintf("%d%%", percent), func(t *testing.T) { testLoss(t, percent, seconds, rate) })
	}
}

func testLoss(t *testing.T, percent, seconds int, rate float64) {
	const main, other = 30_000, 5000 // connections of the busy director, and of each of the others
	const total = main + 2*other
	var tr traffic
	seg := segment.New(t, segment.Config{Seed: uint64(percent), Group: testGroup, Watch: tr.watch})
	nss := []*nstest.NS{nstest.New(t), nstest.Other(t), nstest.Other(t)}
	names := []string{"a", "b", "c"}
	for i, ns := range nss {
		seg.Attach(ns, "x0", fmt.Sprintf("192.0.2.%d/24", 10+i))
	}
	seg.Start()
	var pumps []*pump
	var directors []*Mirrorer
	for i, ns := range nss {
		p := newPump(total, window{})
		ns.Do(t, func() { directors = append(directors, startMirrorer(t, testGroup, p, names[i], "x0")) })
		// As in a farm: what is lost must come by repair before the comparison of the replicas finds it.
		directors[i].With(func(e *engine.Engine) { e.SetLimits(0, 10*time.Second) })
		pumps = append(pumps, p)
	}
	eventually(t, "all are synced", func() bool {
		for _, d := range directors {
			if s := d.Status(); !s.Synced || len(s.Peers) != len(directors)-1 {
				return false
			}
		}
		return true
	})

	seg.Impair(segment.Impairment{Loss: float64(percent) / 100, Duplicate: 0.02, Reorder: 0.05, Earliest: time.Millisecond, Latest: 20 * time.Millisecond})
	slow := rate / 20
	loads := []load{
		{First: 0, Count: main, Records: int(rate) * seconds, Rate: rate},
		{First: main, Count: other, Records: max(other, int(slow)*seconds), Rate: max(slow, other/float64(seconds))},
		{First: main + other, Count: other, Records: max(other, int(slow)*seconds), Rate: max(slow, other/float64(seconds))},
	}
	loads[0].Count = min(main, loads[0].Records)
	entries := loads[0].Count + 2*other
	for i, p := range pumps {
		if err := p.start(loads[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range pumps {
		for !p.done() {
			time.Sleep(time.Millisecond)
		}
	}
	reached := 0.0
	for _, p := range pumps {
		reached += p.rate()
	}
	letRun(time.Second)

	missing, equal := missingAfterLoad(t, directors, pumps, entries, total)
	seen := seg.Counts()
	var requests, repeated, bytes, gone uint64
	for _, d := range directors {
		c := d.Status().Counters
		requests += c["repair_requests"]
		repeated += c["repair_datagrams"]
		bytes += c["repair_bytes"]
		gone += c["repair_gone"]
	}
	lost := max(tr.lost.Load(), 1)
	note := ""
	if raceEnabled {
		note = " (race detector: lower rate)"
	}
	fmt.Fprintf(os.Stdout, "%s loss=%d%% updates/s=%.0f%s seconds=%d entries=%d missing=%d digests_equal=%v datagrams=%d lost=%d doubled=%d delayed=%d "+
		"repeated=%d requests=%d repair_bytes/lost=%.0f request_bytes/lost=%.0f stream_bytes/datagram=%.0f gone=%d overflow=%d\n",
		lossResult, percent, reached, note, seconds, entries, missing, equal, tr.stream.datagrams.Load(), lost, seen.Doubled, seen.Delayed,
		repeated, requests, float64(bytes)/float64(lost), float64(tr.requests.bytes.Load())/float64(lost),
		float64(tr.stream.bytes.Load())/float64(max(tr.stream.datagrams.Load(), 1)), gone, seen.Overflow)
	if missing != 0 || !equal {
		for _, d := range directors {
			t.Logf("%+v", d.Status())
		}
		t.Errorf("%d entries missing, digests equal: %v", missing, equal)
	}
	if reached < rate/2 {
		t.Errorf("the machine was too slow for the test: %.0f updates/s, want %.0f", reached, rate)
	}
	// The segment really was bad, each datagram having two receivers, and repair was needed for it.
	if tr.lost.Load() < tr.stream.datagrams.Load()*uint64(percent)/100 || repeated == 0 {
		t.Errorf("%+v, of %d datagrams %d copies were lost, %d repeated", seen, tr.stream.datagrams.Load(), tr.lost.Load(), repeated)
	}
}

// letRun waits for as long as the directors, which are in this process, could run. When the machine stands still, time does.
func letRun(left time.Duration) {
	const step = 5 * time.Millisecond
	for left > 0 {
		before := time.Now()
		time.Sleep(step)
		left -= min(time.Since(before), 4*step)
	}
}

func allBuckets() []uint16 {
	all := make([]uint16, table.Buckets)
	for i := range all {
		all[i] = uint16(i)
	}
	return all
}

// missingAfterLoad returns how many entries the kernels and replicas of all lack or have in an older state, and whether the digests of all
// buckets are equal.
func missingAfterLoad(t *testing.T, directors []*Mirrorer, pumps []*pump, entries, total int) (missing int, equal bool) {
	t.Helper()
	newest := make([]uint32, total)
	for _, p := range pumps {
		p.mu.Lock()
		for i, at := range p.kernel {
			newest[i] = max(newest[i], at)
		}
		p.mu.Unlock()
	}
	have := 0
	for _, at := range newest {
		if at != 0 {
			have++
		}
	}
	if have != entries {
		t.Errorf("%d connections were reported, want %d", have, entries)
	}
	// Everything is to count, what was told in the last two seconds as well.
	var cut uint64
	for _, d := range directors {
		cut = max(cut, replica{d}.cut()+2_000_000)
	}
	equal = true
	var first []transfer.Digest
	for i, d := range directors {
		inKernel, inReplica := 0, 0
		pumps[i].mu.Lock()
		for conn, at := range pumps[i].kernel {
			if at != newest[conn] {
				inKernel++
			}
		}
		bad := pumps[i].bad
		pumps[i].mu.Unlock()
		known := 0
		d.With(func(e *engine.Engine) {
			for c := (table.Cursor{}); !c.Done; {
				c = e.Walk(time.Now(), c, 1<<20, func(en *table.Entry, _ string) bool {
					a := en.Record.Client.Addr().As4()
					known++
					if en.Record.Fwmark != newest[int(a[1])<<16|int(a[2])<<8|int(a[3])] {
						inReplica++
					}
					return true
				})
			}
		})
		inReplica += entries - known
		if inKernel+inReplica > 0 || bad > 0 {
			t.Errorf("%s: its kernel lacks %d, its replica %d; %d bad messages", d.Status().Node, inKernel, inReplica, bad)
		}
		missing += inKernel + inReplica
		sums := replica{d}.Digests(cut, allBuckets(), nil)
		counted := 0
		for b := range sums {
			counted += int(sums[b].Count)
			if i > 0 && sums[b] != first[b] {
				equal = false
			}
		}
		if counted != entries {
			t.Errorf("%s: digests over %d entries, want %d", d.Status().Node, counted, entries)
		}
		if i == 0 {
			first = sums
		}
	}
	return missing, equal
}
