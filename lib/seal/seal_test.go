package seal

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var k1, k2 = strings.Repeat("01", 32), strings.Repeat("02", 64)

func TestParse(t *testing.T) {
	got, err := Parse([]byte("# farm one\n\n7 " + k1 + " # signs\n255 " + k2 + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	b1, _ := hex.DecodeString(k1)
	b2, _ := hex.DecodeString(k2)
	if diff := cmp.Diff([]Key{{7, b1}, {255, b2}}, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "it holds no key"},
		{"comments only", "# nothing\n", "it holds no key"},
		{"one field", "1\n", "1: key file malformed: want `ID HEX`"},
		{"three fields", "1 " + k1 + " x\n", "want `ID HEX`"},
		{"id zero", "0 " + k1, "from 1 to 255"},
		{"id 256", "256 " + k1, "from 1 to 255"},
		{"not hex", "\n1 " + strings.Repeat("zz", 32), "2: key file malformed: the key is not hexadecimal"},
		{"31 bytes", "1 " + k1[2:], "31 bytes, want 32 to 64"},
		{"65 bytes", "1 " + k2 + "00", "65 bytes, want 32 to 64"},
		{"twice", "1 " + k1 + "\n1 " + k2, "2: key file malformed: key id 1 stands twice"},
		{"binary", strings.Repeat("x", 70000), "1: key file malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text))
			if !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), k1[:16]) {
				t.Errorf("error shows the secret: %v", err)
			}
		})
	}
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("1 "+k1+"\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "0640") {
		t.Errorf("mode 0640: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if keys, err := ReadFile(path); err != nil || len(keys) != 1 {
		t.Errorf("good file: %v, error %v", keys, err)
	}
	if _, err := ReadFile(t.TempDir()); !errors.Is(err, ErrKeyFile) {
		t.Errorf("directory: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, maxKeyFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); !errors.Is(err, ErrKeyFile) {
		t.Errorf("huge file: %v", err)
	}
}

func ring(t testing.TB, text, protocol, group string) *Ring {
	t.Helper()
	keys, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRing(keys, protocol, group)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSignVerify(t *testing.T) {
	const group = "224.0.0.81:8848"
	old := ring(t, "1 "+k1, "syncd", group)
	rotated := ring(t, "2 "+k2+"\n1 "+k1, "syncd", group)
	msg := append([]byte("a datagram"), make([]byte, TagLen)...)
	old.Sign(msg)

	if err := rotated.Verify(1, msg); err != nil {
		t.Errorf("a ring that knows the key: %v", err)
	}
	if err := old.Clone().Verify(1, msg); err != nil {
		t.Errorf("clone: %v", err)
	}
	if err := rotated.Verify(2, msg); !errors.Is(err, ErrForged) {
		t.Errorf("another key's id: %v", err)
	}
	if err := old.Verify(2, msg); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown id: %v", err)
	}
	if err := old.Verify(1, msg[:TagLen-1]); !errors.Is(err, ErrForged) {
		t.Errorf("shorter than a tag: %v", err)
	}
	for i := range msg {
		msg[i] ^= 1
		if err := old.Verify(1, msg); !errors.Is(err, ErrForged) {
			t.Errorf("bit flipped in byte %d: %v", i, err)
		}
		msg[i] ^= 1
	}
	for _, other := range []*Ring{ring(t, "1 "+k1, "saru", group), ring(t, "1 "+k1, "syncd", "224.0.0.82:8848"), ring(t, "1 "+k2, "syncd", group)} {
		if err := other.Verify(1, msg); !errors.Is(err, ErrForged) {
			t.Errorf("ring of another protocol, group or key: %v", err)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := ring(t, "1 "+k1, "syncd", "g")
	msg := make([]byte, 1472)
	if n := testing.AllocsPerRun(100, func() {
		r.Sign(msg)
		if err := r.Verify(1, msg); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSign(b *testing.B) {
	r := ring(b, "1 "+k1, "syncd", "g")
	msg := make([]byte, 1472)
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		r.Sign(msg)
	}
}

func FuzzParseKeyFile(f *testing.F) {
	f.Add([]byte("1 " + k1 + "\n# c\n2 " + k2))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := Parse(b)
		if err == nil && len(keys) == 0 {
			t.Error("no key and no error")
		}
		for _, k := range keys {
			if k.ID == 0 || len(k.Secret) < MinKeyLen || len(k.Secret) > MaxKeyLen {
				t.Errorf("key %d of %d bytes", k.ID, len(k.Secret))
			}
		}
	})
}
