package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

// defaultSyncdSocket is the default of syncd's --control.
const defaultSyncdSocket = "/run/saru/syncd.sock"

// app is what all commands share.
type app struct {
	out     io.Writer
	json    bool
	control string
}

// syncd returns a client of syncd.
func (a *app) syncd() *control.Client {
	if a.control != "" {
		return control.NewClient(a.control)
	}
	return control.NewClient(defaultSyncdSocket)
}

// fromSyncd names the daemon in an error of its client.
func fromSyncd(err error) error {
	if err == nil {
		return nil
	}
	if text, ok := strings.CutPrefix(err.Error(), control.ErrNotRunning.Error()); ok {
		return fmt.Errorf("syncd is not running%s", text)
	}
	return fmt.Errorf("syncd: %w", err)
}

// printJSON writes v in one line.
func (a *app) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(b, '\n'))
	return err
}

// action makes a function a command's work: its errors give exit status 1.
func action(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := fn(cmd, args)
		if _, ok := errors.AsType[*exitError](err); ok || err == nil {
			return err
		}
		return &exitError{exitBad, err}
	}
}

// bad is the exit status for bad news that have been printed.
func bad() error { return &exitError{code: exitBad} }

// usage is the exit status for options that no check of cobra covers.
func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}
