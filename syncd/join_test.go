package syncd

import (
	"fmt"
	"os"
	"testing"
	"time"

	"saru/lib/tun/nstest"
)

// joinResult is a heading under which scripts find the figures.
const joinResult = "RESULT join native"

// farm is directors in processes of their own on one segment, 192.0.2.10 and so on.
type farm struct {
	all        []*process
	namespaces []*nstest.NS
}

// newFarm starts the processes; nobody mirrors yet. They are free to run on any processor.
func newFarm(tb testing.TB, configs ...directorConfig) farm {
	tb.Helper()
	nstest.New(tb)
	nstest.Bridge(tb, "segment")
	var f farm
	w := newWindow(tb)
	for i, cfg := range configs {
		ns := nstest.Other(tb)
		nstest.Plug(tb, "segment", fmt.Sprintf("p%d", i), ns, "x0", []string{fmt.Sprintf("192.0.2.%d/24", 10+i)})
		cfg.Node, cfg.Interface, cfg.Own = string(rune('a'+i)), "x0", i
		f.namespaces = append(f.namespaces, ns)
		f.all = append(f.all, launch(tb, ns, -1, w, cfg))
	}
	return f
}

// narrow makes the way of a TCP connection hold little: some thousand entries instead of 100,000.
func (f *farm) narrow(tb testing.TB) {
	tb.Helper()
	for _, ns := range f.namespaces {
		ns.Do(tb, func() {
			for _, name := range []string{"tcp_rmem", "tcp_wmem"} {
				if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("4096 65536 65536"), 0); err != nil {
					tb.Fatal(err)
				}
			}
		})
	}
}

// fill makes a director know so many connections.
func (p *process) fill(connections int) {
	p.tb.Helper()
	p.do(order{Do: "load", Load: load{Count: connections, Records: connections, Each: 40}})
	p.do(order{Do: "wait"})
}

// join is what became of a newcomer.
type join struct {
	all, stream      time.Duration // from its start until it is synced; and the teacher's stream alone
	teacher, learner answer
	missing          int
	equal            bool // digests and kernels
}

// measureJoin lets a director with so many entries teach another one, while it reports so many updates a second.
func measureJoin(tb testing.TB, entries int, rate float64) join {
	tb.Helper()
	f := newFarm(tb, directorConfig{Connections: entries}, directorConfig{Connections: entries})
	a, b := f.all[0], f.all[1]
	a.do(order{Do: "start"})
	a.synced(0)
	a.fill(entries)
	if rate > 0 {
		a.do(order{Do: "load", Load: load{Count: entries, Records: int(4 * rate), Rate: rate}})
	}
	for _, d := range f.all {
		d.do(order{Do: "begin"})
		defer d.profile(fmt.Sprintf("join-%d-%.0f", entries, rate))()
	}
	b.do(order{Do: "start"})
	b.synced(1)
	j := join{teacher: a.do(order{Do: "report"})}
	for j.learner.Join == 0 {
		j.learner = b.do(order{Do: "report"})
	}
	j.all, j.stream = j.learner.Join, j.learner.Stream
	if rate > 0 {
		a.do(order{Do: "wait"})
		time.Sleep(time.Second)
	}
	has, got := a.do(order{Do: "check"}), b.do(order{Do: "check"})
	j.missing = entries - min(got.Replica, got.Kernel)
	j.equal = has.Replica == entries && got.Digest == has.Digest && got.Sum == has.Sum && got.Bad == 0
	if j.missing != 0 || !j.equal {
		tb.Errorf("teacher: %d entries, learner %d, its kernel %d; digests equal: %v, kernels equal: %v\n%+v", has.Replica, got.Replica,
			got.Kernel, got.Digest == has.Digest, got.Sum == has.Sum, got.Status)
	}
	if s := j.learner.Status.Join; s.Teacher != "a" || s.Entries < uint64(entries) {
		tb.Errorf("taught by %q, %d entries", s.Teacher, s.Entries)
	}
	return j
}

func (j *join) print(entries int, rate float64) {
	fmt.Fprintf(os.Stdout, "%s entries=%d updates/s=%.0f seconds=%.2f stream_seconds=%.2f missing=%d equal=%v teacher_peak=%dMB learner_peak=%dMB "+
		"teacher_cpu=%.2fs learner_cpu=%.2fs teacher_pause=%v learner_pause=%v\n", joinResult, entries, rate, j.all.Seconds(), j.stream.Seconds(),
		j.missing, j.equal, j.teacher.Peak>>20, j.learner.Peak>>20, j.teacher.Processor.Seconds(), j.learner.Processor.Seconds(),
		j.teacher.Pause, j.learner.Pause)
}

