package table

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

var (
	t0     = time.Unix(1_000_000, 0)
	equate = []cmp.Option{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}
)

func tcp(client int, timeout uint32) *ipvssync.Record {
	return &ipvssync.Record{
		Protocol: 6, State: ipvssync.TCPEstablished, Timeout: timeout, Flags: 0x100, Fwmark: 3,
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(client >> 16), byte(client >> 8), byte(client)}), 4000),
		Virtual: netip.MustParseAddrPort("192.0.2.1:80"),
		Real:    netip.MustParseAddrPort("10.9.0.7:8080"),
	}
}

func udp6(client int, timeout uint32) *ipvssync.Record {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[14], a[15] = byte(client>>8), byte(client)
	return &ipvssync.Record{
		Protocol: 17, Timeout: timeout,
		Client:  netip.AddrPortFrom(netip.AddrFrom16(a), 53),
		Virtual: netip.MustParseAddrPort("[2001:db8::1]:53"),
		Real:    netip.MustParseAddrPort("[fd00::7]:5353"),
	}
}

func at(clock uint64) Stamp { return Stamp{Clock: clock} }

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(entry[[4]byte]{}); n != 72 {
		t.Errorf("an IPv4 entry takes %d bytes; doc.go says 72", n)
	}
	if n := unsafe.Sizeof(entry[[16]byte]{}); n != 112 {
		t.Errorf("an IPv6 entry takes %d bytes; doc.go says 112", n)
	}
}

func TestPutGet(t *testing.T) {
	tab := New(t0)
	ftp := tcp(1, 900)
	ftp.HasSeq, ftp.Flags = true, ipvssync.FlagSeqMask
	ftp.In, ftp.Out = ipvssync.Seq{Init: 1, Delta: 2, PrevDelta: 3}, ipvssync.Seq{Init: 4}
	sip := udp6(2, 300)
	sip.PEName, sip.PEData = []byte("sip"), []byte("call-id")
	odd := udp6(5, 300)
	odd.State = 0x1234 // no kernel has it, but the record can carry it
	template := tcp(1, 360)
	template.Flags = ipvssync.FlagTemplate
	for i, r := range []*ipvssync.Record{ftp, sip, template, tcp(3, 10), odd} {
		if got := tab.Put(t0, r, 7, Stamp{mirror.NewGrant(1, 2), uint64(i + 1)}, 4); got != Inserted {
			t.Fatalf("record %d: outcome %v", i, got)
		}
		e, ok := tab.Get(t0.Add(time.Second), r)
		if !ok {
			t.Fatalf("record %d is not there", i)
		}
		want := Entry{Record: *r, Origin: 7, Stamp: Stamp{mirror.NewGrant(1, 2), uint64(i + 1)}, Remaining: time.Duration(r.Timeout-5) * time.Second}
		if diff := cmp.Diff(want, e, equate...); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
		if e.Age() != 5 {
			t.Errorf("record %d is %d s old, want 5", i, e.Age())
		}
	}
	if tab.Len() != 5 || tab.Origin(7) != 5 || tab.Origin(8) != 0 {
		t.Errorf("%d entries, %d of origin 7", tab.Len(), tab.Origin(7))
	}
	plain := tcp(1, 900)
	if got := tab.Put(t0, plain, 7, at(99), 0); got != Stale {
		t.Errorf("a later clock under an earlier grant: %v", got)
	}
	if got := tab.Put(t0, plain, 8, Stamp{mirror.NewGrant(2, 0), 1}, 0); got != Replaced {
		t.Errorf("an earlier clock under a later grant: %v", got)
	}
	if e, _ := tab.Get(t0, plain); e.Record.HasSeq || e.Origin != 8 || tab.Origin(7) != 4 || len(tab.extras) != 2 {
		t.Errorf("replaced entry keeps sequence data or origin: %+v", e)
	}
	for name, got := range map[string]Outcome{
		"as old as its timeout": tab.Put(t0, tcp(9, 10), 7, at(1), 10),
		"timeout 0":             tab.Put(t0, tcp(9, 0), 7, at(1), 0),
		"clock 0":               tab.Put(t0, tcp(9, 10), 7, Stamp{Grant: 5}, 0),
	} {
		if got != Refused {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestExpire(t *testing.T) {
	tab := New(t0)
	for i := range 5000 {
		tab.Put(t0, tcp(i, uint32(1+i)), 1, at(1), 0)
		tab.Put(t0, udp6(i, uint32(1+i)), 2, at(1), 0)
	}
	tab.Put(t0, tcp(0, 9000), 1, at(2), 0)      // prolonged
	tab.Put(t0, tcp(4999, 100), 1, at(2), 0)    // shortened
	tab.Put(t0, tcp(1<<20, 1<<31), 1, at(2), 0) // for ever
	for sec := range 5001 {
		now := t0.Add(time.Duration(sec) * time.Second)
		tab.Expire(now)
		want := 2 * max(0, 5000-sec)
		if sec == 0 {
			want = 10000
		} else {
			want++ // the prolonged one
		}
		if sec >= 100 && sec < 5000 {
			want-- // the shortened one
		}
		want++ // for ever
		if got := tab.Len(); got != want {
			t.Fatalf("after %d s: %d entries, want %d", sec, got, want)
		}
	}
	tab.Expire(t0.Add(100 * time.Hour)) // a guest that slept
	if tab.Len() != 1 || tab.Origin(2) != 0 || tab.Origin(1) != 1 || len(tab.extras) != 0 {
		t.Errorf("%d entries, origins %d and %d", tab.Len(), tab.Origin(1), tab.Origin(2))
	}
}

func TestOrigins(t *testing.T) {
	tab := New(t0)
	for i := range 1<<16 + 10 {
		if i == 1<<16 {
			if got := tab.Put(t0, tcp(1<<21, 9), peer.ID(i+1), at(1), 0); got != Refused {
				t.Fatalf("origin %d while all have entries: %v", i, got)
			}
			tab.Expire(t0.Add(10 * time.Second))
		}
		if got := tab.Put(t0, tcp(i, 9), peer.ID(i+1), at(1), 0); got != Inserted {
			t.Fatalf("origin %d: %v", i, got)
		}
	}
}

// model is the table as plain Go.
type model struct {
	entries map[string]Entry
}

// The table agrees with a map, through growth, replacement, expiry and reuse.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab, m, now := New(t0), model{map[string]Entry{}}, t0
		name := func(r *ipvssync.Record) string {
			return r.Client.String() // everything else of the key follows from it here
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				// Many at once, so that the index splits.
				for range rapid.IntRange(1, 400).Draw(t, "n") {
					n, timeout := rapid.IntRange(0, 2000).Draw(t, "client"), uint32(rapid.IntRange(1, 40).Draw(t, "timeout"))
					r := tcp(n, timeout)
					if n%3 == 0 {
						r = udp6(n, timeout)
					}
					r.HasSeq = n%5 == 0
					from, st := peer.ID(n%4+1), at(rapid.Uint64Range(1, 5).Draw(t, "clock"))
					old, there := m.entries[name(r)]
					want := Inserted
					if there {
						want = Stale
						if st.Compare(from, old.Stamp, old.Origin) > 0 {
							want = Replaced
						}
					}
					if got := tab.Put(now, r, from, st, 0); got != want {
						t.Fatalf("Put: %v, want %v", got, want)
					}
					if want != Stale {
						m.entries[name(r)] = Entry{Record: *r, Origin: from, Stamp: st, Remaining: now.Sub(t0) + time.Duration(timeout)*time.Second}
					}
				}
			},
			"expire": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 15).Draw(t, "seconds")) * time.Second)
				tab.Expire(now)
				for k, e := range m.entries {
					if e.Remaining <= now.Sub(t0) {
						delete(m.entries, k)
					}
				}
			},
			"": func(t *rapid.T) {
				seen := map[string]bool{}
				for c := (Cursor{}); !c.Done; {
					c = tab.Walk(now, c, 77, func(e *Entry) bool {
						k := name(&e.Record)
						want := m.entries[k]
						want.Remaining -= now.Sub(t0)
						same := want.Origin == e.Origin && want.Stamp == e.Stamp && want.Remaining == e.Remaining &&
							want.Record.Real == e.Record.Real && want.Record.Timeout == e.Record.Timeout && want.Record.HasSeq == e.Record.HasSeq
						if !same || seen[k] {
							t.Fatalf("%s visited %v (-want +got):\n%s", k, seen[k], cmp.Diff(want, *e, equate...))
						}
						seen[k] = true
						return len(seen)%3 != 0
					})
				}
				if len(seen) != len(m.entries) || tab.Len() != len(m.entries) {
					t.Fatalf("walk visits %d, Len %d, want %d", len(seen), tab.Len(), len(m.entries))
				}
				for _, e := range m.entries {
					if _, ok := tab.Get(now, &e.Record); !ok || !tab.Has(&e.Record) {
						t.Fatalf("%v is not found", e.Record.Client)
					}
				}
				for b := range uint16(Buckets) {
					size := 0
					tab.Bucket(now, b, func(e *Entry) bool {
						size++
						if k := name(&e.Record); BucketOf(&e.Record) != b || !seen[k] {
							t.Fatalf("bucket %d has %s, which belongs to %d", b, k, BucketOf(&e.Record))
						} else {
							delete(seen, k)
						}
						return true
					})
					if got := tab.BucketLen(b); got != size {
						t.Fatalf("bucket %d has %d entries, and says %d", b, size, got)
					}
				}
				if len(seen) > 0 {
					t.Fatalf("%d entries are in no bucket", len(seen))
				}
			},
		})
	})
}

func TestStampOrderIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(n string) (peer.ID, Stamp) {
			return peer.ID(rapid.IntRange(0, 2).Draw(t, n)), Stamp{mirror.Grant(rapid.IntRange(0, 2).Draw(t, n)), rapid.Uint64Range(0, 2).Draw(t, n)}
		}
		ao, a := draw("a")
		bo, b := draw("b")
		co, c := draw("c")
		if a.Compare(ao, b, bo) != -b.Compare(bo, a, ao) {
			t.Fatal("not antisymmetric")
		}
		if a.Compare(ao, b, bo) <= 0 && b.Compare(bo, c, co) <= 0 && a.Compare(ao, c, co) > 0 {
			t.Fatal("not transitive")
		}
	})
}

func TestClock(t *testing.T) {
	var c Clock
	if a, b := c.Next(100), c.Next(50); a != 100 || b != 101 {
		t.Errorf("wall clock that goes back: %d, %d", a, b)
	}
	c.Seen(500, 110)
	if got := c.Next(120); got != 510 {
		t.Errorf("10 microseconds after a later stamp: %d", got)
	}
	c.Seen(MaxClock+1, 120)
	if got := c.Next(120); got != 511 {
		t.Errorf("after what is no stamp: %d", got)
	}
	// A clock that is set back by an hour must not make this one stand still for an hour.
	const hour = 3600 * 1e6
	before := c.Next(10 * hour)
	if a, b := c.Next(9*hour), c.Next(9*hour+1000); a != before+1 || b != before+1000 {
		t.Errorf("set back by an hour: %d, %d after %d", a, b, before)
	}
}
