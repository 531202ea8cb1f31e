package scenarios

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/integration/load"
)

// churn opens and ends connections of a service on some directors at the same time.
type churn struct {
	to      netip.AddrPort
	sources []*load.Packets
	next    int // number of the next connection
}

// churnService is a service whose director sees only the client's packets, so that a packet is enough for each state.
var churnService = farm.Service{Port: drPort, Method: farm.DR}

// newChurn prepares directors that are on to be loaded. All directors of the farm need churnService.
func newChurn(t testing.TB, directors ...*farm.Node) *churn {
	t.Helper()
	c := &churn{to: churnService.VIPPort()}
	for _, d := range directors {
		must(t, d.TakeVIP())
		_, err := d.RunInput(fmt.Sprintf(load.Deadend, farm.Inside), "nft", "-f", "-")
		must(t, err)
		p, err := load.OpenPackets(d)
		must(t, err)
		t.Cleanup(func() { p.Close() }) // the director may be off by then
		c.sources = append(c.sources, p)
	}
	return c
}

// run opens so many connections a second on each director until ctx ends; every second of them ends a moment later. It returns the
// rate that came out.
func (c *churn) run(ctx context.Context, rate int) (float64, error) {
	const step = 10 * time.Millisecond
	var open []span
	tick := time.NewTicker(step)
	defer tick.Stop()
	began, first := time.Now(), c.next
	finish := func(s span) error {
		for i := s.from; i < s.to; i++ {
			if i%4 < 2 { // as sources take turns
				if err := c.source(i).Finish(i, c.to); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for ctx.Err() == nil {
		s := span{c.next, first + int(time.Since(began).Seconds()*float64(rate*len(c.sources)))}
		for ; c.next < s.to; c.next++ {
			if err := c.source(c.next).Open(c.next, c.to); err != nil {
				return 0, err
			}
		}
		if open = append(open, s); len(open) > 10 {
			if err := finish(open[0]); err != nil {
				return 0, err
			}
			open = open[1:]
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	for _, s := range open {
		if err := finish(s); err != nil {
			return 0, err
		}
	}
	return float64(c.next-first) / time.Since(began).Seconds(), nil
}

// source is where a connection comes in: the directors take turns.
func (c *churn) source(i int) *load.Packets { return c.sources[i%len(c.sources)] }

// runFor is run for a time. It returns the connections that were made, too.
func (c *churn) runFor(t testing.TB, rate int, length time.Duration) (span, float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	s := span{from: c.next}
	got, err := c.run(ctx, rate)
	must(t, err)
	s.to = c.next
	return s, got
}

// start is run in the background. stop ends it and returns the rate.
func (c *churn) start(t testing.TB, rate int) (stop func() float64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var got float64
	done := make(chan error, 1)
	go func() {
		var err error
		got, err = c.run(ctx, rate)
		done <- err
	}()
	stop = sync.OnceValue(func() float64 {
		cancel()
		must(t, <-done)
		return got
	})
	t.Cleanup(func() { stop() })
	return stop
}

// span is a range of connections by number.
type span struct{ from, to int }

func (s span) count() int { return s.to - s.from }

// keys lists what the connections are told apart by.
func (c *churn) keys(s span) (all []entry) {
	for i := s.from; i < s.to; i++ {
		all = append(all, entry{unix.IPPROTO_TCP, load.PacketClient(i), c.to})
	}
	return all
}

// burst opens connections on one director as fast as it takes them.
func (c *churn) burst(t testing.TB, source, count int) span {
	t.Helper()
	s := span{c.next, c.next + count}
	for ; c.next < s.to; c.next++ {
		must(t, c.sources[source].Open(c.next, c.to))
	}
	return s
}
