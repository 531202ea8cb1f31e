package main

import (
	"fmt"
	"io"
	"strings"

	"saru/lib/control"
)

// Measures of the map: with numbers before the lines, a head and a legend it fits
// a terminal of 80 columns and 24 lines.
const (
	mapColumns  = 64
	mapRows     = 16
	legendLines = 5
	legendWidth = 79
)

// What stands for directors in the map: letters, then for more than 26 of them
// characters that have no upper case. There may be 64.
const (
	mapLetters = "abcdefghijklmnopqrstuvwxyz0123456789!$%&()*+,-/:;<=>?@[]^_{|}~'`"
	mapOpen    = '#' // open here, of a director without a letter
	mapOthers  = '"' // all directors beyond these
	mapNobody  = '.'
)

// letter returns the character of a member.
func letter(m, members int) rune {
	switch {
	case m >= members:
		return mapNobody
	case m >= len(mapLetters):
		return mapOthers
	}
	return rune(mapLetters[m])
}

// upper returns the character of a bucket that is open here.
func upper(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r - 'a' + 'A'
	}
	return mapOpen
}

// cells returns a character for each so many buckets. Where several directors own
// them, it is the one that has got the fewest of the characters due to it so far: so
// that the map as a whole is true. It is in upper case if all its buckets of these are
// open here.
func cells(b *control.Buckets, open []bool, size int) []rune {
	n := len(b.Members) + 1
	due := make([]int, n)
	var out []rune
	for first := 0; first < b.Buckets; first += size {
		last := min(first+size, b.Buckets)
		best := -1
		for i := first; i < last; i++ {
			due[of(b, b.Owner[i])]++
		}
		for i := first; i < last; i++ {
			if m := of(b, b.Owner[i]); best < 0 || due[m] > due[best] || due[m] == due[best] && m < best {
				best = m
			}
		}
		due[best] -= last - first
		char, all := letter(best, n-1), true
		for i := first; i < last; i++ {
			all = all && (open[i] || of(b, b.Owner[i]) != best)
		}
		if all {
			char = upper(char)
		}
		out = append(out, char)
	}
	return out
}

// printMap draws who owns what.
func printMap(out io.Writer, b *control.Buckets, open []bool) error {
	total := 0
	for _, is := range open {
		if is {
			total++
		}
	}
	size := (b.Buckets + mapColumns*mapRows - 1) / (mapColumns * mapRows)
	var text strings.Builder
	fmt.Fprintln(&text, bucketsHead(b, total))
	all := cells(b, open, size)
	for first := 0; first < len(all); first += mapColumns {
		fmt.Fprintf(&text, "%6d  %s\n", first*size, string(all[first:min(first+mapColumns, len(all))]))
	}
	for _, line := range legend(b, total, size) {
		fmt.Fprintln(&text, line)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// legend explains the characters. If there are too many names for it, the last ones
// are left out.
func legend(b *control.Buckets, open, size int) []string {
	owned := make([]int, len(b.Members)+1)
	for _, m := range b.Owner {
		owned[of(b, m)]++
	}
	var items []string
	letterless := false
	for m, name := range b.Members {
		r := letter(m, len(b.Members))
		letterless = letterless || upper(r) == mapOpen
		items = append(items, fmt.Sprintf("%c %s %d", r, printable(name), owned[m]))
	}
	if owned[len(b.Members)] > 0 {
		items = append(items, fmt.Sprintf("%c nobody %d", mapNobody, owned[len(b.Members)]))
	}
	lines := []string{""}
	for i, item := range items {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = item
		case len([]rune(*last))+len([]rune(item))+2 <= legendWidth:
			*last += "  " + item
		case len(lines) == legendLines-1:
			return append(cutLegend(lines, len(items)-i), mapKey(size, open > 0, letterless))
		default:
			lines = append(lines, item)
		}
	}
	return append(lines, mapKey(size, open > 0, letterless))
}

// cutLegend says at the end of the names that some are left out.
func cutLegend(lines []string, left int) []string {
	more := fmt.Sprintf("  and %d more", left)
	last := []rune(lines[len(lines)-1])
	lines[len(lines)-1] = string(last[:min(len(last), legendWidth-len(more))]) + more
	return lines
}

// mapKey explains what is no name.
func mapKey(size int, open, letterless bool) string {
	var parts []string
	if size == 1 {
		parts = append(parts, "a character is a bucket")
	} else {
		parts = append(parts, fmt.Sprintf("a character stands for %d buckets", size))
	}
	if open {
		text := "upper case: open here"
		if letterless {
			text = "upper case or " + string(mapOpen) + ": open here"
		}
		parts = append(parts, text)
	} else {
		parts = append(parts, "nothing is open here")
	}
	return strings.Join(parts, "; ")
}
