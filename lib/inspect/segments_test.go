package inspect

import (
	"bytes"
	"testing"
)

func TestSplit(t *testing.T) {
	full, short := kernelMessage(t, tcp4(), tcp4()), kernelMessage(t, tcp4())
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	lying := bytes.Clone(full)
	lying[3]--
	for name, tt := range map[string]struct {
		payload []byte
		want    [][]byte
	}{
		"one":               {full, [][]byte{full}},
		"three":             {join(full, full, full), [][]byte{full, full, full}},
		"shorter last one":  {join(full, full, short), [][]byte{full, full, short}},
		"longer last one":   {join(short, short, full), [][]byte{join(short, short, full)}},
		"shorter first one": {join(short, full), [][]byte{join(short, full)}},
		"cut off":           {join(full, full[:20]), [][]byte{join(full, full[:20])}},
		"few bytes more":    {join(full, []byte{0, 0}), [][]byte{join(full, []byte{0, 0})}},
		"wrong length":      {lying, [][]byte{lying}},
		"length 0":          {make([]byte, 100), [][]byte{make([]byte, 100)}},
		"empty":             {nil, [][]byte{nil}},
	} {
		t.Run(name, func(t *testing.T) {
			got := split(datagram{link: "x0", payload: tt.payload})
			if len(got) != len(tt.want) {
				t.Fatalf("%d datagrams, want %d", len(got), len(tt.want))
			}
			for i, g := range got {
				if !bytes.Equal(g.payload, tt.want[i]) || g.link != "x0" {
					t.Errorf("datagram %d: %x of %q, want %x", i, g.payload, g.link, tt.want[i])
				}
			}
		})
	}
	if got := split(datagram{payload: join(full, full), defect: "cut off by the capture"}); len(got) != 1 {
		t.Errorf("%d datagrams of a defective one", len(got))
	}
}
