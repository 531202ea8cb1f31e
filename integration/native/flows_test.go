package native

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// interval is how often each flow sends a datagram: the resolution of what is measured.
const interval = 5 * time.Millisecond

// answer is an answer to a datagram of a flow.
type answer struct {
	at       time.Time
	director int
}

// flow sends datagrams and notes the answers.
type flow struct {
	conn    *net.UDPConn
	from    netip.AddrPort
	mu      sync.Mutex
	answers []answer
	sent    uint32
	seen    []answer // by number of the datagram: the first one
	doubles []double
}

// double is a datagram that was answered twice.
type double struct {
	number        uint32
	first, second answer
}

// flows are many of them at once.
type flows struct {
	all  []*flow
	stop chan struct{}
	wg   sync.WaitGroup
}

// startFlows opens n flows in the client and lets them send.
func (f *farm) startFlows(n int) *flows {
	t := f.t
	t.Helper()
	out := &flows{stop: make(chan struct{})}
	f.client.Do(t, func() {
		for range n {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: vip.AsSlice(), Port: int(port)})
			must(t, err)
			out.all = append(out.all, &flow{conn: c, from: c.LocalAddr().(*net.UDPAddr).AddrPort()})
		}
	})
	for _, fl := range out.all {
		out.wg.Go(func() {
			buf := make([]byte, 64)
			for {
				n, err := fl.conn.Read(buf)
				if err != nil {
					select {
					case <-out.stop:
						return
					default:
					}
					continue // refused: an ICMP error of a director that is being started
				}
				if n < 5 {
					continue
				}
				fl.mu.Lock()
				a := answer{time.Now(), int(buf[0])}
				switch number := binary.BigEndian.Uint32(buf[1:]); {
				case int(number) >= len(fl.seen):
				case fl.seen[number].at.IsZero():
					fl.seen[number] = a
				default:
					fl.doubles = append(fl.doubles, double{number, fl.seen[number], a})
				}
				fl.answers = append(fl.answers, a)
				fl.mu.Unlock()
			}
		})
	}
	out.wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-out.stop:
				return
			case <-tick.C:
			}
			for _, fl := range out.all {
				fl.mu.Lock()
				number := fl.sent
				fl.sent++
				fl.seen = append(fl.seen, answer{})
				fl.mu.Unlock()
				_, _ = fl.conn.Write(binary.BigEndian.AppendUint32(nil, number))
			}
		}
	})
	return out
}

func (fs *flows) end() {
	close(fs.stop)
	time.Sleep(50 * time.Millisecond) // the last answers
	for _, fl := range fs.all {
		_ = fl.conn.Close()
	}
	fs.wg.Wait()
}

// of returns the flows that a director answers now.
func (fs *flows) of(director int) (out []*flow) {
	for _, fl := range fs.all {
		fl.mu.Lock()
		if n := len(fl.answers); n > 0 && fl.answers[n-1].director == director {
			out = append(out, fl)
		}
		fl.mu.Unlock()
	}
	return out
}

// twice returns how many answers there were to datagrams that had been answered before.
func (fs *flows) twice() (n int) {
	for _, fl := range fs.all {
		fl.mu.Lock()
		n += len(fl.doubles)
		fl.mu.Unlock()
	}
	return n
}

// guard is saru's default: copies of one packet that reach two directors that far apart may be taken by both (docs/SAFETY.md, assumption A7).
const guard = 20 * time.Millisecond

// noDoubles fails if a datagram was answered twice, and says by whom and when. Answers that are more than guard apart are to copies that came so far apart, as one of this
// machine's processors stood still: two owners at one time would have answered at the same time. They are told, and are no failure.
func (fs *flows) noDoubles(t testing.TB, since time.Time) {
	t.Helper()
	for _, fl := range fs.all {
		fl.mu.Lock()
		for _, d := range fl.doubles {
			tell := t.Errorf
			if d.second.at.Sub(d.first.at) > guard {
				tell = t.Logf
			}
			tell("datagram %d of %v was answered by d%d %v after the beginning, and by d%d %v later", d.number, fl.from, d.first.director+1,
				d.first.at.Sub(since).Round(time.Microsecond), d.second.director+1, d.second.at.Sub(d.first.at).Round(time.Microsecond))
		}
		fl.mu.Unlock()
	}
}

// gap returns the longest time without an answer that begins after a moment and before another.
func (fl *flow) gap(after, before time.Time) (longest time.Duration) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	last := after
	for _, a := range fl.answers {
		if a.at.Before(after) {
			last = a.at
			continue
		}
		if last.After(before) {
			break
		}
		longest = max(longest, a.at.Sub(last))
		last = a.at
	}
	return longest
}

// answeredSince reports whether all flows have had an answer since a moment.
func answeredSince(list []*flow, at time.Time) bool {
	for _, fl := range list {
		fl.mu.Lock()
		n := len(fl.answers)
		ok := n > 0 && fl.answers[n-1].at.After(at)
		fl.mu.Unlock()
		if !ok {
			return false
		}
	}
	return true
}

// answered waits until all flows are answered.
func (fs *flows) answered(t testing.TB) {
	t.Helper()
	until(t, 5*time.Second, "answers", func() bool { return answeredSince(fs.all, time.Now().Add(-50*time.Millisecond)) })
}

// worstGap is the longest time for which one of some flows was not answered, from an event on or from shortly before.
func worstGap(list []*flow, event, before time.Time) (worst time.Duration) {
	for _, fl := range list {
		worst = max(worst, fl.gap(event.Add(-20*time.Millisecond), before))
	}
	return worst
}

// until waits until check holds.
func until(t testing.TB, limit time.Duration, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !check(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// percentile returns the p-th percentile of durations.
func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	s := slices.Clone(list)
	slices.Sort(s)
	return s[min(len(s)-1, int(float64(len(s))*p/100))]
}
