package saru

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"saru/lib/ipvs"
	"saru/lib/logging"
	"saru/lib/mcast"
	"saru/lib/program"
	"saru/lib/seal"
	"saru/netfilter/share"
)

// Main is the program: it runs until ctx ends (SIGTERM, SIGINT) and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := ParseOptions(args)
	if err != nil {
		return program.Unparsed("saru", err, Help(), stdout, stderr)
	}
	if o.Check {
		return check(o, stdout, stderr)
	}
	return program.WithLog(logging.Options{Facility: o.LogFacility, Debug: o.Debug, Tag: "saru", Stderr: stderr}, func(log *slog.Logger, file io.Closer) error {
		switch {
		case o.Cleanup:
			return cleanup(o)
		case o.Close:
			return withoutDaemon(o, log, "--close", func() error { return closeFilter(o, log) })
		case o.Open:
			return withoutDaemon(o, log, "--open", func() error { return share.Remove(o.table()) })
		}
		return run(ctx, o, args, log, file)
	})
}

// cleanup is --cleanup: all that a killed saru leaves is its socket, and its filter. That stays: its lease has ended by itself, so the addresses are closed, and so they
// must stay until somebody who knows says otherwise (--open).
func cleanup(o Options) error {
	if err := program.Alone(o.Control, func() error { return nil }); err != nil {
		return fmt.Errorf("--cleanup: %w", err)
	}
	return nil
}

// withoutDaemon changes the filter while no saru runs. Closing must not depend on a folder for a socket: where that cannot be had, no saru has it.
func withoutDaemon(o Options, log *slog.Logger, option string, do func() error) error {
	if err := program.CheckPrivileges(); err != nil {
		return program.Environment(err)
	}
	done := false
	err := program.Alone(o.Control, func() error {
		done = true
		return do()
	})
	switch {
	case errors.Is(err, program.ErrRuns):
		return fmt.Errorf("%s: %w", option, err)
	case !done:
		log.Warn("whether another saru runs cannot be told", "error", err)
		return do()
	}
	return err
}

// closeFilter installs the table with every address closed, for the time before saru runs.
func closeFilter(o Options, log *slog.Logger) error {
	v := &virtuals{log: log}
	v.configure(&o)
	var services ipvs.Services
	if o.VirtualAuto {
		var err error
		if services, err = ipvs.OpenServices(); err != nil && !errors.Is(err, ipvs.ErrNotAvailable) {
			return fmt.Errorf("virtual services: %w", err)
		}
	}
	if services != nil {
		defer services.Close()
	}
	if _, err := v.look(services); err != nil {
		return fmt.Errorf("virtual services: %w", err)
	}
	all := v.filter(nil)
	if len(all) == 0 {
		log.Warn("no address is closed: --virtual auto finds none before IPVS has services; name the addresses, with or without auto")
	}
	return share.InstallClosed(o.filterConfig(all, log))
}

// daemonConfig is what a daemon runs with: everything has been looked at, and nothing changed yet.
type daemonConfig struct {
	// Options are those of the start; a reload changes those that TakeOver names, under the coordinator's lock.
	Options         Options
	Args            []string // of the command line, to read the options again
	Ring            *seal.Ring
	Conn            *mcast.Conn
	Listener        net.Listener
	MetricsListener net.Listener // nil without --metrics
	Log             *slog.Logger
	LogFile         io.Closer
	HUP             <-chan os.Signal
}

// run is saru from its first look at the machine to its orderly stop.
func run(ctx context.Context, o Options, args []string, log *slog.Logger, logFile io.Closer) error {
	hup, stop := program.CatchReload() // before anything is read that a reload reads again
	defer stop()
	ring, err := o.loadKeys()
	if err != nil {
		return program.Environment(err)
	}
	if err := o.checkEnvironment(); err != nil {
		return program.Environment(err)
	}
	warnings, findings := o.checkKernel()
	if len(findings) > 0 {
		return program.Environment(findings[0])
	}
	sockets, err := program.OpenSockets(ctx, o.Control, o.Metrics, mcast.Config{Interfaces: o.Interfaces, Group: o.Group, WriteWait: writeWait})
	if err != nil {
		return err
	}
	defer sockets.Close()
	for _, w := range warnings {
		log.Warn(w)
	}
	if o.Insecure {
		log.Warn(insecure)
	}
	// A busy director must not lose its lease by scheduling alone.
	if err := prefer(); err != nil {
		log.Debug("without real-time priority or locked memory", "error", err)
	}
	return serve(ctx, &daemonConfig{
		Options: o, Args: args, Ring: ring, Conn: sockets.Conn, Listener: sockets.Control, MetricsListener: sockets.Metrics, Log: log, LogFile: logFile, HUP: hup,
	})
}
