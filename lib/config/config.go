// Package config reads a daemon's options from its command line and from a
// configuration file, by one set of names.
//
// Options are long, spelled with "_"; "-" is accepted in its place. The file
// holds one option a line, "name value" (a flag may omit its value), and "#"
// comments. The command line wins; a repeatable option that it names replaces the
// file's values of it. Every error is one line that names the option, the value
// and what is allowed, and in a file FILE:LINE.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// ConfigOption is the name of the option that names the configuration file.
const ConfigOption = "config"

// ErrHelp is returned by Parse when help was asked for. It is no failure: the
// caller prints the help text to standard output and exits with 0.
var ErrHelp = pflag.ErrHelp

// UsageError is a mistake in the options or in the configuration file. A program
// prints it as its one line and exits with status 2.
type UsageError struct{ err error }

// Usagef returns a UsageError with a formatted message.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// Error returns the one line.
func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap returns what was behind it, such as an error of the file system.
func (e *UsageError) Unwrap() error { return e.err }

// commandLineOnly is the pflag annotation of options that no file may contain.
const commandLineOnly = "saru_command_line_only"

// NewFlagSet returns an empty set of options that treats "-" in names as "_" and
// prints nothing by itself.
func NewFlagSet(program string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(program, pflag.ContinueOnError)
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(Normalize(name))
	})
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.SortFlags = false
	return fs
}

// Normalize returns the spelling of an option's name that the documentation uses.
func Normalize(name string) string { return strings.ReplaceAll(name, "-", "_") }

// CommandLineOnly marks options that a configuration file must not contain,
// because they would make a daemon do something else than to run (check), or
// mean nothing there (config).
func CommandLineOnly(fs *pflag.FlagSet, names ...string) {
	for _, name := range names {
		_ = fs.SetAnnotation(name, commandLineOnly, []string{"true"}) // fails for unknown names only: the tests of the options see it
	}
}

// setting is one option as it was written somewhere.
type setting struct {
	flag  *pflag.Flag
	value string
	where string // "FILE:LINE", empty for the command line
}

// Parse sets the options of fs from args and from the configuration file: the
// one that --config names, which must exist, else defaultFile where it is
// present ("" for none). The command line is checked before the file is read.
// Errors are of type *UsageError, or ErrHelp.
func Parse(fs *pflag.FlagSet, args []string, defaultFile string) error {
	var line []setting
	err := fs.ParseAll(args, func(f *pflag.Flag, value string) error {
		line = append(line, setting{flag: f, value: value})
		return nil
	})
	if err != nil {
		return describe(err)
	}
	if fs.NArg() > 0 {
		return Usagef("unexpected argument %q: options begin with --", fs.Arg(0))
	}
	if err := apply(fs, line); err != nil {
		return err
	}

	file, required := defaultFile, false
	if f := fs.Lookup(ConfigOption); f != nil && f.Changed {
		file, required = f.Value.String(), true
	}
	if file == "" {
		return nil
	}
	settings, err := readFile(fs, file)
	if !required && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// What the command line names is set last and from nothing, so that the
	// values of the file have been checked and then do not count.
	if err := apply(fs, settings); err != nil {
		return err
	}
	return apply(fs, line)
}

// apply sets options, in order. Repeatable options among them start from empty.
func apply(fs *pflag.FlagSet, settings []setting) error {
	for _, s := range settings {
		if list, ok := s.flag.Value.(pflag.SliceValue); ok {
			if err := list.Replace(nil); err != nil {
				return Usagef("reset --%s: %w", s.flag.Name, err)
			}
		}
	}
	for _, s := range settings {
		name := "--" + s.flag.Name
		if s.where != "" {
			name = s.where + ": " + s.flag.Name
		}
		// An option in the place of a value is a forgotten value.
		if strings.HasPrefix(s.value, "--") {
			return Usagef("%s %q: an option stands where the value should be", name, s.value)
		}
		err := fs.Set(s.flag.Name, s.value)
		if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
			err = invalid.Unwrap()
		}
		if err != nil {
			return Usagef("%s %q: %w", name, s.value, err)
		}
	}
	return nil
}

// describe turns the errors of pflag into ours.
func describe(err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return ErrHelp
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if short := e.GetSpecifiedShortnames(); short != "" {
			return Usagef("unknown option %q: options are long and begin with --, see --help", "-"+short)
		}
		return Usagef("unknown option --%s: see --help", e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return Usagef("--%s: a value is required", e.GetFlag().Name)
	}
	if e, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return Usagef("%q is not an option: see --help", e.GetSpecifiedFlag())
	}
	return &UsageError{err}
}
