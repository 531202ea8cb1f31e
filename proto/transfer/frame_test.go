package transfer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestFrame(t *testing.T) {
	b := append(BeginFrame([]byte{9}, TypeWant), 1, 2, 3)
	b, err := EndFrame(b, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, `09 00000003 03 000000 010203 00000000000000000000000000000000`)
	if diff := cmp.Diff(want, b); diff != "" {
		t.Fatalf("frame (-want +got):\n%s", diff)
	}
	if h, err := ParseHeader(b[1:]); err != nil || h != (Header{3, TypeWant}) {
		t.Errorf("header %+v, error %v", h, err)
	}
}

func TestHeaderHostile(t *testing.T) {
	good := unhex(t, `00010000 13 000000`)
	if h, err := ParseHeader(good); err != nil || h != (Header{MaxPayload, TypeEntries}) {
		t.Fatalf("longest frame: %+v, error %v", h, err)
	}
	for n := range HeaderLen {
		if _, err := ParseHeader(good[:n]); !errors.Is(err, ErrFrame) {
			t.Errorf("%d bytes: error %v", n, err)
		}
	}
	for name, text := range map[string]string{
		"one byte too long":  `00010001 13 000000`,
		"2^31 bytes":         `80000000 13 000000`,
		"2^32 - 1 bytes":     `ffffffff 13 000000`,
		"reserved byte 5":    `00000001 13 010000`,
		"reserved byte 6":    `00000001 13 008000`,
		"reserved byte 7":    `00000001 13 0000ff`,
		"text of a protocol": `47455420 2f 204854`, // "GET / HT"
	} {
		if h, err := ParseHeader(unhex(t, text)); !errors.Is(err, ErrFrame) || h != (Header{}) {
			t.Errorf("%s: %+v, error %v", name, h, err)
		}
	}
}

func TestEndFrameHostile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		b     []byte
		start int
	}{
		{"no header", nil, 0},
		{"half a header", make([]byte, HeaderLen-1), 0},
		{"behind the end", make([]byte, HeaderLen), 1},
		{"before the start", make([]byte, HeaderLen), -1},
		{"one byte too long", make([]byte, HeaderLen+MaxPayload+1), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(tt.b)
			if b, err := EndFrame(tt.b, tt.start); !errors.Is(err, ErrFrame) || !bytes.Equal(b, before) {
				t.Errorf("%d bytes, error %v", len(b), err)
			}
		})
	}
	if b, err := EndFrame(make([]byte, HeaderLen+MaxPayload), 0); err != nil || len(b) != MaxFrame {
		t.Errorf("longest frame: %d bytes, error %v", len(b), err)
	}
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := Type(rapid.Byte().Draw(t, "type"))
		body := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "prefix")
		b, err := EndFrame(append(BeginFrame(bytes.Clone(prefix), kind), body...), len(prefix))
		if err != nil {
			t.Fatal(err)
		}
		frame := b[len(prefix):]
		h, err := ParseHeader(frame)
		if err != nil || h != (Header{len(body), kind}) || len(frame) != HeaderLen+h.Length+TagLen {
			t.Fatalf("%+v of %d bytes, error %v", h, len(frame), err)
		}
		if !bytes.Equal(frame[HeaderLen:HeaderLen+h.Length], body) || !bytes.HasPrefix(b, prefix) {
			t.Fatal("payload or prefix changed")
		}
	})
}

// Names are told apart, and unknown numbers have one that says the number.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for n := range 256 {
		seen[Type(n).String()] = true
	}
	if len(seen) != 256 || Type(99).String() != "type-99" || TypeEntries.String() != "entries" {
		t.Errorf("%d names of types", len(seen))
	}
	clear(seen)
	for n := range 256 {
		seen[Purpose(n).String()] = true
	}
	if len(seen) != 256 || Purpose(9).String() != "purpose-9" || Join.String() != "join" {
		t.Errorf("%d names of purposes", len(seen))
	}
}
