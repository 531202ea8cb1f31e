package alloc

// handToNext lets as many surplus buckets as possible go to their next owners: a maximum flow from those that have a surplus to those
// that lack buckets, limited by the cells of present. It adds to give what goes from which cell, and lowers surplus and lack by it.
func handToNext(surplus, lack []int, present, give cells) {
	for s := range surplus {
		for i := range lack {
			x := min(surplus[s], lack[i], present.row(s)[i])
			give.row(s)[i] += x
			surplus[s] -= x
			lack[i] -= x
		}
	}
	// What that order left over finds its place by rearranging (Edmonds and Karp, 1972: along shortest paths).
	for augment(surplus, lack, present, give) {
	}
}

// augment makes the flow larger by one path from a surplus to a lack: over a cell forwards, or back over a cell that gives something. It
// returns false if there is no such path.
func augment(surplus, lack []int, present, give cells) bool {
	n := give.n
	const unseen, root = -2, -1
	giver, taker := make([]int, n), make([]int, n) // of each taker the giver before it on the path; of each giver the taker
	queue := make([]int, 0, n)
	for d := range n {
		giver[d], taker[d] = unseen, unseen
		if surplus[d] > 0 {
			taker[d] = root
			queue = append(queue, d)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for i := range n {
			if giver[i] != unseen || give.row(s)[i] >= present.row(s)[i] {
				continue
			}
			giver[i] = s
			if lack[i] > 0 {
				push(i, surplus, lack, giver, taker, present, give)
				return true
			}
			for back := range n {
				if taker[back] == unseen && give.row(back)[i] > 0 {
					taker[back] = i
					queue = append(queue, back)
				}
			}
		}
	}
	return false
}

// push sends as much as fits along the path that ends at the taker last.
func push(last int, surplus, lack, giver, taker []int, present, give cells) {
	x := lack[last]
	for i := last; i >= 0; {
		s := giver[i]
		x = min(x, present.row(s)[i]-give.row(s)[i])
		if i = taker[s]; i >= 0 {
			x = min(x, give.row(s)[i])
		} else {
			x = min(x, surplus[s])
		}
	}
	lack[last] -= x
	for i := last; i >= 0; {
		s := giver[i]
		give.row(s)[i] += x
		if i = taker[s]; i >= 0 {
			give.row(s)[i] -= x
		} else {
			surplus[s] -= x
		}
	}
}
