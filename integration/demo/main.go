// Command demo shows the main job. First a farm of three directors that share
// one address and one MAC address and all work; one is killed, one drained, one
// restarted, and the downloads go on. Then what connection mirroring is for:
// 200 paced downloads through a farm whose only active director loses power,
// comes back, and whose second director then loses power too; once with syncd,
// and then with the kernel's own master and backup roles, at their defaults
// and tuned. Run it by labrun (make demo).
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"saru/integration/farm"
)

func main() {
	farm.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out io.Writer) int {
	fs := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	names := fs.StringSlice("mirror", []string{"active", "syncd", "kernel-defaults", "kernel-tuned"}, "what to show, in this order")
	if err := fs.Parse(args); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 2
	}
	s := newScreen(out)
	began := time.Now()
	var results []*result
	for _, name := range *names {
		if name == activeTelling {
			if code := showActive(ctx, s); code != 0 {
				return code
			}
			continue
		}
		if results == nil {
			introduce(s)
		}
		m, err := newMirror(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return 2
		}
		if _, err := exec.LookPath("syncd"); name == "syncd" && err != nil {
			s.say("(syncd is not built: only the kernel's own roles are shown)")
			continue
		}
		r, err := tell(ctx, s, m)
		if err != nil {
			fmt.Fprintf(os.Stderr, "demo: %s: %v\n", name, err)
			return 1
		}
		results = append(results, r)
	}
	s.say("")
	if len(results) > 0 {
		printTable(out, results)
	}
	fmt.Fprintf(out, "\ntold in %.0f s\n", time.Since(began).Seconds())
	for _, r := range results {
		if r.mirror.must() && r.cut() > 0 {
			fmt.Fprintf(out, "FAILED: %s lost %d downloads\n", r.mirror.name(), r.cut())
			return 1
		}
	}
	return 0
}

// activeTelling is the story of the active farm.
const activeTelling = "active"

// showActive tells it, where saru is built.
func showActive(ctx context.Context, s *screen) int {
	if _, err := exec.LookPath("saru"); err != nil {
		s.say("(saru is not built: the active farm is not shown)")
		return 0
	}
	all, cut, err := tellActive(ctx, s)
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %s: %v\n", activeName, err)
		return 1
	}
	s.say("")
	s.say("%s: %d of %d downloads were cut", activeName, cut, all)
	if cut > 0 {
		s.say("FAILED: %d downloads were lost", cut)
		return 1
	}
	return 0
}

// introduce says what is about to be shown.
func introduce(s *screen) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("of unknown version")
	}
	s.say("Linux %s", strings.TrimSpace(string(kernel)))
	s.say("")
	s.say("  clients c1 c2 --- front ---+--- d1 ---+--- inside --- real servers r1 r2")
	s.say("     VIP %v        +--- d2 ---+     (d1 and d2 also share a sync link)", farm.VIP)
	s.say("")
	s.say("%d downloads, each byte checked; half by LVS-NAT (port %d), half by LVS-DR (port %d):", total(), natPort, drPort)
	for _, g := range groups {
		s.say("  %3d  %-32s one packet of %d bytes every %v", g.count, g.name, chunk, g.pace)
	}
	s.say("A download that receives nothing for %v is cut.", stall)
}
