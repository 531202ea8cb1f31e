package main

import (
	"fmt"
	"time"
)

// silentLinkMS is when a link counts as silent: peers are heard on each link ten
// times a second.
const silentLinkMS = 1000

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// timeText writes a time in ms for people: in ms as long as that is short.
func timeText(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", ms)
	case d < 2*time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// sizeText writes a number of bytes for people.
func sizeText(n int) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// percent writes a part of a whole.
func percent(part, whole int) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
