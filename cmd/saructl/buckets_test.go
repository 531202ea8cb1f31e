package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"saru/lib/control"
	"saru/lib/flow"
)

// table4096 gives each bucket an owner; the first member has its buckets open.
func table4096(members int, owner func(b int) byte) *control.Buckets {
	b := &control.Buckets{Node: "director-1", Term: 1, Version: 1, Buckets: 4096}
	for m := range members {
		b.Members = append(b.Members, fmt.Sprintf("director-%d", m+1))
	}
	var open []uint16
	for i := range b.Buckets {
		b.Owner, b.Next = append(b.Owner, owner(i)), append(b.Next, control.NoMember)
		if b.Owner[i] == 0 {
			open = append(open, uint16(i))
		}
	}
	b.Open = flow.FormatBuckets(open, b.Buckets)
	return b
}

// TestMapFits: the map fits 80 columns and 24 lines with a prompt, whatever the farm.
func TestMapFits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, members := range []int{0, 1, 2, 3, 26, 27, 64, 255} {
		b := table4096(members, func(int) byte {
			if members == 0 {
				return control.NoMember
			}
			return byte(random.IntN(members))
		})
		var out bytes.Buffer
		if err := printBuckets(&out, b, true); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) > 23 || len(lines) < 2+mapRows {
			t.Errorf("%d members: %d lines", members, len(lines))
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > 79 {
				t.Errorf("%d members: a line of %d columns: %s", members, n, line)
			}
		}
		wantKey := map[bool]string{true: "a character stands for 4 buckets; nothing is open here", false: "a character stands for 4 buckets; upper case: open here"}[members == 0]
		if members > 26 {
			wantKey = "a character stands for 4 buckets; upper case or #: open here"
		}
		if key := lines[len(lines)-1]; key != wantKey {
			t.Errorf("%d members: %q, want %q", members, key, wantKey)
		}
		if members == 255 && !strings.Contains(lines[len(lines)-2], "  and ") {
			t.Errorf("names are left out, but not mentioned: %q", lines[len(lines)-2])
		}
	}
}

// TestMapIsTrue: each director has its share of the characters, whether buckets lie
// together or not.
func TestMapIsTrue(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for name, owner := range map[string]func(int) byte{
		"together":     func(b int) byte { return byte(b * 3 / 4096) },
		"in turn":      func(b int) byte { return byte(b % 3) },
		"two in turn":  func(b int) byte { return byte(b % 2) },
		"at random":    func(int) byte { return byte(random.IntN(3)) },
		"mostly one's": func(b int) byte { return byte(min(b%64, 1)) },
	} {
		b := table4096(3, owner)
		owned := map[rune]int{}
		for i, m := range b.Owner {
			r := letter(int(m), 3)
			owned[r]++
			if i%4 == 3 && b.Owner[i] == b.Owner[i-1] && b.Owner[i] == b.Owner[i-2] && b.Owner[i] == b.Owner[i-3] {
				// A character for buckets of one director is that director's.
				if got := cells(b, make([]bool, 4096), 4)[i/4]; got != r {
					t.Fatalf("%s: buckets %d to %d of %c are shown as %c", name, i-3, i, r, got)
				}
			}
		}
		shown := map[rune]int{}
		for _, r := range cells(b, make([]bool, 4096), 4) {
			shown[r]++
		}
		for r, n := range owned {
			if d := shown[r] - n/4; d < -3 || d > 3 {
				t.Errorf("%s: %c has %d characters for %d buckets", name, r, shown[r], n)
			}
		}
	}
}

// TestMapOpen: what is not open as a whole is not shown as open.
func TestMapOpen(t *testing.T) {
	b := &control.Buckets{Buckets: 8, Members: []string{"d1"}, Owner: make([]byte, 8), Next: make([]byte, 8)}
	open := []bool{true, true, true, true, true, false, true, true}
	if got := string(cells(b, open, 4)); got != "Aa" {
		t.Errorf("map %q", got)
	}
}

// TestLetters: no two directors of the largest farm look the same, nor like one that
// has its buckets open.
func TestLetters(t *testing.T) {
	seen := map[rune]int{mapNobody: -1, mapOpen: -1, mapOthers: -1}
	for m := range control.MaxShareMembers {
		for _, r := range []rune{letter(m, 64), upper(letter(m, 64))} {
			if other, twice := seen[r]; twice && r != mapOpen {
				t.Errorf("%d and %d are both shown as %c", m, other, r)
			}
			seen[r] = m
		}
	}
	if letter(64, 64) != mapNobody || letter(64, 65) != mapOthers {
		t.Errorf("nobody is %c, the 65th %c", letter(64, 64), letter(64, 65))
	}
}
