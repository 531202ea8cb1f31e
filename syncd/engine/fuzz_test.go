package engine

import (
	"slices"
	"testing"
	"time"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

// FuzzFromNetwork: whatever comes, nothing panics, and what is not signed changes nothing. Resigned, it is what somebody with the key may
// send: nothing panics, and each datagram is either counted as received or dropped for one reason.
func FuzzFromNetwork(f *testing.F) {
	seed := pair(f, "enforce")
	for _, d := range goodDatagrams(seed) {
		f.Add(d, false)
		f.Add(d, true)
	}
	f.Add(kernelMessage(f, conn(1), conn(2)), false)
	f.Add(kernelMessage(f, conn(1), conn(2)), true)
	seq := conn(3)
	seq.HasSeq, seq.Flags, seq.PEName, seq.PEData = true, ipvssync.FlagSeqMask, []byte("sip"), []byte("call")
	f.Add(seed.forge(forgery{records: []ipvssync.Record{seq, seq}}), true)
	strict, open := pair(f, "enforce"), pair(f, "permissive")
	f.Fuzz(func(t *testing.T, d []byte, resign bool) {
		b := strict.all["b"]
		before, state, original := b.counters, b.state(), slices.Clone(d)
		known := strict.ring().Verify(1, d) == nil
		b.FromNetwork(strict.now, 0, stockA, d)
		if !known && (b.counters[ReceivedDatagrams] != before[ReceivedDatagrams] || b.state() != state) {
			t.Fatalf("an unsigned datagram counts: %x", d)
		}
		if !slices.Equal(d, original) {
			t.Fatal("the datagram was written to")
		}
		b = open.all["b"]
		if resign && len(d) >= mirror.MinLen+ipvssync.HeaderLenV1 {
			// As a would have sent it, so that it gets past seal, admission and window.
			a, fixed := open.all["a"], len(d)-mirror.MinLen
			copy(d[fixed:], "SARU\x01\x01")
			tr, _, err := mirror.ParseTrailer(d)
			if err == nil {
				tr.Sender, tr.Incarnation, tr.Sequence = uint64(a.self), uint64(a.cfg.Incarnation), b.peers.Get(a.self).Stream.Newest()+1
				if !tr.Kind.Stream() {
					tr.Sequence = b.peers.Get(a.self).Control.Newest() + 1
				}
				if d, err = mirror.AppendTrailer(slices.Clone(d[:fixed-len(tr.Body)]), &tr); err != nil {
					t.Fatal(err)
				}
			}
			open.ring().Sign(d)
		}
		before = b.counters
		b.FromNetwork(open.now, 0, stockA, d)
		sum := b.counters[ReceivedDatagrams] - before[ReceivedDatagrams] + b.counters[DuplicateLink] - before[DuplicateLink] +
			b.counters[RepairKnown] - before[RepairKnown]
		for c := DropForged; c <= DropStock; c++ {
			sum += b.counters[c] - before[c]
		}
		if sum != 1 {
			t.Fatalf("counted %d times: %v", sum, b.changed(before))
		}
		open.now = open.now.Add(time.Millisecond)
		b.Tick(open.now)
		open.wire = nil
		b.injected = b.injected[:0]
		strict.log.Reset()
		if open.log.Reset(); b.table.Len() > 1000 {
			open = pair(t, "permissive")
		}
	})
}

// FuzzFromTap: whatever the kernel, or somebody in its place, writes, nothing panics, each record is counted once, and what is sent is
// believed by the others and says the same.
func FuzzFromTap(f *testing.F) {
	f.Add(kernelMessage(f, conn(1), conn(2)))
	opts := conn(3)
	opts.HasSeq, opts.Flags, opts.PEName, opts.PEData = true, ipvssync.FlagSeqMask|ipvssync.FlagSync, []byte("sip"), []byte("call")
	f.Add(kernelMessage(f, opts, conn(4), opts))
	tick := conn(0)
	tick.Virtual = tickVS
	f.Add(kernelMessage(f, tick))
	farm := pair(f, "enforce")
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, b := farm.all["a"], farm.all["b"]
		ca, cb := a.counters, b.counters
		original := slices.Clone(msg)
		a.FromTap(farm.now, msg)
		a.Flush()
		farm.deliver()
		if !slices.Equal(msg, original) {
			t.Fatal("the message was written to")
		}
		if n := b.counters[RemoteRecords] - cb[RemoteRecords]; n != a.counters[SentRecords]-ca[SentRecords] {
			t.Fatalf("%d records arrived: %v, %v", n, a.changed(ca), b.changed(cb))
		}
		if b.counters[RemoteStale] != cb[RemoteStale] {
			t.Fatalf("what a sends is stale: %v", b.changed(cb))
		}
		for c := DropForged; c <= DropStock; c++ {
			if b.counters[c] != cb[c] {
				t.Fatalf("what a sends is dropped: %v", b.changed(cb))
			}
		}
		if x, y := a.table.Len(), b.table.Len(); x != y {
			t.Fatalf("%d and %d entries", x, y)
		}
		a.injected, b.injected, farm.tape = nil, nil, nil
		if farm.log.Reset(); a.table.Len() > 1000 { // it must not grow for as long as the fuzzing goes on
			farm = pair(t, "enforce")
		}
	})
}
