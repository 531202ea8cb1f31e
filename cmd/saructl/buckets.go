package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"saru/lib/config"
	"saru/lib/control"
	"saru/lib/flow"
)

func (a *app) bucketsCommand() *cobra.Command {
	var asMap bool
	cmd := &cobra.Command{
		Use:   "buckets",
		Short: "Show how the buckets are divided, as a table or a map",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			if asMap && a.json {
				return usage("buckets: --map and --json exclude each other")
			}
			b, raw, err := fetch[control.Buckets](cmd.Context(), a.saru(), control.PathBuckets)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(raw)
			}
			if err := b.Check(); err != nil {
				return fmt.Errorf("saru's answer: %w", err)
			}
			return printBuckets(a.out, &b, asMap)
		}),
	}
	config.Flag(cmd.Flags(), &asMap, "map", "draw a map that fits a terminal of 80 columns and 24 lines")
	return cmd
}

func printBuckets(out io.Writer, b *control.Buckets, asMap bool) error {
	if b.Buckets == 0 {
		_, err := fmt.Fprintln(out, "there is no table yet")
		return err
	}
	buckets, err := flow.ParseBuckets(b.Open, b.Buckets)
	if err != nil {
		return fmt.Errorf("open buckets: %w", err)
	}
	open := make([]bool, b.Buckets)
	for _, i := range buckets {
		open[i] = true
	}
	if asMap {
		return printMap(out, b, open)
	}
	return printDivision(out, b, open)
}

func bucketsHead(b *control.Buckets, open int) string {
	return printable(fmt.Sprintf("term %d, version %d: %d buckets, %d open on %s", b.Term, b.Version, b.Buckets, open, b.Node))
}

// of returns a member's index, with one more for nobody.
func of(b *control.Buckets, m byte) int {
	if m == control.NoMember {
		return len(b.Members)
	}
	return int(m)
}

// printDivision lists the directors, and who follows each of them.
func printDivision(out io.Writer, b *control.Buckets, open []bool) error {
	n := len(b.Members) + 1
	owned, opened, follows, total := make([]int, n), make([]int, n), make([]int, n*n), 0
	for i := range b.Owner {
		owner := of(b, b.Owner[i])
		owned[owner]++
		follows[owner*n+of(b, b.Next[i])]++
		if open[i] {
			opened[owner]++
			total++
		}
	}
	next := make([]int, n)
	for i, count := range follows {
		next[i%n] += count
	}
	fmt.Fprintln(out, bucketsHead(b, total))
	t := &table{out: out, head: []string{"MEMBER", "OWNED", "SHARE", "NEXT", "OPEN HERE", "NEXT OWNERS"}}
	for m := range n {
		name := "nobody"
		if m < n-1 {
			name = b.Members[m]
		} else if owned[m] == 0 && next[m] == 0 {
			break
		}
		var nexts []string
		for i, count := range follows[m*n : (m+1)*n] {
			if count == 0 {
				continue
			}
			follower := "nobody"
			if i < n-1 {
				follower = b.Members[i]
			}
			nexts = append(nexts, fmt.Sprintf("%s %d", follower, count))
		}
		err := t.row(name, fmt.Sprint(owned[m]), percent(owned[m], b.Buckets), fmt.Sprint(next[m]), fmt.Sprint(opened[m]), cmp.Or(strings.Join(nexts, ", "), "-"))
		if err != nil {
			return err
		}
	}
	return t.flush()
}
