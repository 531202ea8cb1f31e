package main

import (
	"strings"
	"testing"

	"saru/lib/control"
)

// TestStatusTexts shows what the lines of sync status say in each case.
func TestStatusTexts(t *testing.T) {
	status := func(change func(*control.SyncStatus)) control.SyncStatus {
		s := control.SyncStatus{
			Node: "d1", Synced: true, Peers: []control.SyncPeer{},
			Join:        control.SyncJoin{State: control.JoinSynced, Teacher: "d2", Entries: 1000, Total: 1000, Percent: 100, TookMS: 1234, Attempts: 1},
			Backlog:     control.SyncBacklog{Bytes: 3 << 19, LimitBytes: 16 << 20, Datagrams: 1100, ReachMS: 90_000},
			Audit:       control.SyncAudit{IntervalMS: 10_000, LastMSAgo: 4_100, Peer: "d3", Equal: true, Repaired: 2, Rounds: 7},
			KernelAudit: control.SyncKernelAudit{LastMSAgo: 300, Readable: true, Repaired: 5},
			Keys:        control.SyncKeys{Signing: 3, Auth: "enforce"},
		}
		change(&s)
		return s
	}
	tests := []struct {
		name   string
		change func(*control.SyncStatus)
		line   string
	}{
		{"joined", func(*control.SyncStatus) {}, "join          done: 1000 entries from d2 in 1.2 s"},
		{"alone", func(s *control.SyncStatus) { s.Join.Teacher = "" }, "join          done after 1.2 s: nobody was there to learn from"},
		{
			"joining", func(s *control.SyncStatus) {
				s.Join = control.SyncJoin{State: control.JoinJoining, Teacher: "d3", Entries: 450, Total: 1000, Percent: 45, TookMS: 150_000, Attempts: 2}
			}, "join          joining for 2m30s, attempt 2: 45 % from d3, 450 of 1000 entries",
		},
		{
			"waiting", func(s *control.SyncStatus) { s.Join = control.SyncJoin{State: control.JoinJoining, TookMS: 700} },
			"join          joining for 700 ms: waiting for a peer that teaches",
		},
		{"partial", func(s *control.SyncStatus) { s.Join.State = control.JoinPartial }, "join          not complete: 1000 entries from d2 in 1.2 s"},
		{"backlog", func(*control.SyncStatus) {}, "backlog       1.5 MiB of 16.0 MiB, 1100 datagrams: reaches back 90.0 s"},
		{"small backlog", func(s *control.SyncStatus) { s.Backlog.Bytes = 1536 }, "backlog       1.5 KiB of 16.0 MiB, 1100 datagrams: reaches back 90.0 s"},
		{"no backlog", func(s *control.SyncStatus) { s.Backlog = control.SyncBacklog{LimitBytes: 1 << 20} }, "backlog       0 B of 1.0 MiB, 0 datagrams: reaches back 0 ms"},
		{"equal", func(*control.SyncStatus) {}, "audit         equal with d3, 4.1 s ago; 2 entries repaired in 7 audits"},
		{
			"different", func(s *control.SyncStatus) { s.Audit.Equal, s.Audit.DifferingBuckets = false, 9 },
			"audit         9 buckets differed from those of d3, 4.1 s ago; 2 entries repaired in 7 audits",
		},
		{"not audited", func(s *control.SyncStatus) { s.Audit = control.SyncAudit{IntervalMS: 1, LastMSAgo: control.Never} }, "audit         none yet"},
		{"no audits", func(s *control.SyncStatus) { s.Audit = control.SyncAudit{LastMSAgo: control.Never} }, "audit         none yet, only after losses"},
		{"kernel equal", func(*control.SyncStatus) {}, "kernel audit  equal, 300 ms ago; 5 entries repaired"},
		{
			"kernel different", func(s *control.SyncStatus) { s.KernelAudit.MissingInKernel, s.KernelAudit.MissingInReplica = 3, 4 },
			"kernel audit  3 entries missing in the kernel, 4 in the table, 300 ms ago; 5 entries repaired",
		},
		{
			"kernel not readable", func(s *control.SyncStatus) { s.KernelAudit = control.SyncKernelAudit{Why: "kernel too old"} },
			"kernel audit  not possible: kernel too old",
		},
		{"kernel not audited", func(s *control.SyncStatus) { s.KernelAudit.LastMSAgo = control.Never }, "kernel audit  none yet"},
		{"keys", func(*control.SyncStatus) {}, "keys          key 3 signs, auth enforce"},
		{"clock ahead", func(s *control.SyncStatus) { s.ClockLeadMS = 31_536_000_000 }, "CLOCK         the farm's is ahead of this director's by 8760h0m0s: see CLOCKS in syncd(8)"},
		{
			"saru", func(s *control.SyncStatus) {
				s.KernelEntries, s.Incarnation = "next", "00000000000000ff"
				s.Share = control.SyncShare{Told: true, Term: 3, Version: 17, Held: 1366, Kept: 2731, Ready: true, Settled: true}
			}, "kernel entries  next\nshare           term 3, version 17: 1366 buckets held, 2731 kept: settled\nincarnation     00000000000000ff",
		},
		{
			"ready", func(s *control.SyncStatus) {
				s.KernelEntries, s.Share = "all", control.SyncShare{Told: true, Ready: true}
			},
			"share           term 0, version 0: 0 buckets held, 0 kept: ready",
		},
		{
			"not ready", func(s *control.SyncStatus) { s.KernelEntries, s.Share = "all", control.SyncShare{Told: true} },
			"share           term 0, version 0: 0 buckets held, 0 kept: not all entries are in this kernel yet",
		},
		{"without saru", func(s *control.SyncStatus) { s.KernelEntries = "all" }, "share           saru has told nothing"},
		{"no keys", func(s *control.SyncStatus) { s.Keys = control.SyncKeys{Auth: "receive-only"} }, "keys          nothing is signed, auth receive-only"},
		{"hostile", func(s *control.SyncStatus) { s.Join.Teacher = "d\n\x1b2" }, "join          done: 1000 entries from d??2 in 1.2 s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := saructl(t, "sync", "status", "--control", daemon(t, status(tt.change)))
			if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "\n"+tt.line+"\n") {
				t.Errorf("status %d, %q, %s\nwant the line %q", got.code, got.stderr, got.stdout, tt.line)
			}
		})
	}
}
