// Saructl is the operator's tool: it asks the daemons of a director how they are,
// makes keys, checks configurations and decodes sync traffic.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"saru/lib/config"
)

// Exit statuses, a contract with scripts.
const (
	exitGood  = 0
	exitBad   = 1 // the answer is bad news, or there is none
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(&app{out: stdout, errOut: stderr})
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitGood
	}
	status, ok := errors.AsType[*exitError](err)
	if !ok {
		// Cobra found fault with the command line before any command ran.
		fmt.Fprintf(stderr, "saructl: %v: see saructl --help\n", err)
		return exitUsage
	}
	if status.err != nil {
		fmt.Fprintf(stderr, "saructl: %v\n", status.err)
	}
	return status.code
}

// exitError ends the program with a status of its own. Without an error nothing
// is printed: the output has said it.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d: %v", e.code, e.err) }
func (e *exitError) Unwrap() error { return e.err }

// newRoot returns the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "saructl",
		Short:         "Ask and steer the daemons of an IPVS director",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return usage("a command is required: see saructl --help")
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(config.Normalize(name))
	})
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON for scripts")
	root.PersistentFlags().StringVar(&a.control, "control", "", "ask at this control `PATH` (default: that of the daemon that the command asks, in /run/saru)")
	root.AddCommand(
		a.statusCommand(), a.membersCommand(), a.bucketsCommand(), a.whichCommand(), a.drainCommand(), a.undrainCommand(), a.historyCommand(),
		a.syncCommand(), a.genkeyCommand(), a.checkCommand(), a.inspectCommand(),
	)
	return root
}
