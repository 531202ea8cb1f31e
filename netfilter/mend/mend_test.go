package mend

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGivesUp has a table that cannot be put right; one success in between begins the count anew.
func TestGivesUp(t *testing.T) {
	refused := errors.New("refused")
	err, why := error(nil), "it is missing"
	mended := 0
	s := steps{table: &Table{Name: "x", Mend: func() (string, error) { return why, err }, OnMend: func(string) { mended++ }}}
	if wait, got := s.next(); got != nil || wait != pollInterval || mended != 1 {
		t.Errorf("mended: wait %v, error %v, %d calls", wait, got, mended)
	}
	err, why = refused, ""
	if _, got := s.next(); got != nil {
		t.Errorf("gave up at once: %v", got)
	}
	err = nil
	if wait, got := s.next(); got != nil || wait != pollInterval || mended != 1 {
		t.Errorf("nothing was wrong: wait %v, error %v, %d calls", wait, got, mended)
	}
	err = refused
	var waits []time.Duration
	for {
		wait, got := s.next()
		if got != nil {
			if !errors.Is(got, refused) {
				t.Errorf("gave up with %v", got)
			}
			break
		}
		waits = append(waits, wait)
	}
	want := []time.Duration{10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 1000, 1000, 1000}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Error(diff)
	}
}
