package coord

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/seal"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// digest returns a digest of 16 equal bytes.
func digest(c byte) Digest { return Digest(bytes.Repeat([]byte{c}, len(Digest{}))) }

const noTag = ` 00000000000000000000000000000000`

var messages = []struct {
	name string
	m    Message
	hex  string
}{
	{
		name: "heartbeat, all fields",
		m: &Heartbeat{
			Header: Header{Sender: 0x0102030405060708, Incarnation: 0x1112131415161718, Sequence: 0x21},
			Name:   "lvs1", UptimeMS: 0x31, State: StateSynced | StateFits, Weight: 0x33, Pings: 0x34, Open: 0x35, Function: digest(0x36), Term: 0x37, Master: 0x38,
			Counts:  Ref{Line{0x41, 0x42}, 0x43, digest(0x44)},
			Pending: Ref{Line{0x51, 0x52}, 0x53, digest(0x54)}, PendingBallot: Ballot{0x55, 0x56},
			Promise: Ballot{0x61, 0x62}, Released: digest(0x63), Answer: 0x64, Paged: true,
			Timers: Timers{Keepalive: 0x71, Deadtime: 0x72, Lease: 0x73, Guard: 0x74},
			Echoes: []Echo{
				{Node: 1, Incarnation: 2, Sequence: 3, AgeMS: 4, Supports: true},
				{Node: 5, Incarnation: 6, AgeMS: 7, Dead: true, Counts: true},
			},
		},
		hex: `53415243 01 00 01 01 0102030405060708 1112131415161718 0000000000000021
			0000000000000031 0101 0033 0034 04 02 00000035 00000037 0000000000000038 36363636363636363636363636363636
			00000041 0000000000000042 00000043 44444444444444444444444444444444
			00000051 0000000000000052 00000053 54545454545454545454545454545454 00000055 0000000000000056
			00000061 0000000000000062 63636363636363636363636363636363 0000000000000064 00000071 00000072 00000073 00000074 6c767331
			0000000000000001 0000000000000002 0000000000000003 00000004 01
			0000000000000005 0000000000000006 0000000000000000 00000007 06` + noTag,
	},
	{
		name: "heartbeat of a newcomer",
		m:    &Heartbeat{Header: Header{Key: 7, Sender: 1, Incarnation: 2, Sequence: 3}, Name: "a", Timers: Timers{Keepalive: 4, Deadtime: 5, Lease: 6}},
		hex: `53415243 01 07 01 00 0000000000000001 0000000000000002 0000000000000003
			0000000000000000 0000 0000 0000 01 00 00000000 00000000 0000000000000000 00000000000000000000000000000000
			00000000 0000000000000000 00000000 00000000000000000000000000000000
			00000000 0000000000000000 00000000 00000000000000000000000000000000 00000000 0000000000000000
			00000000 0000000000000000 00000000000000000000000000000000 0000000000000000 00000004 00000005 00000006 00000000 61` + noTag,
	},
	{
		name: "prepare",
		m:    &Prepare{Header: Header{Key: 255, Sender: 1, Incarnation: 2, Sequence: 3}, Parent: Ref{Line{4, 5}, 6, digest(7)}, Ballot: Ballot{8, 9}},
		hex: `53415243 01 ff 02 00 0000000000000001 0000000000000002 0000000000000003
			00000004 0000000000000005 00000006 07070707070707070707070707070707 00000008 0000000000000009` + noTag,
	},
	{
		name: "accept",
		m: &Accept{
			Header: Header{Sender: 1, Incarnation: 2, Sequence: 3},
			Parent: Ref{Line{4, 5}, 6, digest(7)}, Ballot: Ballot{8, 9}, Table: Ref{Line{10, 11}, 12, digest(13)},
		},
		hex: `53415243 01 00 03 00 0000000000000001 0000000000000002 0000000000000003
			00000004 0000000000000005 00000006 07070707070707070707070707070707 00000008 0000000000000009
			0000000a 000000000000000b 0000000c 0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d` + noTag,
	},
	{
		name: "last part",
		m:    &Part{Header: Header{Sender: 1, Incarnation: 2, Sequence: 3}, Digest: digest(4), Index: 5, Count: 6, Data: []byte{7, 8, 9}},
		hex: `53415243 01 00 04 00 0000000000000001 0000000000000002 0000000000000003
			04040404040404040404040404040404 0005 0006 0003 070809` + noTag,
	},
	{
		name: "first part",
		m:    &Part{Header: Header{Sender: 1, Incarnation: 2, Sequence: 3}, Digest: digest(4), Count: 2, Data: make([]byte, MaxPart)},
		hex: `53415243 01 00 04 00 0000000000000001 0000000000000002 0000000000000003
			04040404040404040404040404040404 0000 0002 04b0` + strings.Repeat("00", MaxPart) + noTag,
	},
	{
		name: "fetch",
		m:    &Fetch{Header: Header{Sender: 1, Incarnation: 2, Sequence: 3}, Digest: digest(4), Node: 5},
		hex: `53415243 01 00 05 00 0000000000000001 0000000000000002 0000000000000003
			04040404040404040404040404040404 0000000000000005` + noTag,
	},
	{
		name: "command",
		m:    &Command{Header: Header{Sender: 1, Incarnation: 2, Sequence: 3}, Target: 4, Nonce: 5, Verb: VerbUndrain},
		hex: `53415243 01 00 06 00 0000000000000001 0000000000000002 0000000000000003
			0000000000000004 0000000000000005 02` + noTag,
	},
}

