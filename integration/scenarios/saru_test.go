package scenarios

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/integration/farm"
	"saru/lib/control"
)

const saruSocket = "/run/saru/saru.sock"

// guestTimers are ten times the defaults: emulation is 10 to 30 times slower than hardware, three directors share two emulated processors, and a guest on a busy host
// stands still for a second or two. The default timers are proved natively (package native).
var guestTimers = []string{"--keepalive", "1s", "--warntime", "2500ms", "--deadtime", "5s", "--lease", "3s", "--start_delay", "20s"}

// guestStall is when a silent stream counts as cut with these timers: a take-over takes 5 s, and TCP's retransmissions wait twice as long each time.
const guestStall = 45 * time.Second

// coordinator is a saru that runs on a director.
type coordinator struct {
	*farm.Process
	node *farm.Node
}

// launchSaru starts the real saru on a director that has its keys, and does not wait.
func launchSaru(t testing.TB, d *farm.Node, args ...string) *coordinator {
	t.Helper()
	all := append([]string{
		"--node", d.Name, "--interface", string(farm.Sync), "--interface", string(farm.Front), "--key_file", keyFile, "--log_facility", "-",
		"--control", saruSocket, "--syncd", controlSocket, "--virtual", farm.VIP.String(), "--virtual", farm.VIP6.String(), "--inside", string(farm.Inside),
		"--mac", d.MAC(farm.Front).String(),
	}, guestTimers...)
	p, err := d.Start("saru", append(all, args...)...)
	must(t, err)
	return &coordinator{Process: p, node: d}
}

// status asks by saructl; its exit status says whether all is well, which is not asked here.
func (c *coordinator) status() (s control.Status, err error) {
	out, err := c.node.Run("sh", "-c", "saructl status --json --control "+saruSocket+"; true")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("saructl status --json says %q: %w", out, err)
	}
	return s, nil
}

// ownAll waits until these are the members of one table, without alarms, and hold all buckets between them.
func ownAll(t testing.TB, limit time.Duration, sarus ...*coordinator) {
	t.Helper()
	eventually(t, limit, func() string {
		open, version := 0, uint32(0)
		for _, c := range sarus {
			s, err := c.status()
			switch {
			case err != nil:
				return err.Error()
			case s.State != control.StateMember || len(s.Alarms) > 0:
				return fmt.Sprintf("%s is %s, alarms %q", c.node.Name, s.State, s.Alarms)
			case len(s.Members) != len(sarus) || version != 0 && s.Version != version:
				return fmt.Sprintf("%s has %d members in version %d, others %d", c.node.Name, len(s.Members), s.Version, version)
			}
			version, open = s.Version, open+s.Buckets.Open
		}
		if open != 4096 {
			return fmt.Sprintf("%d buckets are open", open)
		}
		return ""
	})
}

// witnesses record what IPVS takes on each director.
type witnesses struct {
	t     testing.TB
	files map[string][]string // by director: one for each life
	live  map[string]*farm.Capture
}

func watchAll(t testing.TB, directors []*farm.Node) *witnesses {
	w := &witnesses{t: t, files: map[string][]string{}, live: map[string]*farm.Capture{}}
	for _, d := range directors {
		w.watch(d)
	}
	return w
}

func (w *witnesses) watch(d *farm.Node) {
	w.t.Helper()
	c, err := d.Witness()
	must(w.t, err)
	w.live[d.Name] = c
	w.files[d.Name] = append(w.files[d.Name], c.File)
}

// read ends the witnesses and calls fn with all that they have seen: by which director, when, what.
func (w *witnesses) read(fn func(director string, at time.Time, p farm.Taken)) {
	w.t.Helper()
	for _, c := range w.live {
		_ = c.Stop() // one whose director lost power has ended
	}
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		for _, file := range w.files[name] {
			err := farm.ReadWitness(file, func(at time.Time, p farm.Taken) { fn(name, at, p) })
			if err != nil && !strings.Contains(err.Error(), "EOF") {
				w.t.Errorf("read the witness of %s: %v", name, err)
			}
		}
	}
}

// doubled is a packet that two directors have taken.
type doubled struct {
	packet       farm.Taken
	first, other string
	at           time.Time
}

// twice returns how many packets there were, and those that two directors have taken.
func (w *witnesses) twice() (packets int, twice []doubled) {
	w.t.Helper()
	by := map[farm.Taken]string{}
	w.read(func(name string, at time.Time, p farm.Taken) {
		packets++
		if other, known := by[p]; known && other != name {
			twice = append(twice, doubled{p, other, name, at})
		}
		by[p] = name
	})
	return packets, twice
}
