package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

func TestKeySet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s keySet
		model := map[uint64]bool{}
		// Many share their upper or lower bits, so that shards are full and slots collide.
		hash := rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 300), rapid.Map(rapid.Uint64Range(0, 300), func(h uint64) uint64 { return h << 40 }),
			rapid.Map(rapid.Uint64Range(0, 300), func(h uint64) uint64 { return ^h }))
		for _, h := range rapid.SliceOfN(hash, 0, 2000).Draw(t, "hashes") {
			if h == 0 {
				h = 1
			}
			if got := s.add(h); got == model[h] {
				t.Fatalf("add %x: new %v, known %v", h, got, model[h])
			}
			model[h] = true
		}
		for h := range model {
			if !s.has(h) {
				t.Fatalf("%x is lost", h)
			}
		}
		for _, h := range rapid.SliceOfN(hash, 100, 100).Draw(t, "others") {
			if s.has(h) != model[max(h, 1)] {
				t.Fatalf("%x is there: %v", h, s.has(h))
			}
		}
		if s.count != len(model) {
			t.Fatalf("%d counted, %d there", s.count, len(model))
		}
	})
}

// A set grows evenly: 16 bytes for each of a million at the most, while it grows as well.
func TestKeySetMemory(t *testing.T) {
	var s keySet
	r := rand.New(rand.NewPCG(1, 2))
	for n := 1; n <= 1_000_000; n++ {
		s.add(r.Uint64())
		if n < 10_000 || n%50_000 != 0 {
			continue
		}
		slots := 0
		for i := range s.shards {
			slots += len(s.shards[i].slots)
		}
		if each := float64(slots) * 8 / float64(n); each > 16 {
			t.Fatalf("%d hashes take %.1f bytes each", n, each)
		} else if n == 1_000_000 {
			t.Logf("%.1f bytes each", each)
		}
	}
}

// connection n of a farm that is large enough for many batches.
func connection(n int) ipvssync.Record {
	r := established(one)
	r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16 + byte(n>>16), byte(n >> 8), byte(n)}), 40000)
	return r
}

// lineOf makes the line that the kernel shows of a record.
func lineOf(r *ipvssync.Record, left uint32) ipvs.ProcConn {
	c := ipvs.ProcConn{
		Protocol: r.Protocol, Client: r.Client, Virtual: r.Virtual, Real: r.Real, State: state(r), Template: r.Template(),
		Synced: r.Flags&ipvssync.FlagSync != 0, Expires: time.Duration(left) * time.Second,
	}
	if r.Template() && r.Protocol == 0 {
		c.FwmarkService = r.Fwmark
	}
	return c
}

