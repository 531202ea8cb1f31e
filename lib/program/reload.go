package program

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"saru/lib/logging"
	"saru/lib/notify"
)

// CatchReload catches SIGHUP until the returned function is called. Whoever changes keys tells a daemon that is still starting, or stopping,
// as well: not caught, the signal would end it.
func CatchReload() (hup chan os.Signal, stop func()) {
	hup = make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	return hup, func() { signal.Stop(hup) }
}

// Reloads calls reload for each SIGHUP until ctx ends, and tells systemd and the log. status is what systemd shows afterwards.
func Reloads(ctx context.Context, hup <-chan os.Signal, log *slog.Logger, status string, reload func() error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		_ = notify.Reloading()
		if err := reload(); err != nil {
			log.Error("reload refused, everything stays as it was", "error", OneLine(err))
		}
		_ = notify.Ready(status)
	}
}

// ReopenLog opens a log file again, by its name.
func ReopenLog(file io.Closer) error {
	if r, ok := file.(logging.Reopener); ok {
		return r.Reopen()
	}
	return nil
}

// WarnRestart logs which options have changed without effect.
func WarnRestart(log *slog.Logger, options []string) {
	if len(options) > 0 {
		log.Warn("options that changed need a restart", "options", strings.Join(options, ","))
	}
}
