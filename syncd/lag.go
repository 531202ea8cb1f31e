package syncd

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"saru/proto/ipvssync"
	"saru/syncd/tap"
)

// lagSamples is how many ticks the lag is computed from: 20 s.
const lagSamples = 1000

// lag measures how long a record waits in this director's kernel and in the tap. The second record of each tick waits as long as any:
// it is the last one in the kernel's buffer until the next tick.
type lag struct {
	mu      sync.Mutex
	at      [tap.TickPorts]time.Time // of the latest ticks
	samples []time.Duration
	next    int
}

func (l *lag) sent(n uint16, now time.Time) {
	l.mu.Lock()
	l.at[n%tap.TickPorts] = now
	l.mu.Unlock()
}

// seen is told of each record of the tick's connections.
func (l *lag) seen(now time.Time, r *ipvssync.Record) {
	n := tap.TickNumber(r.Client.Port())
	if r.State != ipvssync.TCPClose || n >= tap.TickPorts {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.at[n]
	if at.IsZero() {
		return // of an earlier process
	}
	l.at[n] = time.Time{}
	if len(l.samples) < lagSamples {
		l.samples = append(l.samples, now.Sub(at))
		return
	}
	l.samples[l.next%lagSamples] = now.Sub(at)
	l.next++
}

// quantiles returns the median and the 99th percentile; 0 when nothing was measured.
func (l *lag) quantiles() (p50, p99 time.Duration) {
	l.mu.Lock()
	s := slices.Clone(l.samples)
	l.mu.Unlock()
	if len(s) == 0 {
		return 0, 0
	}
	slices.Sort(s)
	return s[len(s)/2], s[len(s)*99/100]
}

// dropCount counts what could not be sent, received or injected, and logs it at most once a second.
type dropCount struct {
	total atomic.Uint64
	last  atomic.Int64 // when it was logged, in Unix nanoseconds
}

func (d *dropCount) note(log *slog.Logger, step, where string, err error) {
	d.total.Add(1)
	now, last := time.Now().UnixNano(), d.last.Load()
	if now-last > int64(time.Second) && d.last.CompareAndSwap(last, now) {
		log.Warn("input or output failed", "step", step, "on", where, "error", err, "failures", d.total.Load())
	}
}
