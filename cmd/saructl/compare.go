package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"saru/lib/config"
	"saru/lib/control"
)

// defaultLimit is how many differences are printed for people.
const defaultLimit = 20

func (a *app) compareCommand() *cobra.Command {
	limit := defaultLimit
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Compare syncd's table with this kernel and with every peer; exit status 1 if they differ",
		Long: `Compare syncd's table with this director's kernel, entry by entry, and with the
tables of all peers, by digests and then entry by entry where these differ, and
print what differs and why. Nothing is changed. What changed within the last two
seconds may be on the way to a peer, or is looked at again, and is no difference.`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error { return a.compare(cmd, limit) }),
	}
	cmd.Flags().Var(config.Value(&limit, "N", config.Between(0, 1<<31-1)), "limit", "print at most `N` differences; 0: all")
	return cmd
}

func (a *app) compare(cmd *cobra.Command, limit int) error {
	p := newProgress(a.errOut)
	out := p.over(a.out)
	differences := &table{out: out, head: []string{"WITH", "DIFFERENCE", "PROTOCOL", "CLIENT", "VIRTUAL", "WHY", "HERE", "THERE"}}
	found := 0
	summary, err := work(cmd, a, a.syncd(), p, control.PathSyncCompare, nil,
		func(line *control.CompareLine) (*control.Progress, *control.CompareSummary, error) {
			if line.Difference != nil && !a.json {
				if found++; limit == 0 || found <= limit {
					return nil, nil, differences.row(differenceCells(line.Difference)...)
				}
			}
			return line.Progress, line.Summary, nil
		})
	if found > 0 {
		if e := differences.flush(); err == nil {
			err = e
		}
	}
	if limit > 0 && found > limit {
		fmt.Fprintf(out, "and %d more (--limit 0 prints all)\n", found-limit)
	}
	if err != nil {
		return err
	}
	return verdict(a, summary, summary.Equal, func(w io.Writer, s *control.CompareSummary) error { return printCompare(w, s, found) })
}

func differenceCells(d *control.Difference) []string {
	kind := d.Kind // one of a newer syncd
	switch kind {
	case control.MissingHere:
		kind = "not here"
	case control.MissingThere:
		kind = "not there"
	}
	return []string{d.With, kind, d.Protocol, d.Client, d.Virtual, d.Why, side(d.Here), side(d.There)}
}

// side is what one side has of an entry.
func side(c *control.Connection) string {
	if c == nil {
		return "-"
	}
	text := fmt.Sprintf("%s %s %ds", c.Real, c.State, c.ExpiresS)
	if len(c.Flags) > 0 {
		text += " " + strings.Join(c.Flags, ",")
	}
	if c.Origin != "" {
		text += " of " + c.Origin
	}
	return text
}

// printCompare prints the verdict: what is equal, what differs, and what could not
// be compared.
func printCompare(out io.Writer, s *control.CompareSummary, found int) error {
	var equal, differ, failed []string
	kernel := fmt.Sprintf("this kernel (%d entries%s)", s.Kernel.Compared, explained(s.Kernel.Explained))
	switch {
	case !s.Kernel.Readable:
		failed = append(failed, "this kernel cannot be read: "+s.Kernel.Why)
	case s.Kernel.Equal:
		equal = append(equal, kernel)
	default:
		differ = append(differ, fmt.Sprintf("%d of %s", s.Kernel.Differ, kernel))
	}
	for _, p := range s.Peers {
		name := fmt.Sprintf("%s (%d entries)", p.Node, p.Compared)
		switch {
		case p.Error != "":
			failed = append(failed, p.Node+": "+p.Error)
		case p.Equal:
			equal = append(equal, name)
		default:
			unlisted := ""
			if p.Unlisted > 0 {
				unlisted = fmt.Sprintf(", too many to list: %d were counted only", p.Unlisted)
			}
			differ = append(differ, fmt.Sprintf("%d of %s%s", p.Differ, name, unlisted))
		}
	}
	var parts []string
	for _, part := range []struct {
		name string
		list []string
	}{{"differ: ", differ}, {"not compared: ", failed}, {"equal: ", equal}} {
		if len(part.list) > 0 {
			parts = append(parts, part.name+strings.Join(part.list, ", "))
		}
	}
	verdict := "NOT EQUAL"
	switch {
	case s.Equal:
		verdict, parts = "EQUAL", []string{strings.Join(equal, ", ")}
	case len(differ) == 0 && found == 0:
		verdict = "NOT COMPLETE"
	}
	if len(s.Peers) == 0 {
		parts = append(parts, "no peers")
	}
	_, err := fmt.Fprintf(out, "%s: %s\n", verdict, printable(strings.Join(parts, "; ")))
	return err
}

// explained lists the reasons for differences that are as they should be.
func explained(counts map[string]uint64) string {
	var all []string
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[why]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, strings.ReplaceAll(why, "_", " ")))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return ", as they should be: " + strings.Join(all, ", ")
}
