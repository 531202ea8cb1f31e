// Package kernel tests the libraries against a real IPVS kernel. Run it by labrun:
//
//	go test -p 1 -exec "bin/labrun --kernel bookworm" ./integration/kernel
package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"saru/lib/ipvs"
	"saru/lib/tun/nstest"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(forgeEnv); spec != "" {
		os.Exit(forgeAsUser())
	}
	if err := ipvs.Probe(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need root and IPVS: go test -exec \"bin/labrun\" ./integration/kernel (%v)\n", err)
		os.Exit(1)
	}
	nstest.Main(m)
}

// tool runs a real tool, the oracle, in the namespace of the test.
func tool(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// proc is where /proc/net is that of the test's thread.
const proc = "/proc/thread-self"

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
