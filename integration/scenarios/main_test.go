// Package scenarios proves the suite on farms with a real IPVS kernel. Run it
// by labrun:
//
//	go test -p 1 -exec "bin/labrun --kernel bookworm" ./integration/scenarios
package scenarios

import (
	"fmt"
	"os"
	"testing"

	"saru/integration/farm"
)

func TestMain(m *testing.M) {
	farm.Init()
	if beOtherUser() {
		return
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, `scenarios need root and IPVS: go test -exec "bin/labrun" (make test does)`)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
