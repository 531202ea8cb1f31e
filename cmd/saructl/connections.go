package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

func (a *app) connectionsCommand() *cobra.Command {
	var f control.ConnectionFilter
	var client, virtual, realServer string
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "List the connections in syncd's table, numerically",
		Long: `List the connections in syncd's table, numerically.

Endpoints are selected by ADDR, ADDR/BITS, ADDR:PORT, [ADDR]:PORT or :PORT.`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			for _, e := range []struct {
				name, value string
				to          *control.EndpointFilter
			}{{"client", client, &f.Client}, {"virtual", virtual, &f.Virtual}, {"real", realServer, &f.Real}} {
				var err error
				if *e.to, err = control.ParseEndpointFilter(e.value); err != nil {
					return usage("--%s: %w", e.name, err)
				}
			}
			return a.connections(cmd, f)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&client, "client", "", "only this client `ENDPOINT`")
	flags.StringVar(&virtual, "virtual", "", "only this virtual `ENDPOINT`")
	flags.StringVar(&realServer, "real", "", "only this real server's `ENDPOINT`")
	flags.StringVar(&f.Protocol, "protocol", "", "only this `PROTOCOL` (tcp, udp, sctp)")
	flags.StringVar(&f.State, "state", "", "only this `STATE`, such as established")
	flags.StringVar(&f.Origin, "origin", "", "only what this `NODE` reported")
	return cmd
}

func (a *app) connections(cmd *cobra.Command, f control.ConnectionFilter) error {
	path := control.PathSyncConnections
	if q := f.Query().Encode(); q != "" {
		path += "?" + q
	}
	out := bufio.NewWriter(a.out)
	table := &table{out: out, head: []string{"PROTOCOL", "CLIENT", "VIRTUAL", "REAL", "STATE", "ORIGIN", "EXPIRES", "FLAGS"}}
	err := a.syncd().Stream(cmd.Context(), path, func(raw json.RawMessage) error {
		if a.json {
			_, err := out.Write(append(raw, '\n'))
			return err
		}
		var c control.Connection
		if err := json.Unmarshal(raw, &c); err != nil {
			return fmt.Errorf("read a connection: %w", err)
		}
		return table.row(c.Protocol, c.Client, c.Virtual, c.Real, c.State, c.Origin, fmt.Sprintf("%ds", c.ExpiresS), strings.Join(c.Flags, ","))
	})
	err = a.syncd().explain(err)
	// What came before an error is worth seeing.
	if !a.json {
		if e := table.flush(); err == nil {
			err = e
		}
	}
	if e := out.Flush(); err == nil {
		err = e
	}
	return err
}
