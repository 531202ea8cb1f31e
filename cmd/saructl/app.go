package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"saru/lib/control"
)

// Defaults of the daemons' --control.
const (
	defaultSyncdSocket = "/run/saru/syncd.sock"
	defaultSaruSocket  = "/run/saru/saru.sock"
)

// app is what all commands share.
type app struct {
	out     io.Writer
	errOut  io.Writer // for progress
	json    bool
	control string
}

// service is a daemon that is asked.
type service struct {
	*control.Client
	name, socket string
}

// syncd returns the mirror of connections.
func (a *app) syncd() service { return a.service("syncd", defaultSyncdSocket) }

// saru returns the coordinator.
func (a *app) saru() service { return a.service("saru", defaultSaruSocket) }

func (a *app) service(name, socket string) service {
	socket = cmp.Or(a.control, socket)
	return service{control.NewClient(socket), name, socket}
}

// explain names the daemon in an error of its client, and what to do. What the
// daemon does not take is a mistake of usage.
func (s service) explain(err error) error {
	if err == nil {
		return nil
	}
	after := func(sentinel error) string { return strings.TrimPrefix(err.Error(), sentinel.Error()) }
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return fmt.Errorf("%s is not running%s: start it, or name its socket with --control", s.name, after(control.ErrNotRunning))
	case errors.Is(err, control.ErrUnknown):
		return fmt.Errorf("what listens on %s does not know%s: it is no %s, or one older than this saructl, to be restarted", s.socket, after(control.ErrUnknown), s.name)
	case errors.Is(err, control.ErrBadRequest):
		return usage("%s: %s", s.name, strings.TrimPrefix(after(control.ErrBadRequest), ": "))
	case errors.Is(err, context.Canceled):
		return errInterrupted
	}
	return fmt.Errorf("%s: %w", s.name, err)
}

// errInterrupted is for what was ended by a signal.
var errInterrupted = errors.New("interrupted")

// fetch asks a daemon for a value, decoded and as it was sent: fields that a newer
// daemon adds are not lost in JSON.
func fetch[T any](ctx context.Context, s service, path string) (v T, raw json.RawMessage, err error) {
	if err := s.Get(ctx, path, &raw); err != nil {
		return v, nil, s.explain(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, nil, fmt.Errorf("read %s's answer to %s: %w", s.name, path, err)
	}
	return v, raw, nil
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
