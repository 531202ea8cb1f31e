package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) syncCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "sync",
		Short: "Ask and steer syncd, which mirrors the connections",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("sync: a command is required: status, peers, connections, compare, resync or flush")
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
		a.compareCommand(),
		a.resyncCommand(),
		a.flushCommand(),
	)
	return group
}

func (a *app) syncStatus(cmd *cobra.Command, _ []string) error {
	s, raw, err := fetch[control.SyncStatus](cmd.Context(), a.syncd(), control.PathSyncStatus)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(raw)
	} else {
		err = printSyncStatus(a.out, s)
	}
	if err == nil && !s.Synced {
		err = bad()
	}
	return err
}

func (a *app) syncPeers(cmd *cobra.Command, _ []string) error {
	s, raw, err := fetch[control.SyncStatus](cmd.Context(), a.syncd(), control.PathSyncStatus)
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
	return printSyncPeers(a.out, s.Peers)
}
