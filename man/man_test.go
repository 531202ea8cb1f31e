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

func TestSyncd(t *testing.T) {
	all := append(options(syncd.Flags(), func(*pflag.Flag) bool { return true }), "help")
	same(t, "syncd.8", names(t, "syncd.8", `(?m)^\.It Fl -(\w+)`), all)
	// Those that are only mentioned must exist as well.
	for _, name := range names(t, "syncd.8", `Fl -(\w+)`) {
		if !slices.Contains(all, name) {
			t.Errorf("syncd.8 mentions --%s, which does not exist", name)
		}
	}
}

func TestSyncdConf(t *testing.T) {
	inFile := options(syncd.Flags(), func(f *pflag.Flag) bool {
		return !slices.Contains([]string{"config", "check", "cleanup"}, f.Name)
	})
	same(t, "syncd.conf.5", names(t, "syncd.conf.5", `(?m)^\.It Ic (\w+)`), inFile)
}

// TestDefaults holds the defaults of syncd.conf(5) to those of the program.
func TestDefaults(t *testing.T) {
	text, err := os.ReadFile("syncd.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	// What the program shows as nothing, and the manual in words.
	words := map[string]string{
		"debug": "off", "insecure": "off", "interface": "required", "metrics": "off",
		"mirror_service": "every service", "node": "host name",
	}
	syncd.Flags().VisitAll(func(f *pflag.Flag) {
		m := regexp.MustCompile(`(?m)^\.It Ic ` + f.Name + ` Ta .* Ta (.*)$`).FindSubmatch(text)
		if m == nil {
			return // TestSyncdConf tells
		}
		if want := cmp.Or(words[f.Name], f.DefValue); string(m[1]) != want {
			t.Errorf("default of %s is documented as %q, want %q", f.Name, m[1], want)
		}
	})
}

// TestCompletion holds the list of options in syncd's shell completion to the program.
func TestCompletion(t *testing.T) {
	const file = "../packaging/completion/syncd.bash"
	all := append(options(syncd.Flags(), func(*pflag.Flag) bool { return true }), "help")
	same(t, file, names(t, file, `--(\w+)`), all)
	for _, list := range []string{strings.Join([]string{syncd.SysctlApply, syncd.SysctlCheck, syncd.SysctlOff}, " "),
		strings.Join([]string{syncd.AuthEnforce, syncd.AuthPermissive, syncd.AuthReceiveOnly}, " "),
		strings.Join([]string{syncd.MirrorAll, syncd.MirrorTemplates}, " ")} {
		if len(names(t, file, `words="(`+regexp.QuoteMeta(list)+`)"`)) != 1 {
			t.Errorf("%s does not offer %q", file, list)
		}
	}
}
