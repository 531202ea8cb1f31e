package native

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOverload keeps all cores busy twice over: nobody is taken for dead, and no lease is lost.
func TestOverload(t *testing.T) {
	length := time.Minute
	if os.Getenv("SARU_ROUNDS") != "" {
		length = 10 * time.Minute // make soak
	}
	f := newFarm(t, 3)
	f.responders(nil)
	f.settled()
	fs := f.startFlows(12)
	defer fs.end()
	before := make([]string, len(f.directors))
	for i, d := range f.directors {
		before[i] = d.logOf()
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			runtime.LockOSThread() // as a process of its own
			for x := uint64(1); ; x = x*6364136223846793005 + 1 {
				if x&0xfffff == 0 {
					select {
					case <-stop:
						return
					default:
					}
				}
			}
		})
	}
	time.Sleep(length)
	close(stop)
	wg.Wait()
	var lapsed, dead, lines int
	for i, d := range f.directors {
		for line := range strings.Lines(d.logOf()[len(before[i]):]) {
			lines++
			if strings.Contains(line, "event=lapsed") {
				lapsed++
			}
			if strings.Contains(line, "event=dead") || strings.Contains(line, "event=lost") {
				dead++
			}
		}
	}
	t.Logf("RESULT busy loops on %d cores, %d of them, for %v: %d leases lost, %d false deaths; answered twice: %d", runtime.NumCPU(), 2*runtime.NumCPU(), length, lapsed, dead, fs.twice())
	if lapsed+dead > 0 || fs.twice() > 0 {
		t.Errorf("%d leases lost, %d false deaths, %d answered twice", lapsed, dead, fs.twice())
	}
}
