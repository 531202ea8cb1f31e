package engine

import (
	"errors"
	"net/netip"
	"time"

	"saru/lib/peer"
	"saru/syncd/table"
)

// Directors of these tests teach at addresses that follow from their names.
func teaches(name string) netip.AddrPort {
	id := peer.IDOf(name)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(id >> 16), byte(id >> 8), byte(id)}), 8848)
}

var errUnreachable = errors.New("no route to host")

// session holds a pull to its end, as the daemon does over TCP: from the engine that teaches to the one that asked. fail says after
// how many buckets the teacher dies; 0: never.
func session(now, teacherNow time.Time, d, teacher *Engine, pull Pull, fail int) {
	if teacher == nil || teacher.cfg.Incarnation != pull.Incarnation {
		d.PullEnded(now, PullResult{}, errUnreachable)
		return
	}
	res := PullResult{Complete: teacher.Synced()}
	cut := d.Cut(now)
	for b := range uint16(table.Buckets) {
		if fail > 0 && int(b) == fail {
			d.PullEnded(now, res, errUnreachable)
			return
		}
		if pull.Purpose == PullAudit {
			here, _ := d.Digest(b, cut)
			if there, _ := teacher.Digest(b, cut); here == there {
				continue
			}
			res.Differing++
		}
		var entries []table.Entry
		names := map[peer.ID]string{}
		teacher.Bucket(teacherNow, b, func(en *table.Entry) bool {
			if en.Remaining >= time.Second {
				entries = append(entries, *en)
				names[en.Origin] = teacher.OriginName(en.Origin)
			}
			return true
		})
		res.Entries += uint64(len(entries))
		if len(entries) > 0 {
			d.Pulled(now, entries, names)
		}
	}
	d.PullEnded(now, res, nil)
}

// turn is what the daemon does every 20 ms, with a kernel that enters at once what it is given.
func (f *farm) turn(d *director) {
	d.Tick(f.now)
	if pull, ok := d.NextPull(f.now); ok {
		session(f.now, f.now, d.Engine, f.teacher(d.name, pull), pull, 0)
	}
	d.enter(f.now)
}

// enter says that the kernel has entered everything.
func (d *director) enter(now time.Time) {
	if d.Unconfirmed() {
		d.Injected(now, d.Mark())
	}
}

// teacher returns the engine that a director reaches at a pull's address, or nil.
func (f *farm) teacher(from string, pull Pull) *Engine {
	for name, d := range f.all {
		if !d.down && d.cfg.Teaches == pull.Addr {
			if f.drop != nil && (f.drop(from, name, nil) || f.drop(name, from, nil)) {
				return nil
			}
			return d.Engine
		}
	}
	return nil
}
