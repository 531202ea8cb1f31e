package syncd

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// tableOf is a table in which bucket x is of member x mod the number of members, and the one behind it is next; but the first given buckets
// are of the first member.
func tableOf(version uint32, given int, members ...string) *control.Share {
	n := int(flow.Default.Buckets)
	s := &control.Share{
		Term: 2, Version: version, Buckets: flow.Default.Buckets, Seed: flow.DefaultSeed, Members: members,
		Virtuals: []control.ShareVirtual{{Address: testConn(0).Virtual.Addr()}}, Owner: make([]byte, n), Next: make([]byte, n), Held: "none",
	}
	for b := range n {
		owner := b % len(members)
		if b < given {
			owner = 0
		}
		s.Owner[b], s.Next[b] = byte(owner), byte((owner+1)%len(members))
	}
	return s
}

// holding is the share with all buckets held that are a member's.
func holding(s *control.Share, node string) *control.Share {
	var held []uint16
	for b, is := range s.Of(node, s.Owner) {
		if is {
			held = append(held, uint16(b))
		}
	}
	c := *s
	c.Held = flow.FormatBuckets(held, int(s.Buckets))
	return &c
}

// kept is how many of the connections [0, n) are of buckets that are or may soon be a member's.
func kept(s *control.Share, node string, n int) (k int) {
	owned, next := s.Of(node, s.Owner), s.Of(node, s.Next)
	for i := range n {
		r := testConn(i)
		if b := flow.Default.Bucket(r.Client, r.Virtual); owned[b] || next[b] {
			k++
		}
	}
	return k
}

