package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestManual holds saructl(8) to the commands and options, both ways.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../../man/saructl.8")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`Fl -(\w+)`).FindAllStringSubmatch(text, -1) {
		documented[m[1]] = true
	}
	existing := map[string]bool{"help": true, "check": true, "auth": true, "kernel_entries": true} // all but the first are the daemons', mentioned
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Runnable() && !cmd.HasSubCommands() {
			if name := strings.TrimPrefix(cmd.CommandPath(), "saructl "); !strings.Contains(text, "\n.It Cm "+name+"\n") {
				t.Errorf("saructl(8) does not explain %q", name)
			}
			if !strings.Contains(text, "\n.Cm "+strings.TrimPrefix(cmd.CommandPath(), "saructl ")+"\n") {
				t.Errorf("the synopsis of saructl(8) lacks %q", cmd.CommandPath())
			}
		}
		for _, flags := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
			flags.VisitAll(func(f *pflag.Flag) {
				existing[f.Name] = true
				if !documented[f.Name] {
					t.Errorf("saructl(8) does not explain --%s of %q", f.Name, cmd.CommandPath())
				}
			})
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRoot(&app{out: io.Discard}))
	for name := range documented {
		if !existing[name] {
			t.Errorf("saructl(8) explains --%s, which does not exist", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm (.*)$`).FindAllStringSubmatch(text, -1) {
		cmd, rest, err := newRoot(&app{out: io.Discard}).Find(strings.Fields(m[1]))
		if err != nil || len(rest) > 0 || !cmd.Runnable() {
			t.Errorf("saructl(8) explains %q, which does not exist", m[1])
		}
	}
}
