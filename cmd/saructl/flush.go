package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"saru/lib/control"
	"saru/lib/flow"
)

func (a *app) flushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flush BUCKETS",
		Short: "Bring everything of some buckets to the peers' kernels now; exit status 1 if a peer has not confirmed it",
		Long: `Bring everything that this director knows of the connections of some buckets to
all peers, what its kernel still holds back included, and wait until the kernels
of all peers have it. It is the last step before the buckets are given to another
director, which must not accept packets before; packets that still arrive here
begin anew what a flush has ended.

BUCKETS is a list such as 0-99,200, or all.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("sync flush: one list of buckets is required, such as 0-99,200, or all")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: action(func(cmd *cobra.Command, args []string) error {
			n := int(flow.Default.Buckets)
			buckets, err := flow.ParseBuckets(args[0], n)
			if err != nil {
				return usage("sync flush: %w", err)
			}
			return a.flush(cmd, url.Values{"buckets": {flow.FormatBuckets(buckets, n)}})
		}),
	}
}

func (a *app) flush(cmd *cobra.Command, parameters url.Values) error {
	summary, err := work(cmd, a, a.syncd(), newProgress(a.errOut), control.PathSyncFlush, parameters,
		func(line *control.FlushLine) (*control.Progress, *control.FlushSummary, error) {
			return line.Progress, line.Summary, nil
		})
	if err != nil {
		return err
	}
	return verdict(a, summary, summary.Complete, printFlush)
}

func printFlush(out io.Writer, s *control.FlushSummary) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "buckets\t%d\n", s.Buckets)
	fmt.Fprintf(w, "kernel emptied\tafter %.1f ms\n", s.BarrierMS)
	fmt.Fprintf(w, "half open\t%d sent\n", s.HalfOpen)
	fmt.Fprintf(w, "sequence\t%d\n", s.Sequence)
	for _, p := range s.Confirmed {
		fmt.Fprintf(w, "%s\tconfirmed after %.1f ms\n", printable(p.Node), p.MS)
	}
	for _, name := range s.Missing {
		fmt.Fprintf(w, "%s\tNOT CONFIRMED\n", printable(name))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !s.Complete {
		_, err := fmt.Fprintf(out, "NOT COMPLETE after %.1f ms: %s\n", s.TookMS, printable(s.Why))
		return err
	}
	who := "there is no peer"
	if n := len(s.Confirmed); n > 0 {
		names := make([]string, n)
		for i, p := range s.Confirmed {
			names[i] = printable(p.Node)
		}
		who = "in the kernels of " + strings.Join(names, ", ")
	}
	_, err := fmt.Fprintf(out, "COMPLETE after %.1f ms: %s\n", s.TookMS, who)
	return err
}
