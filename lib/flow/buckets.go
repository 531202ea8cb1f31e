package flow

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Words for lists of buckets.
const (
	allBuckets = "all"
	noBuckets  = "none"
)

// ParseBuckets reads a list of buckets out of n: numbers and ranges such as "0-99,200", "all" or "none". The buckets come back in ascending
// order, each once.
func ParseBuckets(s string, n int) ([]uint16, error) {
	if n < 1 || n > MaxBuckets {
		return nil, fmt.Errorf("%d buckets: 1 to %d", n, MaxBuckets)
	}
	if s == noBuckets {
		return nil, nil
	}
	type span struct{ first, last int }
	var spans []span
	for part := range strings.SplitSeq(s, ",") {
		first, last, err := parseRange(part, n)
		if err != nil {
			return nil, err
		}
		spans = append(spans, span{first, last})
	}
	slices.SortFunc(spans, func(a, b span) int { return a.first - b.first })
	var out []uint16
	next := 0 // the lowest that is not in out yet
	for _, sp := range spans {
		for next = max(next, sp.first); next <= sp.last; next++ {
			out = append(out, uint16(next))
		}
	}
	return out, nil
}

func parseRange(part string, n int) (first, last int, err error) {
	if part == allBuckets {
		return 0, n - 1, nil
	}
	low, high, ranged := strings.Cut(part, "-")
	if first, err = parseBucket(low, n); err != nil {
		return 0, 0, err
	}
	if !ranged {
		return first, first, nil
	}
	if last, err = parseBucket(high, n); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("buckets %q: the range ends before it begins", part)
	}
	return first, last, nil
}

func parseBucket(s string, n int) (int, error) {
	b, err := strconv.ParseUint(s, 10, 16)
	if err != nil || int(b) >= n {
		return 0, fmt.Errorf("bucket %q: a number from 0 to %d", s, n-1)
	}
	return int(b), nil
}

// FormatBuckets writes buckets out of n as ParseBuckets reads them, with as few numbers as it can. Order and repetitions do not matter.
func FormatBuckets(buckets []uint16, n int) string {
	sorted := slices.Clone(buckets)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	switch len(sorted) {
	case 0:
		return noBuckets
	case n:
		return allBuckets
	}
	var out []byte
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(sorted[i]), 10)
		if j > i {
			out = append(out, '-')
			out = strconv.AppendUint(out, uint64(sorted[j]), 10)
		}
		i = j + 1
	}
	return string(out)
}
