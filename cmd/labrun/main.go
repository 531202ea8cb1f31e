// Command labrun runs a program inside a throw-away virtual machine with a
// stock Debian kernel. It serves as go test -exec:
//
//	go test -exec "bin/labrun --kernel bookworm" ./integration/scenarios
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"saru/integration/vm"
)

// exitLab is the status for trouble with the guest itself; the program's own
// status is passed through.
const exitLab = 125

func main() {
	if vm.InGuest() {
		vm.Init()
		select {} // PID 1 must not end
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	fs := pflag.NewFlagSet("labrun", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	kernel := fs.String("kernel", envOr(vm.EnvKernel, "bookworm"), "kernel to boot: "+strings.Join(vm.Kernels(), ", ")+" (comma separated with --fetch)")
	limit := fs.String("timeout", envOr(vm.EnvTimeout, "20m"), "time limit of the program")
	memory := fs.String("memory", envOr(vm.EnvMemory, "2G"), "memory of the guest")
	fetch := fs.Bool("fetch", false, "only download and prepare what a run needs")
	fs.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: labrun [options] BINARY [ARGS]\n       labrun --fetch [--kernel NAME[,NAME]]\n%s", fs.FlagUsages())
	}
	if err := fs.Parse(os.Args[1:]); errors.Is(err, pflag.ErrHelp) {
		return 0
	} else if err != nil {
		return complain(err)
	}
	timeout, err := time.ParseDuration(*limit)
	if err != nil || timeout <= 0 {
		return complain(fmt.Errorf("--timeout %q: a duration such as 20m is needed", *limit))
	}
	dir, err := os.Getwd()
	if err != nil {
		return complain(err)
	}
	root, err := vm.Root(dir)
	if err != nil {
		return complain(err)
	}
	if *fetch {
		for name := range strings.SplitSeq(*kernel, ",") {
			if err := vm.Fetch(ctx, root, name, os.Stderr); err != nil {
				return complain(err)
			}
		}
		return 0
	}
	if fs.NArg() == 0 {
		fs.Usage()
		return exitLab
	}
	exit, err := vm.Run(ctx, vm.Config{
		Root: root, Kernel: *kernel, Timeout: timeout, Memory: *memory, Dir: dir,
		Program: fs.Arg(0), Args: fs.Args()[1:], Name: filepath.Base(fs.Arg(0)) + "-" + *kernel,
		Stdout: os.Stdout, Stderr: os.Stderr, Log: os.Stderr,
	})
	if err != nil {
		complain(err)
		return max(exit, exitLab)
	}
	return exit
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "labrun:", err)
	return exitLab
}

func envOr(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}
