package table

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// sums are the digests of all buckets that are not empty.
func sums(tab *Table, cut uint64) map[uint16][2]uint64 {
	out := map[uint16][2]uint64{}
	for b := range uint16(Buckets) {
		if sum, count := tab.Digest(b, cut); count > 0 {
			out[b] = [2]uint64{sum, uint64(count)}
		}
	}
	return out
}

// said is an update as its origin says it.
type said struct {
	r     *ipvssync.Record
	from  peer.ID
	stamp Stamp
}

// drawSaid draws an update at a time, which is its clock as well. Later updates have later grants: whoever takes over speaks later.
func drawSaid(t *rapid.T, client int, when time.Time) said {
	timeout := uint32(rapid.IntRange(5, 40).Draw(t, "timeout"))
	r := tcp(client, timeout)
	if client%3 == 0 {
		r = udp6(client, timeout)
	}
	r.State, r.Fwmark = uint16(rapid.IntRange(0, 300).Draw(t, "state")), uint32(client%2)
	if rapid.IntRange(0, 4).Draw(t, "extras") == 0 {
		r.HasSeq, r.In.Delta, r.PEData = true, timeout, []byte("pe")
	}
	return said{r, peer.ID(rapid.IntRange(1, 4).Draw(t, "origin")), Stamp{mirror.Grant(when.Sub(t0) / (2 * time.Second)), uint64(when.UnixMicro())}}
}

func drawTime(t *rapid.T, label string, limit time.Duration) time.Duration {
	return time.Duration(rapid.Int64Range(0, limit.Microseconds()).Draw(t, label)) * time.Microsecond
}

// replica is a table with clock and habits of its own.
type replica struct {
	*Table
	inbox []delivery
}

type delivery struct {
	when time.Time
	said
	age uint32
}

// run delivers what has arrived until now and sweeps now and then.
func (r *replica) run(t *rapid.T, now time.Time) {
	slices.SortStableFunc(r.inbox, func(a, b delivery) int { return a.when.Compare(b.when) })
	for len(r.inbox) > 0 && !r.inbox[0].when.After(now) {
		d := r.inbox[0]
		r.inbox = r.inbox[1:]
		if rapid.IntRange(0, 9).Draw(t, "sweep") == 0 {
			r.Expire(d.when)
		}
		r.Put(d.when, d.r, d.from, d.stamp, d.age)
	}
	if rapid.Bool().Draw(t, "sweep") || r.seconds(now) > r.v4.swept+10 {
		r.Expire(now)
	}
}

// learn enters what a teacher has, up to half a second after it said so.
func (r *replica) learn(t *rapid.T, now time.Time, teacher *Table) {
	for c := (Cursor{}); !c.Done; {
		c = teacher.Walk(now, c, 1000, func(e *Entry) bool {
			rec := e.Record
			when := now.Add(drawTime(t, "taught", 500*time.Millisecond))
			r.inbox = append(r.inbox, delivery{when, said{&rec, e.Origin, e.Stamp}, e.Age()})
			return true
		})
	}
}

// Replicas that heard the same, each at its own time and in its own order, or were taught it at second hand, have the same digests for a cut in
// the past, whatever they have dropped meanwhile and whatever else is on its way.
func TestDigestsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*replica
		fresh := func() *replica { return &replica{Table: New(t0.Add(drawTime(t, "epoch", time.Second)))} }
		all = append(all, fresh(), fresh())
		now, client, last := t0.Add(time.Second), 0, time.Time{}
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			// A burst of updates of old connections and new ones.
			start := now
			for range rapid.IntRange(1, 60).Draw(t, "updates") {
				when := start.Add(drawTime(t, "when", 3*time.Second))
				if !when.After(last) {
					when = last.Add(time.Microsecond) // no two are the same
				}
				last, now = when, when
				c := rapid.IntRange(0, 30).Draw(t, "client")
				u := drawSaid(t, c, when)
				for _, r := range all {
					r.inbox = append(r.inbox, delivery{when.Add(drawTime(t, "travel", time.Second)), u, 0})
				}
			}
			now = now.Add(time.Second + drawTime(t, "pause", 4*time.Second))
			// Connections that only the first replica has heard of.
			for range rapid.IntRange(0, 3).Draw(t, "under way") {
				client++
				u := drawSaid(t, 1000+client, now.Add(-drawTime(t, "young", 200*time.Millisecond)))
				for i, r := range all {
					r.inbox = append(r.inbox, delivery{now.Add(time.Duration(i) * 200 * time.Millisecond), u, 0})
				}
			}
			var want map[uint16][2]uint64
			cut := uint64(now.Add(-time.Second - drawTime(t, "cut", 3*time.Second)).UnixMicro())
			for i, r := range all {
				r.run(t, now)
				got := sums(r.Table, cut)
				if i == 0 {
					want = got
				} else if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("replica %d differs at %v (-replica 0 +this one):\n%s", i, now.Sub(t0), diff)
				}
			}
			if len(all) < 5 && rapid.Bool().Draw(t, "join") {
				// A newcomer hears what is under way as well; it can have everything from now on.
				r, teacher := fresh(), all[len(all)-1]
				r.inbox = slices.Clone(teacher.inbox)
				r.learn(t, now, teacher.Table)
				all = append(all, r)
				now = now.Add(time.Second)
			}
			last = now
		}
	})
}

// One entry that is missing, older or different makes its own bucket differ and no other.
func TestDigestsDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := t0.Add(time.Hour)
		cut := uint64(now.UnixMicro())
		n := rapid.IntRange(1, 200).Draw(t, "entries")
		victim := rapid.IntRange(0, n-1).Draw(t, "victim")
		change := rapid.SampledFrom(slices.Sorted(maps.Keys(changes))).Draw(t, "change")
		a, b := New(t0), New(t0)
		var r *ipvssync.Record
		for i := range n {
			u := drawSaid(t, i, now.Add(-time.Duration(i)*time.Millisecond))
			u.r.Timeout += 60
			a.Put(now, u.r, u.from, u.stamp, 0)
			if i == victim {
				if r = u.r; !changes[change](&u) {
					continue
				}
			}
			b.Put(now, u.r, u.from, u.stamp, 0)
		}
		want, got := sums(a, cut), sums(b, cut)
		bucket := BucketOf(r)
		if want[bucket] == got[bucket] {
			t.Errorf("%s: bucket %d does not differ", change, bucket)
		}
		delete(want, bucket)
		delete(got, bucket)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: other buckets than %d differ:\n%s", change, bucket, diff)
		}
	})
}

// changes are what may be wrong with an entry; false: it is missing.
var changes = map[string]func(*said) bool{
	"missing": func(*said) bool { return false },
	"clock":   func(u *said) bool { u.stamp.Clock--; return true },
	"grant":   func(u *said) bool { u.stamp.Grant--; return true },
	"origin":  func(u *said) bool { u.from++; return true },
	"state":   func(u *said) bool { u.r.State++; return true },
	"flags":   func(u *said) bool { u.r.Flags ^= ipvssync.FlagInactive; return true },
	"fwmark":  func(u *said) bool { u.r.Fwmark++; return true },
	"timeout": func(u *said) bool { u.r.Timeout--; return true },
	"server": func(u *said) bool {
		u.r.Real = u.r.Virtual
		return true
	},
	"sequence": func(u *said) bool {
		u.r.HasSeq = true
		u.r.Out.Init++
		return true
	},
	"engine": func(u *said) bool { u.r.PEName = []byte("sip"); return true },
}