// TestJoin: a newcomer learns the table of a director that goes on reporting, and lacks nothing.
func TestJoin(t *testing.T) {
	const entries = 100_000
	rate := 50_000.0
	if raceEnabled {
		rate = 2000
	}
	j := measureJoin(t, entries, rate)
	j.print(entries, rate)
}

// BenchmarkJoin: the same with a million entries, on an idle link and under load.
func BenchmarkJoin(b *testing.B) {
	const entries = 1_000_000
	for _, rate := range []float64{0, 50_000} {
		b.Run(fmt.Sprintf("updates=%.0f", rate), func(b *testing.B) {
			var all, stream, teaching, learning, pause time.Duration
			var teacher, learner uint64
			missing := 0
			for b.Loop() {
				j := measureJoin(b, entries, rate)
				all, stream = all+j.all, stream+j.stream
				teaching, learning = teaching+j.teacher.Processor, learning+j.learner.Processor
				pause = max(pause, j.teacher.Pause, j.learner.Pause)
				teacher, learner = max(teacher, j.teacher.Peak), max(learner, j.learner.Peak)
				missing += j.missing
			}
			b.ReportMetric(float64(missing), "missing")
			b.ReportMetric(teaching.Seconds()/float64(b.N), "teacher-cpu-s")
			b.ReportMetric(learning.Seconds()/float64(b.N), "learner-cpu-s")
			b.ReportMetric(pause.Seconds()*1e6, "pause-us")
			b.ReportMetric(all.Seconds()/float64(b.N), "s/join")
			b.ReportMetric(stream.Seconds()/float64(b.N), "s/stream")
			b.ReportMetric(float64(teacher)/1e6, "teacher-peak-MB")
			b.ReportMetric(float64(learner)/1e6, "learner-peak-MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestTeacherDies: the teacher is killed when it has sent a part of its table, and another director teaches the rest.
func TestTeacherDies(t *testing.T) {
	const entries = 50_000 // of each of two
	own := directorConfig{Connections: 2 * entries}
	slow := own
	slow.Slow = 5 * time.Millisecond // for 255 entries: 2 s for all of them, so that there is a middle
	f := newFarm(t, own, own, slow)
	f.narrow(t)
	a, b, newcomer := f.all[0], f.all[1], f.all[2]
	a.do(order{Do: "start"})
	b.do(order{Do: "start"})
	a.synced(1)
	b.synced(1)
	a.fill(entries)
	b.do(order{Do: "load", Load: load{First: entries, Count: entries, Records: entries, Each: 40}})
	b.do(order{Do: "wait"})
	for _, p := range []*process{a, b} {
		for end := time.Now().Add(time.Minute); p.do(order{Do: "check"}).Replica < 2*entries; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s has %d entries", p.name, p.do(order{Do: "check"}).Replica)
			}
		}
	}

	newcomer.do(order{Do: "start"})
	var teacher, survivor *process
	for end := time.Now().Add(time.Minute); teacher == nil; time.Sleep(time.Millisecond) {
		s := newcomer.do(order{Do: "report"}).Status
		if s.Synced || time.Now().After(end) {
			t.Fatalf("no middle of the join was seen: %+v", s)
		}
		if s.Join.Entries < entries {
			continue
		}
		if s.Join.Entries > entries+entries/2 {
			t.Fatalf("the join was nearly over when it was first seen: %+v", s.Join)
		}
		teacher, survivor = a, b
		if s.Join.Teacher == "b" {
			teacher, survivor = b, a
		}
		teacher.kill()
		t.Logf("%s was killed when it had taught %d of %d entries", teacher.name, s.Join.Entries, s.Join.Total)
	}
	var s answer
	for end := time.Now().Add(time.Minute); s.Join == 0; time.Sleep(5 * time.Millisecond) {
		if s = newcomer.do(order{Do: "report"}); time.Now().After(end) {
			t.Fatalf("not synced: %+v", s.Status)
		}
	}
	if j := s.Status.Join; j.Teacher != survivor.name || j.Attempts < 2 || j.State != "synced" {
		t.Errorf("taught by %+v, want %s in the second attempt", j, survivor.name)
	}
	has, got := survivor.do(order{Do: "check"}), newcomer.do(order{Do: "check"})
	if got.Replica != 2*entries || got.Kernel != 2*entries || got.Sum != has.Sum || got.Digest != has.Digest || got.Bad != 0 {
		t.Errorf("%d entries, %d in the kernel, want %d; digests equal: %v", got.Replica, got.Kernel, 2*entries, got.Digest == has.Digest)
	}
	fmt.Fprintf(os.Stdout, "%s teacher-killed entries=%d seconds=%.2f attempts=%d missing=%d\n", joinResult, 2*entries, s.Join.Seconds(),
		s.Status.Join.Attempts, 2*entries-got.Kernel)
}
