package ipvs

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// TestParseConnsGolden reads lists and compares the result with the golden file beside each. Lists named made_* are
// written by hand after the kernel's source, for what is hard to produce; the others come from real kernels (see
// testdata/README).
func TestParseConnsGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			in, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			lines := 0
			for c, err := range ParseConns(bytes.NewReader(in)) {
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&out, "%+v\n", c)
				lines++
			}
			if want := bytes.Count(in, []byte("\n")) - 1; lines != want {
				t.Errorf("%d connections in %d lines", lines, want)
			}
			golden := strings.TrimSuffix(name, ".txt") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseConnsHostile(t *testing.T) {
	const head = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires\n"
	const good = "TCP C0A80105 D431 0A000064 0050 0A010002 1F90 ESTABLISHED LOCAL      899\n"
	for name, tt := range map[string]struct{ in, want string }{
		"no heading":       {good, "not the heading"},
		"other file":       {"IP Virtual Server version 1.2.1 (size=4096)\n", "not the heading"},
		"protocol":         {head + "XYZ" + good[3:], "column Pro"},
		"protocol number":  {head + "IP_300" + good[3:], "column Pro"},
		"address":          {head + strings.Replace(good, "C0A80105", "C0A8010G", 1), "column FromIP"},
		"short address":    {head + strings.Replace(good, "0A000064", "0A0064", 1), "column ToIP"},
		"IPv6 separator":   {head + strings.Replace(good, "0A010002", strings.Repeat("0", 39), 1), "column DestIP"},
		"port":             {head + strings.Replace(good, "1F90", "1F9", 1), "column DestIP"},
		"origin":           {head + strings.Replace(good, "LOCAL", "MOON", 1), "column Origin"},
		"expires":          {head + strings.Replace(good, "899", "-1", 1), "column Expires"},
		"missing columns":  {head + "TCP C0A80105\n", "column FromIP"},
		"empty line":       {head + "\n", "column Pro"},
		"cut off":          {head + good + good[:30], "line 3: unexpected EOF"},
		"too long a line":  {head + strings.Repeat("x", 10000) + "\n", "line 2: bufio: buffer full"},
		"only the heading": {head, ""},
		"nothing":          {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var last error
			errs := 0
			for _, err := range ParseConns(strings.NewReader(tt.in)) {
				if last = err; err != nil {
					errs++
				}
			}
			if tt.want == "" && last == nil {
				return
			}
			if errs != 1 || last == nil || tt.want == "" || !strings.Contains(last.Error(), tt.want) {
				t.Errorf("%d errors, last %v, want %q", errs, last, tt.want)
			}
		})
	}
}

func FuzzParseConns(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		failed := false
		for c, err := range ParseConns(bytes.NewReader(b)) {
			if failed {
				t.Fatal("something came after the error")
			}
			if failed = err != nil; failed {
				continue
			}
			if !c.Client.IsValid() || !c.Virtual.IsValid() || !c.Real.IsValid() {
				t.Fatalf("half a connection: %+v", c)
			}
		}
	})
}

func TestReadConnsFiles(t *testing.T) {
	root := t.TempDir()
	collect := func(s iter.Seq2[ProcConn, error]) (n int, err error) {
		for _, err := range s {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	_, err := collect(ReadConns(root))
	if !errors.Is(err, ErrNotAvailable) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without IPVS: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"made_conn_sync.txt": "ip_vs_conn_sync", "made_conn.txt": "ip_vs_conn"} {
		b, err := os.ReadFile(filepath.Join("testdata", from))
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "net", to), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n, err := collect(ReadConns(root)); n != 13 || err != nil {
		t.Errorf("ReadConns: %d, %v", n, err)
	}
	if n, err := collect(ReadConnsPE(root)); n != 4 || err != nil {
		t.Errorf("ReadConnsPE: %d, %v", n, err)
	}
	for range ReadConns(root) {
		break // must not panic
	}
}

// BenchmarkParseConns measures a list of 100,000 connections, per line.
func BenchmarkParseConns(b *testing.B) {
	const head = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires\n"
	const line = "TCP C0A80105 D431 0A000064 0050 0A010002 1F90 ESTABLISHED LOCAL      899\n"
	text := head + strings.Repeat(line, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range ParseConns(io.Reader(strings.NewReader(text))) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/line")
}
