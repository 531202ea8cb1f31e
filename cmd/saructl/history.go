package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"saru/lib/config"
	"saru/lib/control"
)

func (a *app) historyCommand() *cobra.Command {
	last := -1
	var follow bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List what has happened to the farm, as this director saw it since its saru started",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			err := a.history(cmd, control.HistoryRequest{Last: last, Follow: follow})
			if follow && errors.Is(err, errInterrupted) {
				return nil
			}
			return err
		}),
	}
	number := config.Func("N", "all", func(s string) error {
		n, err := config.Between(0, 1<<31-1)(s)
		last = n
		return err
	})
	cmd.Flags().VarP(number, "number", "n", "only the newest `N`")
	config.Flag(cmd.Flags(), &follow, "follow", "go on with what happens from now on, until interrupted")
	return cmd
}

func (a *app) history(cmd *cobra.Command, r control.HistoryRequest) error {
	saru := a.saru()
	return saru.explain(saru.Stream(cmd.Context(), control.WithQuery(control.PathHistory, r.Query()), func(raw json.RawMessage) error {
		if a.json {
			_, err := a.out.Write(append(raw, '\n'))
			return err
		}
		var e control.Event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		// Fixed widths, as a table that is followed never ends. The longest name has
		// 10 letters.
		table := "-"
		if e.Term != 0 {
			table = fmt.Sprintf("%d/%d", e.Term, e.Version)
		}
		alarm := ""
		if e.Alarm {
			alarm = "ALARM "
		}
		text := fmt.Sprintf("%s  %-7s  %-10s  %s%s", e.Time.Local().Format("2006-01-02 15:04:05.000"), table, e.Name, alarm, e.Text)
		_, err := fmt.Fprintln(a.out, printable(text))
		return err
	}))
}
