package native

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpu returns what the director's saru has used of a processor so far.
func (d *director) cpu() time.Duration {
	d.farm.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.proc.Process.Pid))
	must(d.farm.t, err)
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks uint64
	for _, s := range f[11:13] { // utime and stime (proc_pid_stat(5), fields 14 and 15)
		n, err := strconv.ParseUint(s, 10, 64)
		must(d.farm.t, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// TestCost measures what a farm at rest costs each director, and that nothing happens in it.
func TestCost(t *testing.T) {
	const length = 5 * time.Second
	for _, n := range []int{3, 8} {
		t.Run(fmt.Sprintf("%d directors", n), func(t *testing.T) {
			f := newFarm(t, n)
			f.settled()
			before, _ := f.directors[0].status()
			var used time.Duration
			for _, d := range f.directors {
				used -= d.cpu()
			}
			time.Sleep(length)
			for _, d := range f.directors {
				used += d.cpu()
			}
			after, _ := f.directors[0].status()
			percent := 100 * used.Seconds() / length.Seconds() / float64(n)
			t.Logf("RESULT a farm of %d at rest: %.2f %% of a core for each director", n, percent)
			if after.Version != before.Version {
				t.Errorf("version %d became %d at rest", before.Version, after.Version)
			}
			if percent > 10 {
				t.Errorf("%.1f %% of a core at rest", percent)
			}
		})
	}
}
