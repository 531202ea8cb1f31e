package coord

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func manyEchoes(n int) []Echo {
	echoes := make([]Echo, n)
	for i := range echoes {
		echoes[i] = Echo{Node: uint64(i + 1), Incarnation: uint64(i + 2), Sequence: uint64(i + 3), AgeMS: uint32(i), Counts: i%2 == 0}
	}
	return echoes
}

func TestHeartbeatLimits(t *testing.T) {
	h := Heartbeat{Header: Header{Sender: 1, Incarnation: 2, Sequence: 3}, Name: strings.Repeat("n", MaxName), Timers: Timers{1, 2, 3, 4}, Echoes: manyEchoes(MaxEchoes)}
	b, err := h.AppendBinary(nil)
	if err != nil || len(b) > MaxDatagram || len(b)+echoLen <= MaxDatagram {
		t.Errorf("largest heartbeat: %d bytes, error %v", len(b), err)
	}
	if got, err := Parse(b); err != nil || !cmp.Equal(&h, got) {
		t.Errorf("largest heartbeat: %+v, error %v", got, err)
	}
	// Not even beside a short name, where there would be room for one more.
	h.Name, h.Echoes = "n", manyEchoes(MaxEchoes+1)
	if b, err := h.AppendBinary([]byte{1}); !errors.Is(err, ErrMalformed) || len(b) != 1 {
		t.Errorf("too many echoes: %d bytes, error %v", len(b), err)
	}
	h.Echoes = h.Echoes[:MaxEchoes]
	if b, err = h.AppendBinary(nil); err != nil {
		t.Fatal(err)
	}
	b[HeaderLen+15]++
	b = slices.Insert(b, len(b)-TagLen, b[len(b)-TagLen-echoLen:len(b)-TagLen]...)
	if len(b) > MaxDatagram {
		t.Fatalf("%d bytes do not show anything", len(b))
	}
	if got, err := Parse(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("too many echoes: %+v, error %v", got, err)
	}
}

func TestPages(t *testing.T) {
	for _, tt := range []struct {
		echoes int
		want   []int
	}{
		{0, []int{0}},
		{1, []int{1}},
		{MaxEchoes, []int{MaxEchoes}},
		{MaxEchoes + 1, []int{MaxEchoes, 1}},
		{MaxMembers - 1, []int{MaxEchoes, MaxMembers - 1 - MaxEchoes}},
		{3 * MaxEchoes, []int{MaxEchoes, MaxEchoes, MaxEchoes}},
	} {
		h := Heartbeat{Header: Header{Sender: 1, Incarnation: 2}, Name: "a", UptimeMS: 7, Answer: 8, Timers: Timers{1, 2, 3, 0}, Echoes: manyEchoes(tt.echoes)}
		var sizes []int
		var echoes []Echo
		for i, p := range h.Pages() {
			sizes = append(sizes, len(p.Echoes))
			echoes = append(echoes, p.Echoes...)
			if p.Paged != (len(tt.want) > 1) {
				t.Errorf("%d echoes, page %d: paged %v", tt.echoes, i, p.Paged)
			}
			if diff := cmp.Diff(h, p, cmpopts.IgnoreFields(Heartbeat{}, "Paged", "Echoes")); diff != "" {
				t.Errorf("%d echoes, page %d (-want +got):\n%s", tt.echoes, i, diff)
			}
			p.Sequence = uint64(i + 1)
			b, err := p.AppendBinary(nil)
			if err != nil {
				t.Fatalf("%d echoes, page %d: %v", tt.echoes, i, err)
			}
			if got, err := Parse(b); err != nil || !cmp.Equal(&p, got, cmpopts.EquateEmpty()) {
				t.Errorf("%d echoes, page %d: %+v, error %v", tt.echoes, i, got, err)
			}
		}
		if diff := cmp.Diff(tt.want, sizes); diff != "" {
			t.Errorf("%d echoes (-want +got):\n%s", tt.echoes, diff)
		}
		if diff := cmp.Diff(h.Echoes, echoes, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%d echoes (-want +got):\n%s", tt.echoes, diff)
		}
		if h.Paged {
			t.Errorf("%d echoes: the heartbeat itself was changed", tt.echoes)
		}
	}
}
