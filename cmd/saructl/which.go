package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) whichCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "which SRC:PORT [DST:PORT]",
		Short: "Show which director answers a client; exit status 1 if none does",
		Long: `Show the bucket of the packets from a client to a virtual service, the director
that owns it, and the next owner. The virtual service must be named only where it
makes a difference. IPv6 addresses are in brackets: [2001:db8::1]:80.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return errors.New("which: SRC:PORT of a client is required, and DST:PORT of a virtual service may follow")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: action(func(cmd *cobra.Command, args []string) error {
			var r control.WhichRequest
			var err error
			if r.Source, err = control.ParseEndpoint(args[0]); err != nil {
				return usage("which: %w", err)
			}
			if len(args) == 2 {
				if r.Destination, err = control.ParseEndpoint(args[1]); err != nil {
					return usage("which: %w", err)
				}
			}
			return a.which(cmd, r)
		}),
	}
}

func (a *app) which(cmd *cobra.Command, r control.WhichRequest) error {
	w, raw, err := fetch[control.Which](cmd.Context(), a.saru(), control.WithQuery(control.PathWhich, r.Query()))
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(raw)
	} else {
		err = printWhich(a.out, &w)
	}
	if err == nil && w.Owner == "" {
		err = bad()
	}
	return err
}

func printWhich(out io.Writer, s *control.Which) error {
	open := "open"
	if !s.Open {
		open = "closed"
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "bucket\t%d, by %s", s.Bucket, printable(s.Sense))
	if s.Mask != 0 {
		fmt.Fprintf(w, " (%d bits of the address)", s.Mask)
	}
	fmt.Fprintf(w, "\nowner\t%s\n", printable(cmp.Or(s.Owner, "nobody")))
	fmt.Fprintf(w, "next\t%s\n", printable(cmp.Or(s.Next, "nobody")))
	fmt.Fprintf(w, "here\t%s\n", open)
	fmt.Fprintf(w, "table\tterm %d, version %d\n", s.Term, s.Version)
	return w.Flush()
}
