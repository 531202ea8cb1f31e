package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// options is a program's set of options, one of each kind.
type options struct {
	Config string
	Check  bool
	Debug  bool
	Names  []string
	Number uint8
	Mode   string
}

func (o *options) flags() *pflag.FlagSet {
	fs := NewFlagSet("test")
	fs.Var(Value(&o.Config, "FILE", Path), "config", "")
	Flag(fs, &o.Check, "check", "")
	Flag(fs, &o.Debug, "debug", "")
	fs.Var(List(&o.Names, "NAME", Interface), "name_list", "")
	fs.Var(Value(&o.Number, "N", Between[uint8](1, 255)), "number", "")
	fs.Var(Value(&o.Mode, "MODE", OneOf("a", "b", "c")), "mode", "")
	CommandLineOnly(fs, "config", "check")
	return fs
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		file string // "" for none
		args []string
		want options
		err  string // in which FILE stands for the file's name
	}{
		{name: "nothing", want: options{Names: []string{"default"}, Number: 1, Mode: "a"}},
		{name: "dashes", args: []string{"--name-list", "x", "--number=7"}, want: options{Names: []string{"x"}, Number: 7, Mode: "a"}},
		{
			name: "file",
			file: "# comment\n\n  number\t 9  # nine\r\nname-list x#1\nname_list y\ndebug\nmode b",
			want: options{Names: []string{"x#1", "y"}, Number: 9, Mode: "b", Debug: true},
		},
		{
			name: "command line wins and replaces repeatables",
			file: "number 9\nname_list x\nname_list y\ndebug\nmode b\n",
			args: []string{"--number", "3", "--name_list", "z", "--debug=no"},
			want: options{Names: []string{"z"}, Number: 3, Mode: "b"},
		},
		{name: "flag with a value in the file", file: "debug on\n", want: options{Names: []string{"default"}, Number: 1, Mode: "a", Debug: true}},

		{name: "help", args: []string{"--help", "--nonsense"}, err: ErrHelp.Error()},
		{name: "unknown", args: []string{"--nonsense"}, err: `unknown option --nonsense: see --help`},
		{name: "short", args: []string{"-x"}, err: `unknown option "-x": options are long and begin with --, see --help`},
		{name: "syntax", args: []string{"---x"}, err: `"---x" is not an option: see --help`},
		{name: "argument", args: []string{"--debug", "maybe"}, err: `unexpected argument "maybe": options begin with --`},
		{name: "no value", args: []string{"--number"}, err: `--number: a value is required`},
		{name: "option for a value", args: []string{"--mode", "--debug"}, err: `--mode "--debug": an option stands where the value should be`},
		{name: "range", args: []string{"--number", "256"}, err: `--number "256": must be a number from 1 to 255`},
		{name: "no number", args: []string{"--number", "x"}, err: `--number "x": must be a number from 1 to 255`},
		{name: "negative", args: []string{"--number=-1"}, err: `--number "-1": must be a number from 1 to 255`},
		{name: "choice", args: []string{"--mode", ""}, err: `--mode "": must be a, b or c`},
		{name: "flag", args: []string{"--debug=maybe"}, err: `--debug "maybe": must be true or false, or nothing for true`},
		{name: "interface", args: []string{"--name_list", "0123456789abcdef"}, err: `--name_list "0123456789abcdef": must be the name of an interface: 1 to 15 bytes without space, '/', ':' and '%'`},
		{name: "command line before file", file: "nonsense\n", args: []string{"--number", "0"}, err: `--number "0": must be a number from 1 to 255`},

		{name: "file: unknown", file: "debug\nnonsense 1\n", err: `FILE:2: unknown option "nonsense": a line is "name value", the names are those of --help`},
		{name: "file: equals", file: "number=1\n", err: `FILE:1: unknown option "number=1": a line is "name value", the names are those of --help`},
		{name: "file: dashes", file: "--number 1\n", err: `FILE:1: "--number": options are written without leading dashes in a file`},
		{name: "file: bad value", file: "\n\nnumber 900 # too many\n", err: `FILE:3: number "900": must be a number from 1 to 255`},
		{name: "file: bad value that does not count", file: "number 900\n", args: []string{"--number", "1"}, err: `FILE:1: number "900": must be a number from 1 to 255`},
		{name: "file: no value", file: "number # 3\n", err: `FILE:1: number: a value is required`},
		{name: "file: command line only", file: "check\n", err: `FILE:1: check belongs on the command line only`},
		{name: "file: other file", file: "config /etc/passwd\n", err: `FILE:1: config belongs on the command line only`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "test.conf")
			args := tt.args
			if tt.file != "" {
				if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append([]string{"--config", file}, args...)
				tt.want.Config = file
			}
			got := options{Names: []string{"default"}, Number: 1, Mode: "a"}
			err := Parse(got.flags(), args, "/nonexistent/default.conf")
			if tt.err != "" {
				if err == nil {
					t.Fatalf("no error, want %q", tt.err)
				}
				if diff := cmp.Diff(strings.ReplaceAll(tt.err, "FILE", file), err.Error()); diff != "" {
					t.Fatalf("error (-want +got):\n%s", diff)
				}
				if _, ok := errors.AsType[*UsageError](err); !ok && !errors.Is(err, ErrHelp) {
					t.Fatalf("error is a %T, want a *UsageError", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDefaultFile shows which file is read, and what happens when it is absent.
func TestDefaultFile(t *testing.T) {
	dir := t.TempDir()
	present := filepath.Join(dir, "default.conf")
	if err := os.WriteFile(present, []byte("number 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.conf")
	if err := os.WriteFile(other, []byte("mode c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge.conf")
	if err := os.WriteFile(huge, []byte(strings.Repeat("#\n", maxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		file   string
		args   []string
		number uint8
		mode   string
		err    string
	}{
		{name: "default present", file: present, number: 5},
		{name: "default absent", file: filepath.Join(dir, "no.conf")},
		{name: "other file instead", file: present, args: []string{"--config", other}, mode: "c"},
		{name: "other file absent", file: present, args: []string{"--config", dir + "/no.conf"}, err: `--config "` + dir + `/no.conf": no such file or directory`},
		{name: "folder", args: []string{"--config", dir}, err: `--config "` + dir + `": is a directory`},
		{name: "huge", args: []string{"--config", huge}, err: `--config "` + huge + `": larger than 1 MiB, no configuration file`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var o options
			err := Parse(o.flags(), tt.args, tt.file)
			message := ""
			if err != nil {
				message = err.Error()
			}
			if diff := cmp.Diff([]any{tt.err, tt.number, tt.mode}, []any{message, o.Number, o.Mode}); diff != "" {
				t.Errorf("error, number, mode (-want +got):\n%s", diff)
			}
		})
	}
}

// TestValues reads single values, and writes them as the help text shows defaults.
func TestValues(t *testing.T) {
	var n int
	var d time.Duration
	size := Size(&n, 1<<20, 1<<30)
	off := Value(&d, "TIME", DurationOrOff(time.Second, time.Hour))
	on := Value(&d, "TIME", Duration(time.Second, 90*time.Minute))
	var got string
	function := Func("X", "default", func(s string) error {
		if s == "" {
			return errors.New("must be something")
		}
		got = s
		return nil
	})
	if function.String() != "default" || function.Type() != "X" || size.Type() != "SIZE" {
		t.Errorf("default %q, types %q and %q", function, function.Type(), size.Type())
	}
	const (
		sizes = "must be a size in bytes from 1M to 1G, K, M and G stand for powers of 1024"
		offs  = "must be a time with its unit (2s, 5m) from 1s to 1h, or 0 for off"
		ons   = "must be a time with its unit (100ms, 2s) from 1s to 1h30m"
	)
	tests := []struct {
		value pflag.Value
		text  string
		want  string // how it is written, or the error
	}{
		{size, "16777216", "16M"}, {size, "1024k", "1M"}, {size, "1G", "1G"}, {size, "1048577", "1048577"}, {size, "1536K", "1536K"},
		{size, "", sizes}, {size, "M", sizes}, {size, "1.5M", sizes}, {size, "1T", sizes}, {size, "1MB", sizes}, {size, "+2M", sizes},
		{size, "1048575", sizes}, {size, "1073741825", sizes}, {size, "4294967295G", sizes}, {size, "99999999999", sizes},
		{off, "0", "0s"}, {off, "1s", "1s"}, {off, "60s", "1m"}, {off, "1h", "1h"}, {off, "10m", "10m"}, {off, "90s", "1m30s"},
		{off, "999ms", offs}, {off, "3601s", offs}, {off, "-1s", offs}, {off, "10", offs}, {off, "", offs},
		{on, "90m", "1h30m"}, {on, "0", ons}, {on, "2h", ons},
		{function, "x", "x"}, {function, "", "must be something"},
	}
	for _, tt := range tests {
		before := tt.value.String()
		text := before
		err := tt.value.Set(tt.text)
		switch {
		case err != nil && tt.value.String() != before:
			t.Errorf("%q was refused and left %q", tt.text, tt.value)
		case err != nil:
			text = err.Error()
		default:
			text = tt.value.String()
		}
		if text != tt.want {
			t.Errorf("%q gives %q, want %q", tt.text, text, tt.want)
		}
	}
	if n != 1536<<10 || d != 90*time.Minute || got != "x" {
		t.Errorf("values are %d, %v and %q", n, d, got)
	}
}

// FuzzFile checks that no file breaks the reader, and that its errors are single lines.
func FuzzFile(f *testing.F) {
	f.Add("number 9 # nine\nname_list x\n")
	f.Add("--debug\r\n\x00mode\tb")
	f.Fuzz(func(t *testing.T, text string) {
		var o options
		fs := o.flags()
		settings, err := parse(fs, "FILE", text)
		if err == nil {
			err = apply(fs, settings)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\r\x00") {
			t.Errorf("error is not one readable line: %q", err)
		}
	})
}
