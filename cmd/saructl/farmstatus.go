package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"saru/lib/config"
	"saru/lib/control"
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	interval := time.Second
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this director's part in the farm, and the farm; exit status 1 if an operator is needed",
		Long: `Show this director's part in the farm as saru sees it, all directors, and what is
wrong. The exit status is 0 while this director is a member, or drains, and there
is no alarm.`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watch(cmd.Context(), interval)
			}
			if cmd.Flags().Changed("interval") {
				return usage("status: --interval goes with --watch")
			}
			good, err := a.status(cmd.Context(), a.out)
			if err == nil && !good {
				err = bad()
			}
			return err
		}),
	}
	config.Flag(cmd.Flags(), &watch, "watch", "show it again and again, until interrupted")
	cmd.Flags().Var(config.Value(&interval, "TIME", config.Duration(100*time.Millisecond, time.Hour)), "interval", "with --watch: how often")
	return cmd
}

// status prints what saru says of itself and returns whether that is good.
func (a *app) status(ctx context.Context, out io.Writer) (good bool, err error) {
	s, raw, err := fetch[control.Status](ctx, a.saru(), control.PathStatus)
	if err != nil {
		return false, err
	}
	if a.json {
		_, err = out.Write(append(raw, '\n'))
	} else {
		err = printStatus(out, &s)
	}
	return s.Good(), err
}

func printStatus(out io.Writer, s *control.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	row("node", "%s, up for %s", s.Node, timeText(s.UptimeMS))
	row("state", "%s", s.State)
	row("master", "%s", cmp.Or(s.Master, "-"))
	row("table", "%s", tableText(s))
	row("buckets", "%d of %d owned (%s), %d open, next owner of %d", s.Buckets.Owned, s.Buckets.Total, percent(s.Buckets.Owned, s.Buckets.Total),
		s.Buckets.Open, s.Buckets.Next)
	if s.Lease.RemainingMS > 0 {
		row("lease", "%d ms", s.Lease.RemainingMS)
	} else {
		row("lease", "none: nothing is let through")
	}
	row("syncd", "%s", syncText(s.Sync))
	if !s.Usable {
		row("services", "a virtual service has no destination")
	}
	if s.Pings.Total > 0 {
		row("ping nodes", "%d of %d reached", s.Pings.Reached, s.Pings.Total)
	}
	if s.FunctionDigest != "" && s.ConfiguredDigest != "" && s.FunctionDigest != s.ConfiguredDigest {
		row("share function", "the table's (%s) is not that of this director (%s)", s.FunctionDigest, s.ConfiguredDigest)
	}
	for _, text := range s.Alarms {
		row("ALARM", "%s", text)
	}
	if len(s.Alarms) == 0 {
		row("alarms", "none")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Members) > 0 {
		fmt.Fprintln(out)
		if err := printMembers(out, s.Members, s.Buckets.Total); err != nil {
			return err
		}
	}
	return printFilter(out, s)
}

// tableText says which table counts.
func tableText(s *control.Status) string {
	if s.Term == 0 {
		return "none yet"
	}
	text := fmt.Sprintf("term %d, version %d, for %s", s.Term, s.Version, timeText(s.SinceMS))
	if s.Policy != "" {
		text += ", " + s.Policy
	}
	if s.Pending != 0 {
		text += fmt.Sprintf("; version %d is to follow", s.Pending)
	}
	return text
}

func syncText(s control.Sync) string {
	switch {
	case s.Error != "":
		return s.Error
	case s.Synced:
		return "synced"
	}
	return "not synced"
}

func (a *app) membersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List the directors of the farm",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			members, raw, err := fetch[[]control.Member](cmd.Context(), a.saru(), control.PathMembers)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(raw)
			}
			total := 0
			for _, m := range members {
				total += m.Owned
			}
			return printMembers(a.out, members, total)
		}),
	}
}

// printMembers lists directors, with their shares of so many buckets.
func printMembers(out io.Writer, members []control.Member, total int) error {
	slices.SortFunc(members, func(a, b control.Member) int { return cmp.Compare(a.Node, b.Node) })
	t := &table{out: out, head: []string{"MEMBER", "STATE", "WEIGHT", "OWNED", "SHARE", "NEXT", "OPEN", "SYNCED", "TABLE", "LINKS"}}
	for _, m := range members {
		state := m.State
		if m.Master {
			state += ", master"
		}
		if !m.Usable && m.State != control.StateDead {
			state += ", no destinations"
		}
		links := linksText(m.Links)
		if m.Self {
			links = "this director"
		}
		version := "-"
		if m.Term != 0 {
			version = fmt.Sprintf("%d/%d", m.Term, m.Version)
		}
		err := t.row(m.Node, state, fmt.Sprint(m.Weight), fmt.Sprint(m.Owned), percent(m.Owned, total), fmt.Sprint(m.Next), fmt.Sprint(m.Open),
			yesNo(m.Synced), version, links)
		if err != nil {
			return err
		}
	}
	return t.flush()
}

// linksText says when each interface has brought something of a director.
func linksText(links []control.Link) string {
	all := make([]string, 0, len(links))
	for _, l := range links {
		switch {
		case l.LastHeardMS == control.Never:
			all = append(all, l.Interface+" NEVER HEARD")
		case l.LastHeardMS > silentLinkMS:
			all = append(all, l.Interface+" SILENT for "+timeText(l.LastHeardMS))
		default:
			all = append(all, l.Interface+" "+timeText(l.LastHeardMS))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "-")
}

// printFilter prints what the filter has counted.
func printFilter(out io.Writer, s *control.Status) error {
	inside, chance := s.Inside != control.InsideCounts{}, s.Chance != control.ChanceCounts{}
	if len(s.Filter) == 0 && !inside && !chance {
		return nil
	}
	fmt.Fprintln(out)
	t := &table{out: out, head: []string{"VIRTUAL", "ACCEPTED", "FOREIGN", "LATE"}}
	for _, f := range s.Filter {
		if err := t.row(f.Virtual, fmt.Sprint(f.Accepted), fmt.Sprint(f.Foreign), fmt.Sprint(f.Late)); err != nil {
			return err
		}
	}
	if inside {
		if err := t.row("inside", fmt.Sprint(s.Inside.Accepted), fmt.Sprint(s.Inside.Foreign), "-"); err != nil {
			return err
		}
	}
	if chance {
		if err := t.row("by chance", fmt.Sprint(s.Chance.Accepted), fmt.Sprint(s.Chance.Foreign+s.Chance.Rebounded), "-"); err != nil {
			return err
		}
	}
	return t.flush()
}
