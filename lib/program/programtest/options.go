package programtest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"saru/lib/config"
)

// BadOptions are arguments, by fields ("”" is the empty string), and a part of the one line that refuses them.
type BadOptions struct{ Name, Args, Want string }

// ParseRefuses checks that parse refuses each, with a configuration file that is empty.
func ParseRefuses(t *testing.T, parse func(args []string) error, all []BadOptions) {
	t.Helper()
	for _, tt := range all {
		t.Run(tt.Name, func(t *testing.T) {
			args := []string{"--config", File(t, "daemon.conf", "", 0o600)}
			for _, arg := range strings.Fields(tt.Args) {
				args = append(args, strings.ReplaceAll(arg, "''", ""))
			}
			err := parse(args)
			if _, ok := errors.AsType[*config.UsageError](err); !ok {
				t.Fatalf("error is %v (%T), want a *config.UsageError", err, err)
			}
			if got := err.Error(); !strings.Contains(got, tt.Want) || strings.Contains(got, "\n") {
				t.Errorf("error is %q, want one line with %q", got, tt.Want)
			}
		})
	}
}

// Reload is how a daemon of options O reloads.
type Reload[O any] struct {
	Flags   *pflag.FlagSet
	Parse   func(args []string) (O, error)
	Restart func(wanted, running O) []string
	Take    func(running *O, wanted O)
	// NotInFile are options of the command line alone.
	NotInFile []string
	// Unchanged are options of which there is only one value.
	Unchanged []string
	// Base are options that every configuration has, by name, and Changes other values, of all that a file may have.
	Base, Changes map[string]string
	Compare       []cmp.Option
}

// Check changes every option of the file in turn: it is either named as one that needs a restart, or taken over.
func (r Reload[O]) Check(t *testing.T) {
	t.Helper()
	parse := func(name, value string) O {
		args := []string{"--config", "/dev/null"}
		for base, v := range r.Base {
			if base != name {
				args = append(args, "--"+base+"="+v)
			}
		}
		if name != "" {
			args = append(args, "--"+name+"="+value)
		}
		o, err := r.Parse(args)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	r.Flags.VisitAll(func(f *pflag.Flag) {
		if slices.Contains(r.NotInFile, f.Name) || slices.Contains(r.Unchanged, f.Name) {
			return
		}
		value, known := r.Changes[f.Name]
		if !known {
			t.Errorf("--%s: no test of its reload", f.Name)
			return
		}
		running, wanted := parse("", ""), parse(f.Name, value)
		if cmp.Equal(running, wanted, r.Compare...) {
			t.Errorf("--%s %s changes nothing", f.Name, value)
		}
		restart := r.Restart(wanted, running)
		r.Take(&running, wanted)
		taken := cmp.Equal(wanted, running, r.Compare...)
		if named := cmp.Equal(restart, []string{f.Name}); named == taken || !named && len(restart) > 0 {
			t.Errorf("--%s: restart is needed for %v, taken over: %v", f.Name, restart, taken)
		}
	})
}

// Help checks that a help text names every option and fits a terminal.
func Help(t *testing.T, flags *pflag.FlagSet, help string) {
	t.Helper()
	flags.VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(help, "--"+f.Name+" ") || f.Usage == "" {
			t.Errorf("the help text does not explain --%s", f.Name)
		}
	})
	for line := range strings.Lines(help) {
		if len(line) > 101 {
			t.Errorf("line of %d columns: %q", len(line), line)
		}
	}
}
