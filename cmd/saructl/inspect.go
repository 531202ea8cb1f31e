package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"saru/lib/config"
	"saru/lib/inspect"
	"saru/lib/seal"
	"saru/proto/ipvssync"
)

// sealProtocol is the name under which syncd derives its keys.
const sealProtocol = "syncd"

func (a *app) inspectCommand() *cobra.Command {
	var (
		iface, keyFile string
		group          netip.AddrPort
	)
	cmd := &cobra.Command{
		Use:   "inspect [FILE.pcap]",
		Short: "Decode sync traffic, live or from a capture file (- for standard input)",
		Long: `Decode the sync traffic of the kernel's sync daemons and of syncd, live or from
a capture file (- for standard input).`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("inspect: one capture file at most")
			}
			return nil
		},
		RunE: action(func(cmd *cobra.Command, args []string) error {
			cfg := inspect.Config{Interface: iface, JSON: a.json, Out: a.out}
			if len(args) == 1 {
				if iface != "" {
					return usage("inspect: --interface and a capture file exclude each other")
				}
				cfg.File = args[0]
			}
			if cmd.Flags().Changed("group") {
				cfg.Group, cfg.Port = group.Addr(), group.Port()
			}
			if keyFile != "" {
				// Keys are derived for the group that syncd was told.
				ring, err := readKeys(keyFile, group)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				cfg.Verify = ring.Verify
			}
			return inspect.Run(cmd.Context(), cfg)
		}),
	}
	group = ipvssync.DefaultGroup()
	flags := cmd.Flags()
	flags.Var(config.Value(&iface, "IF", config.Interface), "interface", "listen on this interface (default: all)")
	flags.Var(config.Value(&group, "ADDR:PORT", config.Group), "group", "show this multicast group only")
	flags.Var(config.Value(&keyFile, "FILE", config.Path), "key_file", "verify signatures with these keys")
	return cmd
}

func readKeys(name string, group netip.AddrPort) (*seal.Ring, error) {
	keys, err := seal.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("--key_file %q: %w", name, err)
	}
	return seal.NewRing(keys, sealProtocol, group.String())
}
