package core

import (
	"testing"
	"time"
)

func TestSlack(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct{ lease, deadtime, guard, want time.Duration }{
		{300 * ms, 500 * ms, 20 * ms, 50 * ms}, // the defaults
		{160 * ms, 250 * ms, 20 * ms, 50 * ms},
		{430 * ms, 500 * ms, 20 * ms, 50 * ms}, // deadtime has room for just that
		{3000 * ms, 5000 * ms, 20 * ms, 500 * ms},
		{3000 * ms, 3200 * ms, 20 * ms, 180 * ms}, // a sixth would reach beyond deadtime
		{310 * ms, 1000 * ms, 30 * ms, 51 * ms},   // what the kernel takes: whole milliseconds
	} {
		c := Config{Keepalive: 30 * ms, Warntime: 100 * ms, Deadtime: tt.deadtime, Lease: tt.lease, Guard: tt.guard}
		if err := c.Check(); err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
		if got := c.Slack(); got != tt.want {
			t.Errorf("lease %v, deadtime %v, guard %v: slack %v, want %v", tt.lease, tt.deadtime, tt.guard, got, tt.want)
		}
		if w := c.wait(); w > tt.deadtime || w != tt.lease+tt.want+tt.guard {
			t.Errorf("lease %v, deadtime %v: a wait of %v", tt.lease, tt.deadtime, w)
		}
	}
}
