package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// sbin are the folders that daemons are installed in and that the PATH of an
// ordinary user may lack.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// checkResult is one daemon's part of "check --json".
type checkResult struct {
	Daemon string `json:"daemon"`
	// Status is the exit status of its --check: 0 good, 1 findings, 2 usage or
	// environment.
	Status int `json:"status"`
	// Lines are what it printed.
	Lines []string `json:"lines"`
}

func (a *app) checkCommand() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use:   "check [syncd|saru] [-- OPTION...]",
		Short: "Check the configuration and the kernel, as each installed daemon would before it starts",
		Long: `Run --check of each installed daemon, or of the one that is named. Options after
"--" are passed to it, and both daemons do not take the same ones: where both are
installed, name it for them. The exit status is the worst of theirs.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if named := named(cmd, args); len(named) > 1 || len(named) == 1 && !slices.Contains(daemons, named[0]) {
				return fmt.Errorf("check %s: one of %s may be named, options for it follow after --", strings.Join(named, " "), strings.Join(daemons, ", "))
			}
			return nil
		},
		RunE: action(func(cmd *cobra.Command, args []string) error {
			named := named(cmd, args)
			options := append([]string{"--check"}, args[len(named):]...)
			if configFile != "" {
				options = append(options, "--config", configFile)
			}
			return a.check(cmd, named, options)
		}),
	}
	cmd.Flags().StringVar(&configFile, "config", "", "the daemon's configuration `FILE`")
	return cmd
}

// daemons that have --check, in the order in which they start.
var daemons = []string{"syncd", "saru"}

// named returns the arguments before "--".
func named(cmd *cobra.Command, args []string) []string {
	if n := cmd.ArgsLenAtDash(); n >= 0 {
		return args[:n]
	}
	return args
}

func (a *app) check(cmd *cobra.Command, named, options []string) error {
	wanted := named
	if len(wanted) == 0 {
		wanted = daemons
	}
	type program struct{ name, path string }
	var installed []program
	for _, name := range wanted {
		path, err := find(name)
		if err == nil {
			installed = append(installed, program{name, path})
		} else if len(named) > 0 {
			return &exitError{exitUsage, err}
		}
	}
	switch {
	case len(installed) == 0:
		return &exitError{exitUsage, fmt.Errorf("no daemon is installed: neither %s is found", strings.Join(daemons, " nor "))}
	case len(installed) > 1 && len(options) > 1:
		return usage("check: name the daemon that the options are for: %s", strings.Join(daemons, " or "))
	}
	var results []checkResult
	worst := exitGood
	for _, p := range installed {
		name, path := p.name, p.path
		run := exec.CommandContext(cmd.Context(), path, options...)
		output, err := run.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			return fmt.Errorf("run %s: %w", path, err)
		}
		// A signal, which has the status -1, is a failure as well.
		status := run.ProcessState.ExitCode()
		if status < 0 {
			status = exitBad
		}
		worst = max(worst, status)
		results = append(results, checkResult{Daemon: name, Status: status, Lines: lines(output)})
		if !a.json {
			if len(installed) > 1 {
				fmt.Fprintf(a.out, "%s --check:\n", name)
			}
			if _, err := a.out.Write(output); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.printJSON(results); err != nil {
			return err
		}
	}
	if worst != exitGood {
		return &exitError{code: worst}
	}
	return nil
}

// find looks for a daemon beside this program, in PATH and where daemons are.
func find(name string) (string, error) {
	var folders []string
	if self, err := os.Executable(); err == nil {
		folders = append(folders, filepath.Dir(self))
	}
	folders = append(folders, filepath.SplitList(os.Getenv("PATH"))...)
	for _, folder := range append(folders, sbin...) {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// lines splits what a daemon printed; never nil, so that JSON has [].
func lines(output []byte) []string {
	all := []string{}
	for line := range bytes.Lines(output) {
		all = append(all, strings.TrimRight(string(line), "\r\n"))
	}
	return all
}
