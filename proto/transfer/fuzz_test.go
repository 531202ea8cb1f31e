package transfer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/proto/ipvssync"
)

// fuzzPayload feeds any bytes to one decoder: no panic, the bytes stay as they are, and what is accepted encodes to the same bytes.
func fuzzPayload(f *testing.F, p payload, names ...string) {
	for _, s := range samples {
		for _, name := range names {
			if s.name == name {
				f.Add(unhex(f, s.hex))
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		v, err := p.decode(b)
		if !bytes.Equal(b, original) {
			t.Fatal("parsing changed the payload")
		}
		if err != nil {
			return
		}
		if again := p.encode(nil, v); !bytes.Equal(again, b) {
			t.Errorf("parsed %x as %v, appended %x", b, v, again)
		}
		// A list that grows by doubling has less than twice what it holds, and a little.
		switch v := v.(type) {
		case page:
			if cap(v.Digests) > 2*len(b)/digestLen+8 {
				t.Errorf("room for %d digests made of %d bytes", cap(v.Digests), len(b))
			}
		case []Digest:
			if cap(v) > 2*len(b)/digestLen+8 {
				t.Errorf("room for %d digests made of %d bytes", cap(v), len(b))
			}
		case []uint16:
			if cap(v) > 2*len(b)/bucketLen+8 {
				t.Errorf("room for %d buckets made of %d bytes", cap(v), len(b))
			}
		}
	})
}

func FuzzParseHello(f *testing.F)   { fuzzPayload(f, hellos, "hello") }
func FuzzParseRequest(f *testing.F) { fuzzPayload(f, requests, "request") }
func FuzzParseSummary(f *testing.F) { fuzzPayload(f, summaries, "start", "finish, complete") }
func FuzzParsePage(f *testing.F)    { fuzzPayload(f, pages, "digests") }
func FuzzParseDigests(f *testing.F) { fuzzPayload(f, differs, "differ", "nothing differs") }
func FuzzParseWant(f *testing.F)    { fuzzPayload(f, wants, "want", "nothing wanted") }
func FuzzParseError(f *testing.F)   { fuzzPayload(f, codes, "error") }

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 19, 0, 0, 0})
	f.Add(make([]byte, HeaderLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			if h != (Header{}) {
				t.Errorf("%+v beside error %v", h, err)
			}
			return
		}
		if h.Length < 0 || h.Length > MaxPayload {
			t.Fatalf("length %d", h.Length)
		}
		frame, err := EndFrame(append(BeginFrame(nil, h.Type), make([]byte, h.Length)...), 0)
		if err != nil || !bytes.Equal(frame[:HeaderLen], b[:HeaderLen]) {
			t.Errorf("parsed %x, appended %x, error %v", b[:HeaderLen], frame[:HeaderLen], err)
		}
	})
}

// FuzzParseOrigins reads a payload of origins as a client does.
func FuzzParseOrigins(f *testing.F) {
	f.Add(AppendOrigin(AppendOrigin(nil, &Origin{0, 1, "a"}), &Origin{1, 2, "kernel 10.0.0.1"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		n := 0
		for rest := b; len(rest) > 0; n++ {
			o, next, err := ParseOrigin(rest)
			if err != nil {
				break
			}
			if len(next) >= len(rest) || len(o.Name) > MaxName {
				t.Fatalf("%d bytes left %d, name of %d", len(rest), len(next), len(o.Name))
			}
			again, rest = AppendOrigin(again, &o), next
		}
		if !bytes.HasPrefix(b, again) || n*originLen > len(b) {
			t.Errorf("%d origins of %x, appended %x", n, b, again)
		}
	})
}

// FuzzReader reads any payload of entries: it ends, in errors that stay, with no more entries than there is room for; and what came out encodes to
// a payload with the same entries.
func FuzzReader(f *testing.F) {
	f.Add(build(f, nil, []entry{{1, Item{Clock: 1 << 50, Age: 300}, full()}, {2, Item{Clock: 1}, tcp4(1)}}))
	f.Add(build(f, nil, []entry{{0, Item{Origin: 3, Grant: 1 << 33, Clock: 7}, tcp4(1)}, {0, Item{Clock: 1 << 63}, tcp4(2)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		entries, skipped, err := read(t, b)
		if !bytes.Equal(b, original) {
			t.Fatal("reading changed the payload")
		}
		if n := (len(entries) + skipped) * (ipvssync.RecordLen4 + 5); n > len(b) {
			t.Fatalf("%d entries and %d skipped of %d bytes", len(entries), skipped, len(b))
		}
		if errors.Is(err, ErrEnd) && len(entries)+skipped == 0 {
			t.Fatal("a payload of nothing was accepted")
		}
		if len(entries) == 0 {
			return
		}
		var w Builder
		w.Reset(nil)
		for i := range entries {
			e := &entries[i]
			if i > 0 && e.Bucket < entries[i-1].Bucket || e.Bucket >= Buckets {
				t.Fatalf("entry %d is of bucket %d", i, e.Bucket)
			}
			if err := w.Add(e.Bucket, &e.Item, &e.Record); errors.Is(err, ErrFull) {
				entries = entries[:i] // clocks lie farther from another base
				break
			} else if err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
		again, _, err := read(t, w.Bytes())
		if diff := cmp.Diff(entries, again, compareEntries); diff != "" || !errors.Is(err, ErrEnd) {
			t.Fatalf("read again, error %v (-first +second):\n%s", err, diff)
		}
	})
}
