// Package man checks the manuals against the programs.
package man

import (
	"cmp"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"saru/saru"
	"saru/syncd"
)

// names returns what pattern's first group matches in a manual, without doubles.
func names(t *testing.T, file, pattern string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(b), -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// options returns the names of a program's options.
func options(fs *pflag.FlagSet, keep func(*pflag.Flag) bool) []string {
	var all []string
	fs.VisitAll(func(f *pflag.Flag) {
		if keep(f) {
			all = append(all, f.Name)
		}
	})
	slices.Sort(all)
	return all
}

// same compares both ways and says which side lacks what.
func same(t *testing.T, file string, documented, existing []string) {
	t.Helper()
	for _, name := range existing {
		if !slices.Contains(documented, name) {
			t.Errorf("%s does not explain %s", file, name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(existing, name) {
			t.Errorf("%s explains %s, which does not exist", file, name)
		}
	}
}

// daemon is a program with a manual, and one of its configuration.
type daemon struct {
	name        string
	flags       *pflag.FlagSet
	commandLine []string // options that no file may have
	// words are what the program shows as nothing, and the manual in words.
	words map[string]string
	// choices are values that the completion offers for one option.
	choices []string
}

func daemons() []daemon {
	return []daemon{
		{
			"syncd", syncd.Flags(), []string{"config", "check", "cleanup"},
			map[string]string{
				"debug": "off", "insecure": "off", "interface": "required", "join": "own address:8848", "metrics": "off",
				"mirror_service": "every service", "node": "host name",
			},
			[]string{
				strings.Join([]string{syncd.SysctlApply, syncd.SysctlCheck, syncd.SysctlOff}, " "),
				strings.Join([]string{syncd.AuthEnforce, syncd.AuthPermissive, syncd.AuthReceiveOnly}, " "),
				strings.Join([]string{syncd.MirrorAll, syncd.MirrorTemplates}, " "),
			},
		},
		{
			"saru", saru.Flags(), []string{"config", "check", "cleanup", "close", "open"},
			map[string]string{
				"debug": "off", "expect": "unknown", "insecure": "off", "inside": "none", "interface": "required", "mac": "none", "masquerade": "none",
				"metrics": "off", "node": "host name", "partition": "by their number", "ping_node": "none", "virtual": "required",
			},
			[]string{strings.Join([]string{saru.PartitionQuorum, saru.PartitionAvailable}, " "), saru.MACExternal},
		},
	}
}

// every returns the names of all options of the program.
func (d daemon) every() []string {
	return append(options(d.flags, func(*pflag.Flag) bool { return true }), "help")
}

func TestOptions(t *testing.T) {
	for _, d := range daemons() {
		file := d.name + ".8"
		same(t, file, names(t, file, `(?m)^\.It Fl -(\w+)`), d.every())
		// Those that are only mentioned must exist as well.
		for _, name := range names(t, file, `Fl -(\w+)`) {
			if !slices.Contains(d.every(), name) {
				t.Errorf("%s mentions --%s, which does not exist", file, name)
			}
		}
	}
}

func TestConfiguration(t *testing.T) {
	for _, d := range daemons() {
		inFile := options(d.flags, func(f *pflag.Flag) bool { return !slices.Contains(d.commandLine, f.Name) })
		file := d.name + ".conf.5"
		same(t, file, names(t, file, `(?m)^\.It Ic (\w+)`), inFile)
	}
}

// TestDefaults holds the defaults of the manuals of configurations to those of the programs.
func TestDefaults(t *testing.T) {
	for _, d := range daemons() {
		text, err := os.ReadFile(d.name + ".conf.5")
		if err != nil {
			t.Fatal(err)
		}
		d.flags.VisitAll(func(f *pflag.Flag) {
			m := regexp.MustCompile(`(?m)^\.It Ic ` + f.Name + ` Ta .* Ta (.*)$`).FindSubmatch(text)
			if m == nil {
				return // TestConfiguration tells
			}
			if want := cmp.Or(d.words[f.Name], f.DefValue); string(m[1]) != want {
				t.Errorf("%s: default of %s is documented as %q, want %q", d.name, f.Name, m[1], want)
			}
		})
	}
}

// TestCompletion holds the lists of options in the daemons' shell completions to the programs.
func TestCompletion(t *testing.T) {
	for _, d := range daemons() {
		file := "../packaging/completion/" + d.name + ".bash"
		same(t, file, names(t, file, `--(\w+)`), d.every())
		for _, list := range d.choices {
			if len(names(t, file, `words="(`+regexp.QuoteMeta(list)+`)"`)) != 1 {
				t.Errorf("%s does not offer %q", file, list)
			}
		}
	}
}
