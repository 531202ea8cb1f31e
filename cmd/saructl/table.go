package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// sample is how many rows decide the widths of a table's columns. A table may
// have a million rows; they are not all held for the sake of alignment.
const sample = 200

// table prints aligned columns as rows come in.
type table struct {
	out    io.Writer
	head   []string
	rows   [][]string // until there are enough for the widths
	widths []int      // nil until then
}

// row adds a row of as many cells as the head has.
func (t *table) row(cells ...string) error {
	for i := range cells {
		cells[i] = printable(cells[i])
	}
	if t.widths == nil {
		t.rows = append(t.rows, cells)
		if len(t.rows) < sample {
			return nil
		}
		return t.flush()
	}
	return t.print(cells)
}

// flush prints what has been held back. Call it after the last row.
func (t *table) flush() error {
	if t.widths != nil {
		return nil
	}
	t.widths = make([]int, len(t.head))
	all := append([][]string{t.head}, t.rows...)
	for _, cells := range all {
		for i, cell := range cells {
			t.widths[i] = max(t.widths[i], len(cell))
		}
	}
	t.rows = nil
	for _, cells := range all {
		if err := t.print(cells); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) print(cells []string) error {
	var b strings.Builder
	for i, cell := range cells {
		t.widths[i] = max(t.widths[i], len(cell))
		fmt.Fprintf(&b, "%-*s  ", t.widths[i], cell)
	}
	_, err := fmt.Fprintln(t.out, strings.TrimRight(b.String(), " "))
	return err
}

// printable keeps what others on the segment have chosen, such as the names of
// nodes, from steering the terminal or breaking a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
