package program

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"saru/lib/config"
	"saru/lib/logging"
)

// Exit statuses of DESIGN's contract.
const (
	ExitGood    = 0
	ExitRefused = 1 // or failed while running, or --check with findings
	ExitUsage   = 2 // or an environment in which the program cannot run
)

// environmentError is an error for which the exit status is 2: nothing was refused, but the program cannot run here or like this.
type environmentError struct{ error }

func (e environmentError) Unwrap() error { return e.error }

// Environment makes an error one of the environment, for which the exit status is ExitUsage.
func Environment(err error) error { return environmentError{err} }

// OneLine returns the error's text without line breaks.
func OneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Fail prints the error as the program's one line and returns the exit status for it.
func Fail(name string, stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%s: %s\n", name, OneLine(err))
	if e := (environmentError{}); errors.As(err, &e) {
		return ExitUsage
	}
	return ExitRefused
}

// Unparsed is what to do with an error of parsing the options: help is no failure.
func Unparsed(name string, err error, help string, stdout, stderr io.Writer) int {
	if errors.Is(err, config.ErrHelp) {
		fmt.Fprint(stdout, help)
		return ExitGood
	}
	return Fail(name, stderr, Environment(err))
}

// WithLog opens the log of the program that Options.Tag names, calls do, and says by log and standard error why that failed. It returns the exit status.
func WithLog(o logging.Options, do func(log *slog.Logger, file io.Closer) error) int {
	name, stderr := o.Tag, o.Stderr
	log, closer, err := logging.New(o)
	if err != nil {
		return Fail(name, stderr, Environment(fmt.Errorf("--log_facility: %w", err)))
	}
	defer closer.Close()
	if err = do(log, closer); err == nil {
		return ExitGood
	}
	if !logging.OnStderr(closer) { // there the line below is enough
		log.Error(name+" stops", "error", OneLine(err))
	}
	return Fail(name, stderr, err)
}

// Report is the end of --check: warnings, what is missing, and how many that is. It returns the exit status, which warnings do not change.
func Report(name string, warnings []string, findings []error, stdout, stderr io.Writer) int {
	for _, w := range warnings {
		fmt.Fprintf(stdout, "warning: %s\n", w)
	}
	for _, err := range findings {
		fmt.Fprintln(stdout, OneLine(err))
	}
	if len(findings) > 0 {
		fmt.Fprintf(stderr, "%s: --check: findings: %d\n", name, len(findings))
		return ExitRefused
	}
	fmt.Fprintf(stdout, "%s: configuration and kernel are good\n", name)
	return ExitGood
}