func TestMessages(t *testing.T) {
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			b, err := tt.m.AppendBinary([]byte{9})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]byte{9}, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("AppendBinary (-want +got):\n%s", diff)
			}
			b = b[1:]
			got, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.m, got); diff != "" {
				t.Errorf("Parse (-want +got):\n%s", diff)
			}
			kind, h, err := ParseHeader(b)
			if err != nil || kind != tt.m.Kind() || h != *tt.m.Head() {
				t.Errorf("ParseHeader: %s, %+v, error %v", kind, h, err)
			}
			for n := range len(b) {
				if _, err := Parse(b[:n]); !errors.Is(err, ErrTruncated) {
					t.Errorf("truncated to %d bytes: error %v", n, err)
				}
			}
			// Nothing of a message is lost when the buffer that it came in is used again.
			clear(b)
			if diff := cmp.Diff(tt.m, got); diff != "" {
				t.Errorf("after the buffer was cleared (-want +got):\n%s", diff)
			}
		})
	}
}

// What syncd's ring signs and verifies in the mirror's datagrams, it does here.
func TestSigned(t *testing.T) {
	ring, err := seal.NewRing([]seal.Key{{ID: 3, Secret: make([]byte, 32)}}, "saru", "224.0.0.81:8850")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.m.Head()
			defer func(key uint8) { h.Key = key }(h.Key)
			h.Key = ring.Signer()
			b, err := tt.m.AppendBinary(nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := ring.Verify(h.Key, b); !errors.Is(err, seal.ErrForged) {
				t.Errorf("before it was signed: error %v", err)
			}
			ring.Sign(b)
			if _, got, err := ParseHeader(b); err != nil || ring.Verify(got.Key, b) != nil {
				t.Errorf("key %d, error %v, %v", got.Key, err, ring.Verify(got.Key, b))
			}
			if got, err := Parse(b); err != nil || !cmp.Equal(tt.m, got) {
				t.Errorf("signed: %+v, error %v", got, err)
			}
			for i := range b {
				b[i] ^= 1
				if _, got, err := ParseHeader(b); err == nil && ring.Verify(got.Key, b) == nil {
					t.Errorf("byte %d changed, and verified", i)
				}
				b[i] ^= 1
			}
		})
	}
}

