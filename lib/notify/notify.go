// Package notify tells systemd how a daemon is: ready, reloading, stopping, alive.
// Without systemd all of it does nothing.
package notify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Ready says that the daemon works; status is a line for "systemctl status". It
// also ends what Reloading began.
func Ready(status string) error { return send(daemon.SdNotifyReady, "STATUS="+oneLine(status)) }

// Status sets the line that "systemctl status" shows.
func Status(status string) error { return send("STATUS=" + oneLine(status)) }

// Reloading says that SIGHUP is being handled. Ready must follow, also when the
// new configuration was refused and the old one stays.
func Reloading() error {
	// Type=notify-reload requires the time of the monotonic clock (sd_notify(3)):
	// the service manager tells by it that this reload follows its signal.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return send(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that an orderly stop has begun.
func Stopping() error { return send(daemon.SdNotifyStopping) }

// Watchdog tells systemd's watchdog that the daemon is alive for as long as
// healthy says so, until ctx ends. If healthy returns false or hangs, systemd
// kills the daemon after WatchdogSec. It returns at once, without an error, if no
// watchdog is set up.
func Watchdog(ctx context.Context, healthy func() bool) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog's time: %w", err)
	}
	if interval == 0 {
		return nil
	}
	// Half of the time is what sd_watchdog_enabled(3) recommends; a third allows
	// for one late tick.
	ticker := time.NewTicker(interval / 3)
	defer ticker.Stop()
	for {
		if healthy() {
			if err := send(daemon.SdNotifyWatchdog); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// send sends assignments in one datagram.
func send(lines ...string) error {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
