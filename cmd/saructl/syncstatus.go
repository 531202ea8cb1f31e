package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"saru/lib/control"
)

// maxLeadMS is by how much the farm's clock may be ahead of this director's: syncd
// logs an error beyond it.
const maxLeadMS = 60_000

func printSyncStatus(out io.Writer, s control.SyncStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", printable(name), printable(fmt.Sprintf(format, args...)))
	}
	row("node", "%s", s.Node)
	row("synced", "%s", yesNo(s.Synced))
	older := s.Join.State == "" // a syncd that does not tell what follows
	if !older {
		row("join", "%s", joinText(s.Join))
	}
	row("connections", "%d local, %d remote", s.Connections.Local, s.Connections.Remote)
	row("lag", "p50 %.1f ms, p99 %.1f ms", s.LagMS.P50, s.LagMS.P99)
	if !older {
		row("backlog", "%s of %s, %d datagrams: reaches back %s", sizeText(s.Backlog.Bytes), sizeText(s.Backlog.LimitBytes),
			s.Backlog.Datagrams, timeText(s.Backlog.ReachMS))
		row("audit", "%s", auditText(s.Audit))
		row("kernel audit", "%s", kernelAuditText(s.KernelAudit))
		row("keys", "%s", keysText(s.Keys))
	}
	if s.KernelEntries != "" { // a syncd that knows of saru
		row("kernel entries", "%s", s.KernelEntries)
		row("share", "%s", shareText(s.Share))
		row("incarnation", "%s", s.Incarnation)
	}
	if s.ClockLeadMS > maxLeadMS {
		row("CLOCK", "the farm's is ahead of this director's by %s: see CLOCKS in syncd(8)", timeText(s.ClockLeadMS))
	}
	row("peers", "%d", len(s.Peers))
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		row(name, "%d", s.Counters[name])
	}
	if err := w.Flush(); err != nil || len(s.Peers) == 0 {
		return err
	}
	fmt.Fprintln(out)
	return printSyncPeers(out, s.Peers)
}

func joinText(j control.SyncJoin) string {
	from := "nobody"
	if j.Teacher != "" {
		from = j.Teacher
	}
	switch j.State {
	case control.JoinJoining:
		attempt := ""
		if j.Attempts > 1 {
			attempt = fmt.Sprintf(", attempt %d", j.Attempts)
		}
		if j.Teacher == "" {
			return fmt.Sprintf("joining for %s%s: waiting for a peer that teaches", timeText(j.TookMS), attempt)
		}
		return fmt.Sprintf("joining for %s%s: %d %% from %s, %d of %d entries", timeText(j.TookMS), attempt, j.Percent, from, j.Entries, j.Total)
	case control.JoinPartial:
		return fmt.Sprintf("not complete: %d entries from %s in %s", j.Entries, from, timeText(j.TookMS))
	}
	if j.Teacher == "" {
		return fmt.Sprintf("done after %s: nobody was there to learn from", timeText(j.TookMS))
	}
	return fmt.Sprintf("done: %d entries from %s in %s", j.Entries, from, timeText(j.TookMS))
}

func auditText(a control.SyncAudit) string {
	switch {
	case a.IntervalMS == 0 && a.Rounds == 0:
		return "none yet, only after losses"
	case a.Rounds == 0:
		return "none yet"
	}
	result := "equal with " + a.Peer
	if !a.Equal {
		result = fmt.Sprintf("%d buckets differed from those of %s", a.DifferingBuckets, a.Peer)
	}
	return fmt.Sprintf("%s, %s ago; %d entries repaired in %d audits", result, timeText(a.LastMSAgo), a.Repaired, a.Rounds)
}

func kernelAuditText(k control.SyncKernelAudit) string {
	switch {
	case k.LastMSAgo == control.Never:
		return "none yet"
	case !k.Readable:
		return "not possible: " + k.Why
	}
	result := "equal"
	if k.MissingInKernel != 0 || k.MissingInReplica != 0 {
		result = fmt.Sprintf("%d entries missing in the kernel, %d in the table", k.MissingInKernel, k.MissingInReplica)
	}
	return fmt.Sprintf("%s, %s ago; %d entries repaired", result, timeText(k.LastMSAgo), k.Repaired)
}

func keysText(k control.SyncKeys) string {
	if k.Signing == 0 {
		return "nothing is signed, auth " + k.Auth
	}
	return fmt.Sprintf("key %d signs, auth %s", k.Signing, k.Auth)
}

func shareText(s control.SyncShare) string {
	if !s.Told {
		return "saru has told nothing"
	}
	state := "not all entries are in this kernel yet"
	switch {
	case s.Settled:
		state = "settled"
	case s.Ready:
		state = "ready"
	}
	return fmt.Sprintf("term %d, version %d: %d buckets held, %d kept: %s", s.Term, s.Version, s.Held, s.Kept, state)
}

func printSyncPeers(out io.Writer, peers []control.SyncPeer) error {
	slices.SortFunc(peers, func(a, b control.SyncPeer) int { return cmp.Compare(a.Node, b.Node) })
	t := &table{out: out, head: []string{
		"PEER", "SYNCED", "LAST HEARD", "LINKS", "ENTRIES", "SEQUENCE", "MISSING", "GIVEN UP", "CONFIRMED", "TEACHES", "INCARNATION",
	}}
	for _, p := range peers {
		synced := yesNo(p.Synced)
		if p.Lost {
			synced = "lost"
		}
		err := t.row(p.Node, synced, timeText(p.LastHeardMS), peerLinksText(p.Links), fmt.Sprint(p.Entries), fmt.Sprint(p.Sequence),
			fmt.Sprint(p.Missing), fmt.Sprint(p.GivenUp), fmt.Sprint(p.Confirmed), cmp.Or(p.Teaches, "-"), p.Incarnation)
		if err != nil {
			return err
		}
	}
	return t.flush()
}

// peerLinksText names the interfaces and says which of them bring nothing of the peer.
func peerLinksText(links []control.SyncLink) string {
	var all []string
	for _, l := range links {
		text := l.Interface
		switch {
		case l.LastHeardMS == control.Never:
			text += " NEVER HEARD"
		case l.LastHeardMS > silentLinkMS:
			text += " SILENT for " + timeText(l.LastHeardMS)
		}
		all = append(all, text)
	}
	return cmp.Or(strings.Join(all, ", "), "-")
}
