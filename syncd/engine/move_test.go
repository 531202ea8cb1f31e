package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/proto/ipvssync"
)

// What is injected when a connection is told with another real server than before: what makes the kernel move it, if anything should.
func TestMove(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("10.9.0.8:8080")
	changed := func(change func(*ipvssync.Record)) ipvssync.Record {
		r := conn(1)
		change(&r)
		return r
	}
	udp := changed(func(r *ipvssync.Record) {
		r.Protocol, r.State, r.Timeout, r.Flags = ipvssync.ProtocolUDP, 0, 300, ipvssync.FlagInactive
	})
	template := changed(func(r *ipvssync.Record) {
		r.State, r.Timeout, r.Flags = ipvssync.TemplateAssured, 360, ipvssync.FlagTemplate|ipvssync.FlagInactive
	})
	closing := changed(func(r *ipvssync.Record) {
		r.State, r.Timeout, r.Flags = ipvssync.TCPTimeWait, 120, ipvssync.FlagInactive
	})
	moved := func(r ipvssync.Record) ipvssync.Record { r.Real = elsewhere; return r }
	active := func(r ipvssync.Record) ipvssync.Record { r.Flags &^= ipvssync.FlagInactive; return r }
	brief := func(r ipvssync.Record) ipvssync.Record { r.Timeout = 1; return r }

	for name, tt := range map[string]struct {
		r           ipvssync.Record
		once, later []ipvssync.Record
	}{
		"TCP":             {conn(1), []ipvssync.Record{moved(conn(1))}, nil},
		"TCP, closing":    {closing, []ipvssync.Record{moved(closing)}, nil},
		"UDP":             {udp, []ipvssync.Record{active(moved(udp)), moved(udp)}, nil},
		"template":        {template, []ipvssync.Record{brief(moved(template))}, []ipvssync.Record{moved(template)}},
		"UDP, but active": {active(udp), []ipvssync.Record{active(moved(udp))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, "a", "b")
			f.run(2 * time.Second)
			b := f.all["b"]
			same := func(step string, want []ipvssync.Record) {
				t.Helper()
				if diff := cmp.Diff(want, b.injected, equate...); diff != "" {
					t.Errorf("%s: injected (-want +got):\n%s", step, diff)
				}
				b.injected = nil
			}
			f.kernel("a", tt.r)
			same("at first", []ipvssync.Record{tt.r})
			f.kernel("a", tt.r)
			same("once more", []ipvssync.Record{tt.r})
			f.kernel("a", moved(tt.r))
			same("with another server", tt.once)
			if len(tt.later) > 0 {
				f.kernel("a", moved(tt.r))
				same("while it moves", nil)
			}
			f.run(3 * time.Second)
			for i := range b.injected { // by now some of its time is over, which a template keeps
				b.injected[i].Timeout = tt.r.Timeout
			}
			same("later", tt.later)
			f.kernel("a", moved(tt.r))
			same("in the end", []ipvssync.Record{moved(tt.r)})
		})
	}
}

// A flood of templates that move costs bounded memory; the audit of the kernel moves those beyond.
func TestMoveOfMany(t *testing.T) {
	f := newFarm(t, "a", "b")
	f.run(2 * time.Second)
	for _, real := range []string{"10.9.0.7:0", "10.9.0.8:0"} {
		for n := range maxMoving + 10 {
			r := conn(n)
			r.Flags, r.Timeout, r.Real = ipvssync.FlagTemplate, 360, netip.MustParseAddrPort(real)
			f.kernel("a", r)
		}
	}
	b := f.all["b"]
	if len(b.moving) != maxMoving {
		t.Errorf("%d templates are on the way, want %d", len(b.moving), maxMoving)
	}
	b.injected = nil
	f.run(3 * time.Second)
	if len(b.injected) != maxMoving || b.moving != nil {
		t.Errorf("%d were injected in the end, %d are left", len(b.injected), len(b.moving))
	}
}
