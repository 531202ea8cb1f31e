package native

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"saru/lib/control"
)

// nft runs the real nft in the director.
func (d *director) nft(script string) {
	t := d.farm.t
	t.Helper()
	d.ns.Do(t, func() {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("nft on %s: %v\n%s", d.name, err, out)
		}
	})
}

// alarmed reports whether saructl's status of the director has an alarm of this name.
func (d *director) alarmed(name string) bool {
	s, ok := d.status()
	for _, a := range s.Alarms {
		if strings.HasPrefix(a, name+": ") {
			return ok
		}
	}
	return false
}

// alarmLogged reports whether the director's log has an alarm of this name.
func (d *director) alarmLogged(name string) bool {
	for line := range strings.Lines(d.logOf()) {
		if strings.Contains(line, "error ") && strings.Contains(line, name) {
			return true
		}
	}
	return false
}

// TestCutApart is exception 1 of docs/SAFETY.md: two directors that hear nothing of each other, while both receive all packets, both answer; they say so, and one
// of them yields as soon as they hear each other.
func TestCutApart(t *testing.T) {
	f := newFarm(t, 2)
	f.responders(nil)
	f.settled()
	fs := f.startFlows(48)
	defer fs.end()
	fs.answered(t)
	if n := fs.twice(); n > 0 {
		t.Fatalf("%d datagrams were answered twice before", n)
	}
	d := f.directors[0]
	at := time.Now()
	d.nft("table inet cut {\n chain in { type filter hook prerouting priority -450; udp dport 8850 drop; }\n chain out { type filter hook output priority -450; udp dport 8850 drop; }\n}\n")
	until(t, 3*time.Second, "datagrams answered twice", func() bool { return fs.twice() > 0 })
	both := time.Since(at)
	for _, d := range f.directors {
		until(t, 3*time.Second, "alarm of "+d.name, func() bool { return d.alarmed("partition") })
		if !d.alarmLogged("partition") {
			t.Errorf("%s has not logged the alarm", d.name)
		}
	}
	at = time.Now()
	d.nft("delete table inet cut\n")
	last := fs.twice()
	changed := time.Now()
	for time.Since(changed) < time.Second { // until nothing more is answered twice for a second
		if time.Since(at) > 20*time.Second {
			t.Fatal("both answer for 20 s after contact")
		}
		if n := fs.twice(); n > last {
			last, changed = n, time.Now()
		}
		time.Sleep(2 * time.Millisecond)
	}
	healed := changed.Sub(at)
	f.settled()
	time.Sleep(500 * time.Millisecond)
	t.Logf("RESULT cut off from each other completely: datagrams are answered twice from %v after the cut on, and until %v after contact", both.Round(time.Millisecond), healed.Round(time.Millisecond))
	if healed > patient(500*time.Millisecond) {
		t.Errorf("both answer for %v after contact", healed)
	}
	if n := fs.twice() - last; n > 0 {
		t.Errorf("%d datagrams are answered twice in the farm that is whole again", n)
	}
	for _, d := range f.directors {
		until(t, 3*time.Second, "end of the alarm of "+d.name, func() bool { return !d.alarmed("partition") && !d.alarmed("split") })
	}
}

// TestForeignFlush has somebody flush the ruleset of a director, or delete saru's table. Where the kernel protects it, nothing happens; below Linux 6.9 the director
// accepts everything for some milliseconds (package scenarios measures those on such a kernel), says so, and the farm is whole again.
func TestForeignFlush(t *testing.T) {
	f := newFarm(t, 3)
	f.responders(nil)
	f.settled()
	fs := f.startFlows(48)
	defer fs.end()
	fs.answered(t)
	d := f.directors[1]
	for range rounds(t, 3) {
		d.nft("flush ruleset\n")
		time.Sleep(300 * time.Millisecond)
		f.settled()
	}
	twice := fs.twice()
	t.Logf("RESULT nft flush ruleset by others: %d datagrams answered twice; alarm: %v", twice, d.alarmed("filter"))
	if twice > 0 && !d.alarmed("filter") {
		t.Errorf("%d datagrams were answered twice, without an alarm", twice)
	}
	time.Sleep(500 * time.Millisecond)
	if n := fs.twice(); n != twice {
		t.Errorf("%d more datagrams are answered twice in the farm that is whole again", n-twice)
	}
}

// TestTimersDiffer has a director come back with other timers.
func TestTimersDiffer(t *testing.T) {
	f := newFarm(t, 3)
	f.settled()
	d := f.directors[2]
	d.kill()
	d.args = []string{"--lease", "310ms"}
	d.start()
	for _, d := range f.directors {
		until(t, 10*time.Second, "alarm of "+d.name, func() bool { return d.alarmed("timers") })
	}
	f.settled(f.directors[:2]...)
	time.Sleep(time.Second)
	if s, ok := d.status(); !ok || s.State != control.StateJoining || s.Buckets.Owned+s.Buckets.Open != 0 {
		t.Errorf("%s with other timers: %+v", d.name, s)
	}
	d.kill()
	d.args = nil
	d.start()
	f.settled()
	if f.directors[0].alarmed("timers") {
		t.Error("the alarm does not end")
	}
}

// TestNamesake: a host that was cloned with its --node ends with a clear line, and the farm goes on as it was.
func TestNamesake(t *testing.T) {
	f := prepareFarm(t, 3)
	first, twin := f.directors[0], f.directors[2]
	twin.name = first.name
	for _, d := range f.directors[:2] {
		d.start()
	}
	f.settled(f.directors[:2]...)
	before, _ := first.status()
	twin.start()
	if !twin.wait(10 * time.Second) {
		t.Fatal("the later one goes on")
	}
	if code := twin.proc.ProcessState.ExitCode(); code != 1 || !strings.Contains(twin.logOf(), "give each its own --node") {
		t.Errorf("the later one ends with %d:\n%s", code, twin.logOf())
	}
	f.settled(f.directors[:2]...)
	if after, _ := first.status(); after.Version != before.Version || !first.alarmed("namesake") {
		t.Errorf("version %d after %d; alarms %q", after.Version, before.Version, after.Alarms)
	}
}