// with returns a copy of the named sample with other bytes at an offset.
func with(t testing.TB, name string, off int, v ...byte) []byte {
	t.Helper()
	for _, tt := range messages {
		if tt.name == name {
			b := unhex(t, tt.hex)
			copy(b[off:], v)
			return b
		}
	}
	t.Fatalf("no sample %q", name)
	return nil
}

func TestParseHostile(t *testing.T) {
	const beat, part, body = "heartbeat, all fields", "last part", HeaderLen
	zero8, zero16 := make([]byte, 8), make([]byte, 16)
	sample := func(name string, off int, v ...byte) []byte { return with(t, name, off, v...) }
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, ErrTruncated},
		{"the mirror's magic", sample("fetch", 3, 'U'), ErrMagic},
		{"format version 0", sample("fetch", 4, 0), ErrVersion},
		{"next format version", sample("fetch", 4, 2), ErrVersion},
		{"kind 0", sample("fetch", 6, 0), ErrKind},
		{"kind behind the last", sample("fetch", 6, 7), ErrKind},
		{"kind of another length", sample("fetch", 6, byte(KindCommand)), ErrMalformed},
		{"paged, but no heartbeat", sample("fetch", 7, 1), ErrMalformed},
		{"unknown flag", sample(beat, 7, 2), ErrMalformed},
		{"no sender", sample("fetch", 8, zero8...), ErrMalformed},
		{"no incarnation", sample("fetch", 16, zero8...), ErrMalformed},
		{"sequence number 0", sample("fetch", 24, zero8...), ErrMalformed},
		{"tag without a key", sample("fetch", HeaderLen+24+15, 1), ErrMalformed},
		{"more behind the tag", append(sample("fetch", 0), 0), ErrMalformed},
		{"longer than any datagram", append(sample("fetch", 0), make([]byte, MaxDatagram)...), ErrMalformed},

		{"heartbeat in an unknown state", sample(beat, body+8, 0x80), ErrMalformed},
		{"heartbeat without a name", sample("heartbeat of a newcomer", body+14, 0), ErrMalformed},
		{"heartbeat with a name of 255 bytes", sample(beat, body+14, 255), ErrTruncated},
		{"heartbeat with an echo more than there is", sample(beat, body+15, 3), ErrTruncated},
		{"heartbeat with an echo fewer", sample(beat, body+15, 1), ErrMalformed},
		{"heartbeat with 255 echoes", sample(beat, body+15, 255), ErrTruncated},
		{"heartbeat with a master without a term", sample(beat, body+20, 0, 0, 0, 0), ErrMalformed},
		{"heartbeat with half a reference", sample(beat, body+48, 0, 0, 0, 0), ErrMalformed},
		{"heartbeat with a line of nobody", sample(beat, body+52, zero8...), ErrMalformed},
		{"heartbeat with version 0", sample(beat, body+80+12, 0, 0, 0, 0), ErrMalformed},
		{"heartbeat with a reference without a digest", sample(beat, body+80+16, zero16...), ErrMalformed},
		{"heartbeat with a ballot of nobody", sample(beat, body+112+4, zero8...), ErrMalformed},
		{"heartbeat with a promise to nobody", sample(beat, body+124+4, zero8...), ErrMalformed},
		{"heartbeat without a deadtime", sample(beat, body+164, 0, 0, 0, 0), ErrMalformed},
		{"name with a space", sample(beat, body+176, ' '), ErrMalformed},
		{"name with a control character", sample(beat, body+179, '\n'), ErrMalformed},
		{"name with a zero", sample(beat, body+179, 0), ErrMalformed},
		{"name with DEL", sample(beat, body+179, 0x7f), ErrMalformed},
		{"name not ASCII", sample(beat, body+176, 0xc3, 0xa4), ErrMalformed},
		{"echo of nobody", sample(beat, body+180, zero8...), ErrMalformed},
		{"echo of no incarnation", sample(beat, body+180+29+8, zero8...), ErrMalformed},
		{"echo with an unknown flag", sample(beat, body+180+28, 8), ErrMalformed},

		{"prepare without a parent", sample("prepare", body, make([]byte, 32)...), ErrMalformed},
		{"prepare without a ballot", sample("prepare", body+32, make([]byte, 12)...), ErrMalformed},
		{"accept without a parent", sample("accept", body, make([]byte, 32)...), ErrMalformed},
		{"accept without a ballot", sample("accept", body+32, make([]byte, 12)...), ErrMalformed},
		{"accept of nothing", sample("accept", body+44, make([]byte, 32)...), ErrMalformed},

		{"part of nothing", sample(part, body, zero16...), ErrMalformed},
		{"part behind the last", sample(part, body+16, 0, 6), ErrMalformed},
		{"part of no parts", sample(part, body+16, 0, 0, 0, 0), ErrMalformed},
		{"part of more parts than a table has", sample(part, body+18, 0, MaxParts+1), ErrMalformed},
		{"part without data", sample(part, body+20, 0, 0), ErrMalformed},
		{"part with less data than is there", sample(part, body+20, 0, 2), ErrMalformed},
		{"part with more data than is there", sample(part, body+20, 0xff, 0xff), ErrTruncated},
		{"short part before the last", sample(part, body+16, 0, 4), ErrMalformed},

		{"fetch of nothing", sample("fetch", body, zero16...), ErrMalformed},
		{"fetch from nobody", sample("fetch", body+16, zero8...), ErrMalformed},
		{"command to nobody", sample("command", body, zero8...), ErrMalformed},
		{"command with nonce 0", sample("command", body+8, zero8...), ErrMalformed},
		{"verb 0", sample("command", body+16, 0), ErrMalformed},
		{"verb behind the last", sample("command", body+16, 3), ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if m, err := Parse(tt.b); !errors.Is(err, tt.want) || m != nil {
				t.Errorf("%+v, error %v, want %v", m, err, tt.want)
			}
		})
	}
	tooLong := slices.Concat(sample("first part", 0)[:HeaderLen+partLen], make([]byte, MaxPart+1+TagLen))
	tooLong[body+21]++
	if m, err := Parse(tooLong); !errors.Is(err, ErrMalformed) {
		t.Errorf("part of %d bytes: %+v, error %v", MaxPart+1, m, err)
	}
}

