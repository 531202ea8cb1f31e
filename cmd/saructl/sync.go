package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) syncCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "sync",
		Short: "Ask syncd about the mirrored connections",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("sync: a command is required: status, peers or connections")
		},
	}
	group.AddCommand(
		&cobra.Command{
			Use:   "status",
			Short: "Show how complete and how fast the mirror is; exit status 1 if it is not complete",
			Args:  cobra.NoArgs,
			RunE:  action(a.syncStatus),
		},
		&cobra.Command{
			Use:   "peers",
			Short: "List the other directors",
			Args:  cobra.NoArgs,
			RunE:  action(a.syncPeers),
		},
		a.connectionsCommand(),
	)
	return group
}

// status asks syncd for its status, decoded and as it was sent: fields that a
// newer daemon adds are not lost in JSON.
func (a *app) status(cmd *cobra.Command) (s control.SyncStatus, raw json.RawMessage, err error) {
	if err := a.syncd().Get(cmd.Context(), control.PathSyncStatus, &raw); err != nil {
		return s, nil, fromSyncd(err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, nil, fmt.Errorf("read syncd's status: %w", err)
	}
	return s, raw, nil
}

func (a *app) syncStatus(cmd *cobra.Command, _ []string) error {
	s, raw, err := a.status(cmd)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(raw)
	} else {
		err = printStatus(a.out, s)
	}
	if err == nil && !s.Synced {
		err = bad()
	}
	return err
}

func printStatus(out io.Writer, s control.SyncStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "node\t%s\n", s.Node)
	fmt.Fprintf(w, "synced\t%s\n", yesNo(s.Synced))
	fmt.Fprintf(w, "connections\t%d local, %d remote\n", s.Connections.Local, s.Connections.Remote)
	fmt.Fprintf(w, "lag\tp50 %.1f ms, p99 %.1f ms\n", s.LagMS.P50, s.LagMS.P99)
	fmt.Fprintf(w, "peers\t%d\n", len(s.Peers))
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		fmt.Fprintf(w, "%s\t%d\n", name, s.Counters[name])
	}
	if err := w.Flush(); err != nil || len(s.Peers) == 0 {
		return err
	}
	fmt.Fprintln(out)
	return printPeers(out, s.Peers)
}

func (a *app) syncPeers(cmd *cobra.Command, _ []string) error {
	s, raw, err := a.status(cmd)
	if err != nil {
		return err
	}
	if a.json {
		var reply struct {
			Peers json.RawMessage `json:"peers"`
		}
		if err := json.Unmarshal(raw, &reply); err != nil {
			return fmt.Errorf("read syncd's status: %w", err)
		}
		return a.printJSON(reply.Peers)
	}
	return printPeers(a.out, s.Peers)
}

func printPeers(out io.Writer, peers []control.SyncPeer) error {
	slices.SortFunc(peers, func(a, b control.SyncPeer) int { return cmp.Compare(a.Node, b.Node) })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEER\tSYNCED\tLAST HEARD\tSEQUENCE\tMISSING\tINCARNATION")
	for _, p := range peers {
		fmt.Fprintf(w, "%s\t%s\t%d ms\t%d\t%d\t%s\n", p.Node, yesNo(p.Synced), p.LastHeardMS, p.Sequence, p.Missing, p.Incarnation)
	}
	return w.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
