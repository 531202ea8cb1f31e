package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) resyncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resync [PEER]",
		Short: "Fetch the tables of all peers, or of one, and put everything into this kernel again",
		Long: `Fetch the tables of all live peers, or of the one that is named, enter what is
newer than here, and inject the whole table into this director's kernel again.
syncd does all that by itself where it is needed; this is for when you have doubts.
Nothing is lost by it, and connections go on meanwhile. Exit status 1 if a peer
could not be asked.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] == "" {
				return errors.New("sync resync: the name of one peer at most, as sync peers shows it")
			}
			return nil
		},
		ValidArgsFunction: a.completePeers,
		RunE: action(func(cmd *cobra.Command, args []string) error {
			parameters := url.Values{}
			if len(args) == 1 {
				parameters.Set("peer", args[0])
			}
			return a.resync(cmd, parameters)
		}),
	}
}

// completePeers offers the names of the peers to the shell.
func (a *app) completePeers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if s, _, err := fetch[control.SyncStatus](cmd.Context(), a.syncd(), control.PathSyncStatus); err == nil && len(args) == 0 {
		for _, p := range s.Peers {
			names = append(names, printable(p.Node))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) resync(cmd *cobra.Command, parameters url.Values) error {
	summary, err := work(cmd, a, a.syncd(), newProgress(a.errOut), control.PathSyncResync, parameters,
		func(line *control.ResyncLine) (*control.Progress, *control.ResyncSummary, error) {
			return line.Progress, line.Summary, nil
		})
	if err != nil {
		return err
	}
	return verdict(a, summary, summary.Complete(), printResync)
}

func printResync(out io.Writer, s *control.ResyncSummary) error {
	changed, failed := uint64(0), 0
	if len(s.Peers) > 0 {
		t := &table{out: out, head: []string{"PEER", "ENTRIES", "NEW HERE", "TOOK", "ERROR"}}
		for _, p := range s.Peers {
			changed += p.Changed
			if p.Error != "" {
				failed++
			}
			if err := t.row(p.Node, fmt.Sprint(p.Entries), fmt.Sprint(p.Changed), timeText(p.TookMS), p.Error); err != nil {
				return err
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	verdict := "COMPLETE"
	if failed > 0 {
		verdict = "NOT COMPLETE"
	}
	_, err := fmt.Fprintf(out, "%s: %d of %d peers have taught %d new entries, %d entries were put into this kernel again\n",
		verdict, len(s.Peers)-failed, len(s.Peers), changed, s.Injected)
	return err
}