func TestPassInBatches(t *testing.T) {
	const n = 3*batch + 7
	r := newReplica()
	var list []ipvs.ProcConn
	for i := range n {
		rec := connection(i)
		if i%100 != 5 {
			list = append(list, lineOf(&rec, 880))
		}
		if i%100 != 6 {
			r.put(t, entry{from: other, record: rec, age: 20})
		}
	}
	list = append(list, list[:50]...)
	res := pass(t, config(), r, list)
	want := Counts{MissingInKernel: 8, MissingInReplica: 8}
	if diff := cmp.Diff(want, res.Counts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if res.Kernel != n-8 || res.Replica != n-8 || res.Duplicates != 50 || res.Ignored != 0 || res.Began != t0 || res.Ended != t0 {
		t.Errorf("%+v", res)
	}
	if want := []int{batch, batch, batch - 1}; !slices.Equal(r.lookups, want) || r.walks < n/100 {
		t.Errorf("looked up %d at a time, walked in %d parts", r.lookups, r.walks)
	}
	named := map[string]Kind{}
	for _, f := range res.Findings {
		named[f.Record().Client.String()] = f.Kind
		if (f.Kernel == nil) != (f.Kind == MissingInKernel) || (f.Replica == nil) != (f.Kind == MissingInReplica) || f.Local {
			t.Errorf("%+v", f)
		}
	}
	for i := range n {
		rec := connection(i)
		kind, ok := named[rec.Client.String()]
		if ok != (i%100 == 5 || i%100 == 6) || ok && (kind == MissingInKernel) != (i%100 == 5) {
			t.Errorf("connection %d: %v, %v", i, kind, ok)
		}
	}
}

// Findings are counted beyond their limit, and the first ones are kept, the same in each pass.
func TestManyFindings(t *testing.T) {
	r := newReplica()
	for i := range 1000 {
		r.put(t, entry{from: other, record: connection(i), age: 20})
	}
	cfg := config()
	cfg.Findings = 100
	first := pass(t, cfg, r, nil)
	if len(first.Findings) != 100 || first.Counts[MissingInKernel] != 1000 || !first.Truncated {
		t.Fatalf("%d findings of %d, truncated %v", len(first.Findings), first.Counts[MissingInKernel], first.Truncated)
	}
	cfg.Now = func() time.Time { return t0.Add(time.Minute) }
	if n := len(confirm(first, pass(t, cfg, r, nil))); n != 100 {
		t.Errorf("%d confirmed", n)
	}
}

// From half a list nothing follows.
func TestRunFails(t *testing.T) {
	r := newReplica()
	r.put(t, entry{from: other, record: connection(1), age: 20})
	broken := errors.New("broken")
	half := func(yield func(ipvs.ProcConn, error) bool) {
		rec := connection(2)
		_ = yield(lineOf(&rec, 880), nil) && yield(ipvs.ProcConn{}, broken)
	}
	endless := func(yield func(ipvs.ProcConn, error) bool) {
		for i := 0; ; i++ {
			rec := connection(i % 1000)
			if !yield(lineOf(&rec, 880), nil) {
				return
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	limited := config()
	limited.Limit = 10
	for name, tt := range map[string]struct {
		ctx  context.Context
		cfg  Config
		list func(func(ipvs.ProcConn, error) bool)
		want error
	}{
		"broken off":         {t.Context(), config(), half, broken},
		"too long":           {t.Context(), limited, endless, ErrTooLong},
		"ended":              {ctx, config(), endless, context.Canceled},
		"ended after a list": {ctx, config(), listOf(nil), context.Canceled},
	} {
		if res, err := Run(tt.ctx, tt.cfg, r, tt.list); !errors.Is(err, tt.want) || len(res.Findings) != 0 || res.Counts != (Counts{}) {
			t.Errorf("%s: %v, %+v", name, err, res)
		}
	}
	limited.Limit = 1
	rec := connection(1)
	if _, err := Run(t.Context(), limited, r, listOf([]ipvs.ProcConn{lineOf(&rec, 880)})); err != nil {
		t.Errorf("as long as the limit: %v", err)
	}
}

// drawRecord draws an entry from a universe so small that kernel and replica often have the same one.
func drawRecord(t *rapid.T) ipvssync.Record {
	ap := netip.MustParseAddrPort
	six := rapid.IntRange(0, 4).Draw(t, "six") == 0
	protocol := rapid.SampledFrom([]uint8{6, 6, 17, 132, 50}).Draw(t, "protocol")
	r := ipvssync.Record{Protocol: protocol, Timeout: rapid.SampledFrom([]uint32{10, 60, 360, 900}).Draw(t, "timeout")}
	virtuals, servers := []string{web, direct, tls, "10.0.0.100:53", "10.0.0.100:5060", "10.0.0.100:3000", tick}, []string{one, two, "10.1.0.2:81", "10.1.0.2:443", "10.1.0.2:5060", "10.1.0.9:80"}
	number := byte(rapid.IntRange(0, 20).Draw(t, "client"))
	addr := netip.AddrFrom4([4]byte{192, 168, 1, number})
	if six {
		virtuals, servers = []string{"[fd00::64]:443", "[fd00::64]:80"}, []string{"[fd01::2]:443", "[fd01::9]:80"}
		addr = netip.AddrFrom16([16]byte{0xfd, 15: number})
	}
	r.Virtual, r.Real = ap(rapid.SampledFrom(virtuals).Draw(t, "virtual")), ap(rapid.SampledFrom(servers).Draw(t, "server"))
	r.Client = netip.AddrPortFrom(addr, 1000)
	states := map[uint8]int{6: 11, 17: 1, 132: 14, 50: 1}[protocol]
	if protocol != 50 && rapid.IntRange(0, 3).Draw(t, "template") == 0 {
		r.Flags, r.Client, states = ipvssync.FlagTemplate, netip.AddrPortFrom(addr, 0), 2
		if !six && rapid.Bool().Draw(t, "by mark") {
			r.Protocol, r.Fwmark, r.Virtual = 0, 7, ap("0.0.0.7:0")
		}
	}
	r.State = uint16(rapid.IntRange(0, states-1).Draw(t, "state"))
	if ipvs.Inactive(r.Protocol, r.State, r.Template()) && rapid.IntRange(0, 5).Draw(t, "moved") > 0 {
		r.Flags |= ipvssync.FlagInactive
	}
	if rapid.Bool().Draw(t, "synced") {
		r.Flags |= ipvssync.FlagSync
	}
	return r
}

// TestModel compares passes with a plain join of two maps. The rules are the same: TestRules is about them.
func TestModel(t *testing.T) {
	seen := Counts{} // over all runs: kinds that never occur are not tested
	rapid.Check(t, func(t *rapid.T) {
		cfg := config()
		if rapid.IntRange(0, 3).Draw(t, "half kept") == 0 {
			cfg.Kept = func(r *ipvssync.Record) bool { return r.Client.Addr().AsSlice()[r.Client.Addr().BitLen()/8-1]%2 == 0 }
		}
		r, model := newReplica(), NewPass(cfg, nil)
		for range rapid.IntRange(0, 400).Draw(t, "replica") {
			rec := drawRecord(t)
			if rec.Virtual.String() == tick {
				continue
			}
			from := self
			if rapid.Bool().Draw(t, "remote") {
				from = other
			}
			r.t.Put(t0, &rec, from, table.Stamp{Clock: rapid.Uint64Range(1, 3).Draw(t, "clock")}, uint32(rapid.IntRange(0, int(rec.Timeout)).Draw(t, "age")))
		}
		var list []ipvs.ProcConn
		kernel, want, named := map[key]bool{}, Counts{}, map[key]Kind{}
		note := func(r *ipvssync.Record, kind Kind, ok bool) {
			if !ok {
				return
			}
			want[kind]++
			seen[kind]++
			if kind.Difference() {
				named[keyOf(r)] = kind
			}
		}
		duplicates := 0
		for range rapid.IntRange(0, 600).Draw(t, "kernel") {
			rec := drawRecord(t)
			line := lineOf(&rec, uint32(rapid.IntRange(0, 900).Draw(t, "left")))
			if line.Template && rapid.IntRange(0, 3).Draw(t, "given up") == 0 {
				line.Invalidated, line.Virtual = true, netip.AddrPortFrom(line.Virtual.Addr(), 0xffff)
			}
			list = append(list, line)
			var c Conn
			switch {
			case line.Virtual.String() == tick || line.Invalidated:
				if line.Invalidated {
					model.givenUp[model.templateHash(&rec)] = true
				}
			case model.services.convert(&line, &c) != converted:
				t.Fatalf("%+v is not converted", line)
			case c.Fault == EngineData && c.Record.Template():
				note(&c.Record, Engine, true)
			case kernel[keyOf(&rec)]:
				duplicates++
			default:
				kernel[keyOf(&rec)] = true
				v := make([]View, 1)
				r.Lookup([]ipvssync.Record{c.Record}, v)
				kind, ok := model.judge(&c, &v[0])
				note(&c.Record, kind, ok)
			}
		}
		for cur := (table.Cursor{}); !cur.Done; {
			cur = r.t.Walk(t0, cur, 1000, func(e *table.Entry) bool {
				if !kernel[keyOf(&e.Record)] {
					note(&e.Record, model.absent(&View{Entry: *e, Known: true, Local: e.Origin == self}), true)
				}
				return true
			})
		}
		res, err := Run(context.Background(), cfg, r, listOf(list))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, res.Counts); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
		if res.Kernel != len(kernel) || res.Replica != r.t.Len() || res.Duplicates != duplicates {
			t.Fatalf("%d and %d compared, %d twice; want %d, %d, %d", res.Kernel, res.Replica, res.Duplicates, len(kernel), r.t.Len(), duplicates)
		}
		for _, f := range res.Findings {
			if named[keyOf(f.Record())] != f.Kind {
				t.Fatalf("%v is %v", f.Record().Client, f.Kind)
			}
			delete(named, keyOf(f.Record()))
		}
		if len(named) != 0 {
			t.Fatalf("not found: %v", named)
		}
		// What is still so later is confirmed to the last, and each finding is mended in one way at most.
		later := res
		later.Findings = slices.Clone(res.Findings)
		for i := range later.Findings {
			later.Findings[i].At = t0.Add(confirmAfter)
		}
		confirmed := confirm(res, later)
		if len(confirmed) != len(res.Findings) || len(confirm(res, res)) != 0 {
			t.Fatalf("%d of %d confirmed", len(confirmed), len(res.Findings))
		}
		inject, move, publish := Repairs(confirmed)
		inject = append(inject, move...)
		if len(inject)+len(publish) > len(confirmed) {
			t.Fatalf("%d findings, %d to inject, %d to publish", len(confirmed), len(inject), len(publish))
		}
		for i := range inject {
			if inject[i].Origin == self {
				t.Fatalf("this director's own is injected: %+v", inject[i])
			}
		}
		for i := range publish {
			if c := &publish[i]; c.Fault != Sound || c.Age > c.Record.Timeout || !ipvs.Reported(c.Record.Protocol, c.Record.State, c.Record.Template()) {
				t.Fatalf("published: %+v", c)
			}
		}
	})
	for k, n := range seen.All {
		if n == 0 {
			t.Errorf("%v never occurred", k)
		}
	}
}

// BenchmarkPass measures with a table that nobody else locks, per entry: time, with making the line, and memory of the pass at its end.
func BenchmarkPass(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		for _, equal := range []bool{true, false} {
			b.Run(fmt.Sprintf("entries=%d/equal=%v", n, equal), func(b *testing.B) {
				r := newReplica()
				for i := range n {
					rec := connection(i)
					if equal || i%1000 != 0 {
						r.put(b, entry{from: other, record: rec, age: 20})
					}
				}
				b.ReportAllocs()
				var before, after runtime.MemStats
				for b.Loop() {
					b.StopTimer()
					r.lookups = nil
					runtime.GC()
					runtime.ReadMemStats(&before)
					b.StartTimer()
					p := NewPass(config(), r)
					var line ipvs.ProcConn
					for i := range n {
						rec := connection(i)
						line = lineOf(&rec, 880)
						p.Line(&line)
					}
					if _, err := p.Finish(b.Context()); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					runtime.GC()
					runtime.ReadMemStats(&after)
					runtime.KeepAlive(p)
					b.StartTimer()
				}
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/entry")
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
			})
		}
	}
}