// asked serves what saru asks for, and returns a client.
func (d *memDirector) asked(t *testing.T) *control.Client {
	t.Helper()
	l, err := control.Listen(filepath.Join(t.TempDir(), "syncd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var s control.Server
	s.HandleWork("POST "+control.PathSyncShare, d.serveShare)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return control.NewClient(l.Addr().String())
}

// A director with --kernel_entries next has in its kernel what saru's table says, and what moves to it before it may open its bucket.
func TestShare(t *testing.T) {
	const conns = 6000
	nstest.New(t)
	other := nstest.Other(t)
	nstest.Veth(t, "a0", []string{"192.0.2.10/24"}, other, "b0", []string{"192.0.2.11/24"})
	a := startMemory(t, "a", "a0")
	b := &memDirector{kernel: map[netip.AddrPort]ipvssync.Record{}}
	b.tap = tap.NewMemory(b.take, nil)
	other.Do(t, func() {
		b.Mirrorer = startChanged(t, func(c *engine.Config) { c.KernelNext = true }, testGroup, b.tap, "b", "b0")
	})
	client := b.asked(t)
	tell := func(s *control.Share) control.ShareSummary {
		t.Helper()
		sum, err := client.TellShare(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	members := []string{"b", "a", "c", "d", "e"}
	first := tableOf(4, 0, members...)
	if sum := tell(first); sum.Ready || sum.Why != "this director has not joined yet" || sum.Kept != 2*4096/5+1 {
		t.Errorf("before it has joined: %+v", sum)
	}
	eventually(t, "both are synced", synced(a, b))
	report(t, a, 0, conns, 40)
	eventually(t, "b's replica has all", func() bool { return b.Status().Connections.Remote == conns })
	if want := kept(first, "b", conns); want < conns/3 || want > conns/2 {
		t.Fatalf("b is to have %d of %d", want, conns)
	} else {
		eventually(t, "b's kernel has its own", func() bool { return b.entries() == want })
	}
	if n := b.keptRemote(); n != uint64(kept(first, "b", conns)) {
		t.Errorf("b counts %d", n)
	}

	// A third of all buckets comes to b. When it is told that it is ready, its kernel has all that it owns.
	second := tableOf(5, 4096/3, members...)
	before := b.entries()
	sum := tell(second)
	owned := second.Of("b", second.Owner)
	for i := range conns {
		r := testConn(i)
		b.mu.Lock()
		_, has := b.kernel[r.Client]
		b.mu.Unlock()
		if owned[flow.Default.Bucket(r.Client, r.Virtual)] && !has {
			t.Fatalf("ready, and connection %d is not in the kernel: %+v", i, sum)
		}
	}
	if !sum.Ready || sum.Why != "" || sum.Entries == 0 || b.entries()-before < int(sum.Entries) {
		t.Errorf("%+v; the kernel had %d and has %d", sum, before, b.entries())
	}
	if again := tell(holding(second, "b")); !again.Ready || again.Entries != 0 || again.Held != trues(owned) {
		t.Errorf("told again: %+v", again)
	}
	if st := b.Status(); st.Share != (control.SyncShare{
		Told: true, Term: 2, Version: 5, Held: trues(owned), Kept: sum.Kept, Ready: true, Settled: st.Share.Settled, NewestTerm: 2,
	}) || st.KernelEntries != KernelEntriesNext || len(st.Incarnation) != 16 {
		t.Errorf("status: %+v, %q, %q", st.Share, st.KernelEntries, st.Incarnation)
	}
	eventually(t, "all is settled", func() bool { return b.Status().Share.Settled })

	for name, tt := range map[string]struct {
		s    *control.Share
		want string
	}{
		"older":          {first, "a later table is known: term 2, version 4 is older than term 2, version 5"},
		"another one":    {tableOf(5, 0, members...), "another table of the same term and version is known: term 2, version 5"},
		"held of others": {holding(tableOf(6, 0, "a", "b"), "a"), "held: bucket 0 is not b's by the table"},
	} {
		if _, err := client.TellShare(t.Context(), tt.s); !errors.Is(err, control.ErrBadRequest) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
	if sum, err := client.ForgetShare(t.Context()); err != nil || !sum.Ready || b.Status().Share.Told {
		t.Errorf("forget: %+v, %v", sum, err)
	}
	eventually(t, "without saru b's kernel has all", func() bool { return b.entries() == conns })
	if b.keptRemote() != conns {
		t.Errorf("b counts %d", b.keptRemote())
	}
	if sum := tell(first); !sum.Ready {
		t.Errorf("an older table, after the later one was forgotten: %+v", sum)
	}

	// Without the option nothing is left out, and it is ready as soon as the kernel is.
	if sum, err := a.asked(t).TellShare(t.Context(), first); err != nil || !sum.Ready || sum.Entries != 0 {
		t.Errorf("a: %+v, %v", sum, err)
	}
	report(t, b, conns, conns+100, 40)
	eventually(t, "a's kernel has b's connections", func() bool { return a.entries() == 100 })
}

// A flush is of the buckets that saru knows.
func TestBucketing(t *testing.T) {
	share, err := newShare(&control.Share{
		Term: 1, Version: 1, Buckets: 16, Seed: 7, Owner: make([]byte, 16), Next: bytes.Repeat([]byte{1}, 16), Members: []string{"a", "b"}, Held: "3",
		Virtuals: []control.ShareVirtual{{Address: testConn(0).Virtual.Addr(), Sense: "src-addr"}},
	}, "a")
	if err != nil {
		t.Fatal(err)
	}
	function := share.Functions[testConn(0).Virtual.Addr()]
	told, untold := bucketing{share}, bucketing{}
	if told.buckets() != 16 || untold.buckets() != 4096 {
		t.Errorf("%d and %d buckets", told.buckets(), untold.buckets())
	}
	differ := 0
	for i := range 100 {
		r := testConn(i)
		by, plain := function.Bucket(r.Client, r.Virtual), flow.Default.Bucket(r.Client, r.Virtual)
		if by != plain {
			differ++
		}
		if !told.any(&r, map[uint32]bool{by: true}) || told.any(&r, map[uint32]bool{(by + 1) % 16: true}) {
			t.Errorf("connection %d is not of bucket %d", i, by)
		}
		if !untold.any(&r, map[uint32]bool{plain: true}) || untold.any(&r, map[uint32]bool{(plain + 1) % 4096: true}) {
			t.Errorf("without saru connection %d is not of bucket %d", i, plain)
		}
	}
	if differ < 50 {
		t.Errorf("the functions differ for %d of 100", differ)
	}
	foreign := testConn(1)
	foreign.Virtual = netip.MustParseAddrPort("192.0.2.77:80")
	if !told.any(&foreign, map[uint32]bool{3: true}) {
		t.Error("what is of no bucket is left behind")
	}
	if !share.Held[3] || share.Held[4] || !share.Owned[4] || share.Next[4] || share.Grant.Term() != 1 || share.Grant.Version() != 1 {
		t.Errorf("%+v", share)
	}
}