// What may not be received is not sent.
func TestAppendHostile(t *testing.T) {
	h := Header{Sender: 1, Incarnation: 2, Sequence: 3}
	ref := Ref{Line{1, 2}, 3, digest(4)}
	beat := func(change func(h *Heartbeat)) *Heartbeat {
		b := &Heartbeat{Header: h, Name: "a"}
		change(b)
		return b
	}
	for _, tt := range []struct {
		name string
		m    Message
	}{
		{"heartbeat without a sender", beat(func(h *Heartbeat) { h.Sender = 0 })},
		{"heartbeat without an incarnation", beat(func(h *Heartbeat) { h.Incarnation = 0 })},
		{"heartbeat without a number", beat(func(h *Heartbeat) { h.Sequence = 0 })},
		{"heartbeat without a name", beat(func(h *Heartbeat) { h.Name = "" })},
		{"heartbeat with too long a name", beat(func(h *Heartbeat) { h.Name = strings.Repeat("n", MaxName+1) })},
		{"heartbeat with a name of two words", beat(func(h *Heartbeat) { h.Name = "a b" })},
		{"heartbeat in an unknown state", beat(func(h *Heartbeat) { h.State = allStates + 1 })},
		{"heartbeat with a master without a term", beat(func(h *Heartbeat) { h.Master = 1 })},
		{"heartbeat with half a reference", beat(func(h *Heartbeat) { h.Counts.Version = 1 })},
		{"heartbeat with half a pending one", beat(func(h *Heartbeat) { h.Pending.Digest = digest(1) })},
		{"heartbeat with a ballot of nobody", beat(func(h *Heartbeat) { h.PendingBallot.Round = 1 })},
		{"heartbeat with a promise to nobody", beat(func(h *Heartbeat) { h.Promise.Round = 1 })},
		{"heartbeat with an echo of nobody", beat(func(h *Heartbeat) { h.Echoes = []Echo{{Incarnation: 1}} })},
		{"heartbeat with an echo of no incarnation", beat(func(h *Heartbeat) { h.Echoes = []Echo{{Node: 1}} })},
		{"prepare without a number", &Prepare{Header: Header{Sender: 1, Incarnation: 2}, Parent: ref, Ballot: Ballot{1, 1}}},
		{"prepare without a parent", &Prepare{Header: h, Ballot: Ballot{1, 1}}},
		{"prepare without a ballot", &Prepare{Header: h, Parent: ref}},
		{"accept without a number", &Accept{Header: Header{Sender: 1, Incarnation: 2}, Parent: ref, Ballot: Ballot{1, 1}, Table: Ref{Line{1, 2}, 4, digest(5)}}},
		{"accept without a parent", &Accept{Header: h, Ballot: Ballot{1, 1}, Table: ref}},
		{"accept of nothing", &Accept{Header: h, Ballot: Ballot{1, 1}, Parent: ref}},
		{"part without a number", &Part{Header: Header{Sender: 1, Incarnation: 2}, Digest: digest(1), Count: 1, Data: []byte{1}}},
		{"part of nothing", &Part{Header: h, Count: 1, Data: []byte{1}}},
		{"part without data", &Part{Header: h, Digest: digest(1), Count: 1}},
		{"part with too much data", &Part{Header: h, Digest: digest(1), Count: 1, Data: make([]byte, MaxPart+1)}},
		{"short part before the last", &Part{Header: h, Digest: digest(1), Count: 2, Data: make([]byte, MaxPart-1)}},
		{"part behind the last", &Part{Header: h, Digest: digest(1), Index: 1, Count: 1, Data: []byte{1}}},
		{"part of too many", &Part{Header: h, Digest: digest(1), Index: MaxParts, Count: MaxParts + 1, Data: []byte{1}}},
		{"fetch without a number", &Fetch{Header: Header{Sender: 1, Incarnation: 2}, Digest: digest(1), Node: 1}},
		{"fetch of nothing", &Fetch{Header: h, Node: 1}},
		{"fetch from nobody", &Fetch{Header: h, Digest: digest(1)}},
		{"command without a number", &Command{Header: Header{Sender: 1, Incarnation: 2}, Target: 1, Nonce: 1, Verb: VerbDrain}},
		{"command to nobody", &Command{Header: h, Nonce: 1, Verb: VerbDrain}},
		{"command with nonce 0", &Command{Header: h, Target: 1, Verb: VerbDrain}},
		{"command to do nothing", &Command{Header: h, Target: 1, Nonce: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if b, err := tt.m.AppendBinary([]byte{1}); !errors.Is(err, ErrMalformed) || !bytes.Equal(b, []byte{1}) {
				t.Errorf("%x, error %v", b, err)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		KindHeartbeat.String(): "heartbeat", KindPrepare.String(): "prepare", KindAccept.String(): "accept", KindPart.String(): "part",
		KindFetch.String(): "fetch", KindCommand.String(): "command", Kind(9).String(): "kind-9",
		VerbDrain.String(): "drain", VerbUndrain.String(): "undrain", Verb(9).String(): "verb-9",
		Quorum.String(): "quorum", Available.String(): "available", Policy(9).String(): "policy-9",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Nothing allocates in sending, and in receiving only what the message is made of.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, MaxDatagram)
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, func() { _, _ = tt.m.AppendBinary(buf) }); n != 0 {
				t.Errorf("AppendBinary: %v allocations", n)
			}
			// The message; of a heartbeat, its name and echoes; of a part, its data.
			limit := map[Kind]float64{KindHeartbeat: 3, KindPart: 2}[tt.m.Kind()]
			b := unhex(t, tt.hex)
			if n := testing.AllocsPerRun(100, func() { _, _ = Parse(b) }); n > max(1, limit) {
				t.Errorf("Parse: %v allocations", n)
			}
		})
	}
}
