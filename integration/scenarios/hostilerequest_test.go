package scenarios

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/lib/peer"
	"saru/lib/seal"
	"saru/proto/mirror"
)

// ofKind returns what was heard of a node so far, of one kind.
func (w *wire) ofKind(name string, kind mirror.Kind) (out [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.tape {
		if d.Sender == uint64(peer.IDOf(name)) && d.Kind == kind {
			out = append(out, d.data)
		}
	}
	return out
}

// resign makes a datagram that says what d says, with a sequence number that has not been used, under a key of another file.
func resign(t *testing.T, d []byte, keys string) []byte {
	t.Helper()
	b := slices.Clone(d)
	f := b[len(b)-mirror.MinLen:]
	binary.BigEndian.PutUint64(f[28:], binary.BigEndian.Uint64(f[28:])+1000)
	parsed, err := seal.Parse([]byte(keys))
	must(t, err)
	ring, err := seal.NewRing(parsed, "syncd", "224.0.0.81:8848")
	must(t, err)
	ring.Sign(b)
	return b
}

// TestHostileRequests: requests for repetition that a stranger has recorded, forged or reflected are counted and have nothing repeated; a
// flood of them costs no memory, changes nothing and does not keep live traffic from arriving.
func TestHostileRequests(t *testing.T) {
	spec := basic
	spec.Directors = 3
	f := farm.New(t, spec)
	serve(t, f)
	d1, d2, evil := f.Directors[0], f.Directors[1], f.Directors[2]
	for _, d := range f.Directors[:2] {
		must(t, d.AddServices(services...))
	}
	fenceServices(t, f)
	c := newChurn(t, d1)
	w := openWire(t, evil)
	daemons := startSyncds(t, f.Directors[:2])
	s1, s2 := daemons[0], daemons[1]
	must(t, d2.Impair(farm.Sync, "loss 20% limit 10000"))
	eventually(t, readyLimit, func() string {
		c.runFor(t, steadyRate, 500*time.Millisecond)
		if n := len(w.ofKind(d2.Name, mirror.KindRequest)); n < 10 {
			return fmt.Sprintf("%s has made %d requests", d2.Name, n)
		}
		return ""
	})
	must(t, d2.Impair(farm.Sync, ""))
	fence(t, f, d1, d2)
	fence(t, f, d2, d1)
	nothingLacksOf(t, d1, d2)
	requests := w.ofKind(d2.Name, mirror.KindRequest)
	repeated := s1.ask(t).Counters["repair_datagrams"]
	t.Logf("%s asked %d times, %s repeated %d datagrams", d2.Name, len(requests), d1.Name, repeated)

	as2, otherKeys := d2.Addr(farm.Sync), genkey(t, d1)
	var forged [][]byte
	for _, r := range requests {
		forged = append(forged, resign(t, r, otherKeys))
	}
	w.strike(t, f, "requests replayed", as2, s1, d2, all("drop_replayed", requests...))
	w.strike(t, f, "requests replayed once more, as by itself", evil.Addr(farm.Sync), s1, d2, all("drop_replayed", requests...))
	w.strike(t, f, "requests with one bit of each byte changed", as2, s1, d2, flipped(requests[0]))
	w.strike(t, f, "requests cut off at each length", as2, s1, d2, cut(requests[0]))
	w.strike(t, f, "requests signed with the key of another file", as2, s1, d2, all("drop_forged", forged...))
	w.strike(t, f, "requests reflected to who made them", d1.Addr(farm.Sync), s2, d1, all("drop_own", requests...))

	mixture := slices.Concat(requests, forged, w.ofKind(d1.Name, mirror.KindHeartbeat))
	knownBefore, start, before := knows(t, s1), s1.used(t), s1.ask(t)
	began := time.Now()
	sent, most := 0, start
	for time.Since(began) < floodTime {
		for range 500 {
			must(t, w.send(as2, mixture[sent%len(mixture)]))
			sent++
		}
		most.resident = max(most.resident, s1.used(t).resident)
	}
	took := time.Since(began)
	fence(t, f, d2, d1)
	fence(t, f, d1, d2)
	end, after := s1.used(t), s1.ask(t)
	refused := uint64(0)
	for name, n := range drops(after) {
		refused += n - drops(before)[name]
	}
	unread := after.Counters["socket_dropped"] - before.Counters["socket_dropped"]
	t.Logf("RESULT flood of %d replayed and forged requests and heartbeats in %v: %s used %v of CPU (%v each), at most %d KiB resident (before %d); %d refused, %d dropped by its socket",
		sent, took.Round(100*time.Millisecond), d1.Name, end.cpu-start.cpu, (end.cpu-start.cpu)/time.Duration(sent), most.resident, start.resident, refused, unread)
	if refused == 0 || refused+unread > uint64(sent) {
		t.Errorf("%d datagrams were sent, %d refused, %d not read", sent, refused, unread)
	}
	if most.resident > start.resident+floodMemory {
		t.Errorf("the flood costs too much: %d KiB resident, before %d", most.resident, start.resident)
	}
	knownAfter := knows(t, s1) // fences have come
	for name, was := range knownBefore {
		if is := knownAfter[name]; is != was {
			t.Errorf("the flood changed %s from %q to %q", name, was, is)
		}
	}
	if len(after.Peers) != 1 || after.Peers[0].Lost {
		t.Errorf("the flood has lost %s its peer: %+v", d1.Name, after.Peers)
	}
	if n := after.Counters["repair_datagrams"]; n != repeated {
		t.Errorf("strangers had %d datagrams repeated", n-repeated)
	}

	// Requests of a life that is over.
	s2.stopSyncd(t)
	s2 = startSyncd(t, d2, "")
	s2.waitPeers(t, d1.Name)
	s1.waitPeers(t, d2.Name)
	fence(t, f, d2, d1)
	w.strike(t, f, "requests of an earlier life of the sender", as2, s1, d2, all("drop_incarnation", requests...))
	for _, s := range []*daemon{s1, s2} {
		s.stopSyncd(t)
	}
}

// nothingLacksOf waits until a director's kernel has all that another's has made.
func nothingLacksOf(t *testing.T, from, to *farm.Node) {
	t.Helper()
	eventually(t, readyLimit, func() string {
		both, _ := survey(t, []*farm.Node{from, to})
		if missing, stale := lacking(made(both[0]), both[1]); missing+stale > 0 {
			return fmt.Sprintf("%s lacks %d entries of %s, and %d are stale", to.Name, missing, from.Name, stale)
		}
		return ""
	})
}
