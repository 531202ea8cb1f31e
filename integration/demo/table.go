package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"saru/integration/load"
)

// printTable compares the tellings: rows are groups of downloads, columns are
// mirrors, cells are how many were cut.
func printTable(w io.Writer, results []*result) {
	if len(results) == 0 {
		return
	}
	fmt.Fprintln(w, "Downloads cut")
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(name string, count any, cell func(r *result) string) {
		fmt.Fprintf(t, "%s\t%v", name, count)
		for _, r := range results {
			fmt.Fprintf(t, "\t%s", cell(r))
		}
		fmt.Fprintln(t, "\t")
	}
	row("opened", "of", func(r *result) string { return r.mirror.name() })
	for _, g := range groups {
		row(g.name, g.count, func(r *result) string {
			return fmt.Sprint(r.count(func(d load.Download) bool { return strings.HasPrefix(d.Job, g.name+"/") }))
		})
	}
	for _, how := range []string{"NAT", "DR"} {
		row("all by LVS-"+how, total()/2, func(r *result) string {
			return fmt.Sprint(r.count(func(d load.Download) bool { return strings.HasSuffix(d.Job, "/"+how) }))
		})
	}
	row("at the first fail-over", "", func(r *result) string { return fmt.Sprint(r.count(r.first)) })
	row("at the second fail-over", "", func(r *result) string {
		return fmt.Sprint(r.count(func(d load.Download) bool { return !r.first(d) }))
	})
	row("ALL", total(), func(r *result) string { return fmt.Sprint(r.cut()) })
	row("known to d1 before the second", "", func(r *result) string { return fmt.Sprintf("%d/%d", r.learned, r.alive) })
	t.Flush()
	fmt.Fprintln(w)
	for _, r := range results {
		fmt.Fprintf(w, "%s: %s\n", r.mirror.name(), strings.Join(r.mirror.about(), "; "))
		why := map[string]int{}
		for _, d := range r.downloads {
			if d.State == load.Cut {
				why[d.Why]++
			}
		}
		for _, reason := range slices.Sorted(maps.Keys(why)) {
			fmt.Fprintf(w, "  %d %s\n", why[reason], reason)
		}
	}
}
