package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) drainCommand() *cobra.Command {
	return a.orderCommand(&cobra.Command{
		Use:   "drain [NODE]",
		Short: "Move everything away from this director, or the one that is named; exit status 1 if it keeps something",
		Long: `Tell this director, or the one that is named, to hand its buckets over to the
others, and wait until it owns nothing. Connections that are mirrored go on. It
takes part again after undrain, or when its saru is started again. What was ordered
stays when this command is interrupted.`,
	}, control.PathDrain, printDrain)
}

func (a *app) undrainCommand() *cobra.Command {
	return a.orderCommand(&cobra.Command{
		Use:   "undrain [NODE]",
		Short: "Let this director, or the one that is named, take part again; exit status 1 if it does not",
		Long: `Tell this director, or the one that is named, to take its share again, and wait
until it owns something. What was ordered stays when this command is interrupted.`,
	}, control.PathUndrain, printUndrain)
}

// orderCommand completes a command that tells a director something.
func (a *app) orderCommand(cmd *cobra.Command, path string, printed func(io.Writer, *control.DrainSummary) error) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 || len(args) == 1 && args[0] == "" {
			return fmt.Errorf("%s: the name of one director at most, as members shows it", cmd.Name())
		}
		return nil
	}
	cmd.ValidArgsFunction = a.completeMembers
	cmd.RunE = action(func(cmd *cobra.Command, args []string) error {
		r := control.DrainRequest{Wait: true}
		if len(args) == 1 {
			r.Node = args[0]
		}
		summary, err := work(cmd, a, a.saru(), newProgress(a.errOut), path, r.Query(),
			func(line *control.DrainLine) (*control.Progress, *control.DrainSummary, error) {
				return line.Progress, line.Summary, nil
			})
		if errors.Is(err, errInterrupted) {
			return fmt.Errorf("%w: what was ordered stays", err)
		}
		if err != nil {
			return err
		}
		return verdict(a, summary, summary.Complete, printed)
	})
	return cmd
}

// completeMembers offers the names of the directors to the shell.
func (a *app) completeMembers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if members, _, err := fetch[[]control.Member](cmd.Context(), a.saru(), control.PathMembers); err == nil && len(args) == 0 {
		for _, m := range members {
			names = append(names, printable(m.Node))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func printDrain(out io.Writer, s *control.DrainSummary) error {
	if s.Complete {
		return printOrder(out, "EMPTY: %s owns nothing any more, after %s", s.Node, timeText(s.TookMS))
	}
	return printOrder(out, "NOT EMPTY: %s owns %d buckets and holds %d open, after %s: %s", s.Node, s.Owned, s.Open, timeText(s.TookMS), why(s))
}

func printUndrain(out io.Writer, s *control.DrainSummary) error {
	if s.Complete {
		return printOrder(out, "TAKES PART: %s owns %d buckets, after %s", s.Node, s.Owned, timeText(s.TookMS))
	}
	return printOrder(out, "TAKES NO PART: %s owns %d buckets, after %s: %s", s.Node, s.Owned, timeText(s.TookMS), why(s))
}

func why(s *control.DrainSummary) string {
	if !s.Obeyed {
		return cmp.Or(s.Why, "it has not obeyed")
	}
	return cmp.Or(s.Why, "no reason is given")
}

func printOrder(out io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintln(out, printable(fmt.Sprintf(format, args...)))
	return err
}
