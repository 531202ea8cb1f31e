package ipvssync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the decoded lines of testdata/*.hex")

// golden is one message of a testdata file.
type golden struct {
	name   string
	data   []byte
	text   []string // as decoded
	oneWay bool     // decoded records encode to other bytes
}

// loadGolden reads the messages of a testdata file.
func loadGolden(t testing.TB, file string) []golden {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	for i, line := range strings.Split(string(raw), "\n") {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "== "); ok {
			all = append(all, golden{name: name})
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if len(all) == 0 {
			t.Fatalf("%s:%d: bytes before the first message", file, i+1)
		}
		g := &all[len(all)-1]
		switch line[0] {
		case '>':
			g.text = append(g.text, strings.TrimSpace(line[1:]))
		case '!':
			g.oneWay = true
		default:
			b, err := hex.DecodeString(strings.ReplaceAll(line, " ", ""))
			if err != nil {
				t.Fatalf("%s:%d: %v", file, i+1, err)
			}
			g.data = append(g.data, b...)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s: no messages", file)
	}
	return all
}

// goldenMessage returns the bytes of one message of layout.hex.
func goldenMessage(t testing.TB, name string) []byte {
	t.Helper()
	for _, g := range loadGolden(t, "testdata/layout.hex") {
		if g.name == name {
			return g.data
		}
	}
	t.Fatalf("no message %q in layout.hex", name)
	return nil
}

func goldenFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.hex: %v, %d files", err, len(files))
	}
	return files
}

// describe decodes a message into the lines of a testdata file.
func describe(b []byte) []string {
	m, err := Parse(b)
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	lines := []string{fmt.Sprintf("v%d syncid %d size %d count %d", m.Version, m.SyncID, m.Size, m.Count)}
	r := m.Reader()
	for {
		var rec Record
		err := r.Next(&rec)
		switch {
		case err == nil:
			lines = append(lines, describeRecord(&rec))
			continue
		case Skipped(err):
			lines = append(lines, "skipped: "+err.Error())
			continue
		case !errors.Is(err, ErrEnd):
			lines = append(lines, "error: "+err.Error())
		case len(b) > r.Offset():
			lines = append(lines, fmt.Sprintf("trailing %d", len(b)-r.Offset()))
		}
		return lines
	}
}

func describeRecord(r *Record) string {
	s := fmt.Sprintf("%s %s %s %s %s flags %#x timeout %d fwmark %d", ProtocolName(r.Protocol), r.Client, r.Virtual, r.Real,
		StateName(r.Protocol, r.State, r.Template()), r.Flags, r.Timeout, r.Fwmark)
	if r.HasSeq {
		s += fmt.Sprintf(" in %d/%d/%d out %d/%d/%d", r.In.Init, r.In.Delta, r.In.PrevDelta, r.Out.Init, r.Out.Delta, r.Out.PrevDelta)
	}
	if len(r.PEName)+len(r.PEData) > 0 {
		s += fmt.Sprintf(" pe %q %q", r.PEName, r.PEData)
	}
	return s
}

// encode writes records as a kernel would.
func encode(t testing.TB, prefix []byte, version, syncID uint8, recs []Record) []byte {
	t.Helper()
	start := len(prefix)
	header, add, finish := AppendHeaderV1, AppendRecordV1, FinishV1
	if version == 0 {
		header, add, finish = AppendHeaderV0, AppendRecordV0, FinishV0
	}
	b := header(prefix, syncID)
	var err error
	for i := range recs {
		if b, err = add(b, start, &recs[i]); err != nil {
			t.Fatalf("record %d %+v: %v", i, recs[i], err)
		}
	}
	if err := finish(b, start, len(recs)); err != nil {
		t.Fatal(err)
	}
	return b
}

// decode returns all records of a message without errors.
func decode(t testing.TB, b []byte) (Message, []Record) {
	t.Helper()
	m, err := Parse(b)
	if err != nil {
		t.Fatalf("parse %x: %v", b, err)
	}
	var recs []Record
	for rec, err := range m.Records() {
		if err != nil {
			t.Fatalf("record %d of %x: %v", len(recs), b, err)
		}
		recs = append(recs, rec)
	}
	return m, recs
}

func TestGolden(t *testing.T) {
	for _, file := range goldenFiles(t) {
		all := loadGolden(t, file)
		if *update {
			rewrite(t, file, all)
			continue
		}
		for _, g := range all {
			t.Run(filepath.Base(file)+"/"+g.name, func(t *testing.T) {
				if diff := cmp.Diff(g.text, describe(g.data)); diff != "" {
					t.Errorf("decoded (-want +got):\n%s", diff)
				}
				if g.oneWay {
					return
				}
				m, recs := decode(t, g.data)
				prefix := []byte("odd")
				got := encode(t, prefix, m.Version, m.SyncID, recs)
				if !bytes.Equal(got[len(prefix):], g.data) {
					t.Errorf("encoded again:\n got %x\nwant %x", got[len(prefix):], g.data)
				}
			})
		}
	}
}

// rewrite replaces the decoded lines of a file: those after each message's bytes.
func rewrite(t *testing.T, file string, all []golden) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	i := -1
	flush := func() {
		if i >= 0 {
			for _, line := range describe(all[i].data) {
				out = append(out, "> "+line)
			}
			out = append(out, "")
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		if strings.HasPrefix(line, "== ") {
			flush()
			i++
		}
		if strings.HasPrefix(line, ">") || i >= 0 && strings.TrimSpace(line) == "" {
			continue
		}
		out = append(out, line)
	}
	flush()
	if err := os.WriteFile(file, []byte(strings.TrimSpace(strings.Join(out, "\n"))+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
