package scenarios

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
	"saru/lib/ipvs"
)

const (
	// killServers is how many real servers each loaded director has for itself, by weights: an entry with another one's was not made there.
	killServers = 2
	// killStuck is how long the farm may make no progress on its way to convergence: some audits with each peer and the kernel.
	killStuck = 30 * time.Second
	// killSlow is after how long a farm that has not converged yet says why.
	killSlow = 2 * time.Second
	// killLimit bounds the convergence at all.
	killLimit = 2 * time.Minute
)

// How long the kernel keeps a connection (ip_vs_proto_tcp.c, tcp_timeouts): 15 minutes while it is ESTABLISHED, 2 in FIN_WAIT. Between
// mustLive and mayLive it is not looked for: timers of copies are rounded to seconds, and an entry in use expires a minute later.
const (
	mustLiveOpen   = 14 * time.Minute
	mustLiveClosed = 100 * time.Second
	mayLiveClosed  = 3 * time.Minute
)

// killRound is the load of a round.
type killRound struct {
	span
	began, ended time.Time
	finished     time.Time // when those were ended that were left open; zero: they are open
}

// killConn is a connection as its director's kernel has made it.
type killConn struct {
	*killRound
	number int
	real   netip.AddrPort
	closed bool // the kernel that made it was seen to know of its end
}

// end returns when the connection was ended, between two times; zero while it is open.
func (c *killConn) end() (from, to time.Time) {
	if c.number%4 < 2 { // as in churn.run
		return c.began, c.ended
	}
	return c.finished, c.finished
}

func (c *killConn) mustLive(now time.Time) bool {
	if from, _ := c.end(); !from.IsZero() {
		return now.Sub(from) < mustLiveClosed
	}
	return now.Sub(c.began) < mustLiveOpen
}

func (c *killConn) mayLive(now time.Time) bool {
	_, to := c.end()
	return to.IsZero() || now.Sub(to) < mayLiveClosed
}

// books is what the load has made: all that may be in a kernel or a replica.
type books struct {
	servers []map[netip.AddrPort]bool // of each director
	rounds  []*killRound
	pending []*killConn // not yet seen in the kernel of the director that makes it
	conns   map[entry]*killConn

	checked, missing, wrong int
	again                   int // ends that were sent again
}

// ownServers lets a director choose among its own real servers only.
func (b *books) ownServers(t *testing.T, f *farm.Farm, director int) {
	t.Helper()
	own := map[netip.AddrPort]bool{}
	for i, r := range f.RealServers {
		at := netip.AddrPortFrom(r.Addr(farm.Inside), churnService.Port)
		if i/killServers == director {
			own[at] = true
			continue
		}
		_, err := f.Directors[director].Run("ipvsadm", "-e", "-t", churnService.VIPPort().String(), "-r", at.String(), string(churnService.Method), "-w", "0")
		must(t, err)
	}
	b.servers = append(b.servers, own)
}

// begin opens a round's account, and ends connections that were left open long ago.
func (b *books) begin(t *testing.T, c *churn) *killRound {
	t.Helper()
	for _, r := range b.rounds[:max(0, len(b.rounds)-killOpen)] {
		if !r.finished.IsZero() {
			continue
		}
		r.finished = time.Now()
		for i := r.from; i < r.to; i++ {
			if i%4 >= 2 {
				must(t, c.source(i).Finish(i, c.to))
			}
		}
	}
	r := &killRound{span: span{from: c.next}, began: time.Now()}
	b.rounds = append(b.rounds, r)
	return r
}

// end closes a round's account: the load has stopped.
func (b *books) end(r *killRound, c *churn) {
	r.to, r.ended = c.next, time.Now()
	for i := r.from; i < r.to; i++ {
		b.pending = append(b.pending, &killConn{killRound: r, number: i})
	}
}

// enter enters what directors' kernels have made themselves.
func (b *books) enter(c *churn, all []map[entry]held) (wrong []string) {
	if b.conns == nil {
		b.conns = map[entry]*killConn{}
	}
	b.pending = slices.DeleteFunc(b.pending, func(x *killConn) bool {
		k := c.keys(span{x.number, x.number + 1})[0]
		source := x.number % len(c.sources)
		h, ok := all[source][k]
		if !ok {
			return false
		}
		if h.synced || !b.servers[source][h.real] {
			wrong = append(wrong, fmt.Sprintf("director %d has %v at %v, told by another one: %v; its own servers are %v", source+1, k.client, h.real, h.synced, b.servers[source]))
		}
		x.real = h.real
		b.conns[k] = x
		return true
	})
	return wrong
}

// replicaOf lists a daemon's replica as survey lists a kernel's table.
func (s *daemon) replicaOf(k *killer) (map[entry]held, error) {
	path, err := s.node.Path(controlSocket)
	if err != nil {
		return nil, err
	}
	all := map[entry]held{}
	err = control.NewClient(path).Stream(k.Context(), control.PathSyncConnections, func(line json.RawMessage) error {
		var c control.Connection
		if err := json.Unmarshal(line, &c); err != nil {
			return err
		}
		if c.Protocol != "tcp" || slices.Contains(c.Flags, "template") {
			return fmt.Errorf("the replica of %s has %+v", s.node.Name, c)
		}
		var ends [3]netip.AddrPort
		for i, text := range []string{c.Client, c.Virtual, c.Real} {
			if ends[i], err = netip.ParseAddrPort(text); err != nil {
				return err
			}
		}
		all[entry{unix.IPPROTO_TCP, ends[0], ends[1]}] = held{real: ends[2], state: c.State, synced: c.Origin != s.node.Name}
		return nil
	})
	return all, err
}

// look compares all kernels and replicas with the books: what is missing or in another state than where it was made, and what is wrong.
func (k *killer) look() (lacks int, lacking, wrong []string) {
	k.Helper()
	kernels, _ := survey(k.T, k.farm.Directors)
	replicas := make([]map[entry]held, len(k.daemons))
	var g errgroup.Group
	for i, s := range k.daemons {
		g.Go(func() (err error) {
			replicas[i], err = s.replicaOf(k)
			return err
		})
	}
	must(k.T, g.Wait())
	now := time.Now()
	b := &k.books
	wrong = b.enter(k.churn, kernels)
	if n := len(b.pending); n > 0 {
		lacks += n
		lacking = append(lacking, fmt.Sprintf("%d connections are not in the kernels that make them, %+v for instance", n, b.pending[0]))
	}
	n, rewound := k.finishAgain(kernels, now)
	if wrong = append(wrong, rewound...); n > 0 {
		lacks += n
		lacking = append(lacking, fmt.Sprintf("%d ends have not come to the kernels that made the connections", n))
	}
	b.checked = 0
	for i, d := range k.farm.Directors {
		for _, side := range []struct {
			name string
			has  map[entry]held
		}{{"kernel", kernels[i]}, {"replica", replicas[i]}} {
			for key, h := range side.has {
				b.checked++
				c := b.conns[key]
				var to time.Time
				if c != nil {
					_, to = c.end()
				}
				switch {
				case c == nil && !slices.ContainsFunc(b.pending, func(p *killConn) bool { return k.churn.keys(span{p.number, p.number + 1})[0] == key }):
					wrong = append(wrong, fmt.Sprintf("the %s of %s has %v to %v at %v, which was never made", side.name, d.Name, key.client, key.virtual, h.real))
				case c != nil && h.real != c.real:
					wrong = append(wrong, fmt.Sprintf("the %s of %s has %v at %v, which was made with %v", side.name, d.Name, key.client, h.real, c.real))
				case c != nil && !c.mayLive(now):
					wrong = append(wrong, fmt.Sprintf("the %s of %s has %v in %s still, which was ended %v ago", side.name, d.Name, key.client, h.state, now.Sub(to)))
				}
			}
			missing, stale := 0, 0
			for key, c := range b.conns {
				if !c.mustLive(now) {
					continue
				}
				h, ok := side.has[key]
				switch {
				case !ok:
					missing++
					lacking = append(lacking, fmt.Sprintf("the %s of %s lacks %v of round %v", side.name, d.Name, key.client, c.span))
				case h.state != kernels[c.number%len(k.churn.sources)][key].state:
					stale++
					lacking = append(lacking, fmt.Sprintf("the %s of %s has %v in %s", side.name, d.Name, key.client, h.state))
				}
			}
			lacks += missing + stale
		}
	}
	return lacks, lacking, wrong
}

// finishAgain sends the end of connections again that the kernel which made them has not seen: a busy guest drops packets, and nobody retransmits these. Left
// alone, they would live on everywhere, rightly.
// One that was seen to have ended and is open again was rewound, and that is wrong.
func (k *killer) finishAgain(kernels []map[entry]held, now time.Time) (n int, rewound []string) {
	k.Helper()
	for key, c := range k.books.conns {
		if _, to := c.end(); to.IsZero() || !c.mustLive(now) {
			continue
		}
		switch state := kernels[c.number%len(k.churn.sources)][key].state; {
		case state == "":
		case state != "ESTABLISHED":
			c.closed = true
		case c.closed:
			rewound = append(rewound, fmt.Sprintf("%v was ended in the kernel that made it, and is ESTABLISHED there again", key.client))
		default:
			n++
			must(k.T, k.churn.source(c.number).Finish(c.number, k.churn.to))
		}
	}
	k.books.again += n
	return n, rewound
}

// ready says what keeps daemons from having converged, as far as they know themselves: a weight, and why.
func (k *killer) ready() (weight int, why []string) {
	k.Helper()
	live := 0
	for _, c := range k.books.conns {
		if c.mustLive(time.Now()) {
			live++
		}
	}
	lacks := func(w int, format string, args ...any) {
		weight += w
		why = append(why, fmt.Sprintf(format, args...))
	}
	for i, s := range k.daemons {
		k.sound(i)
		st, err := s.tryAsk(k.Context())
		if err != nil {
			lacks(1e9, "%s: %v", s.node.Name, err)
			continue
		}
		if !st.Synced {
			lacks(1e8, "%s is not synced: %+v", s.node.Name, st.Join)
		}
		// Signing is what is configured, and receive-only does not use it.
		if auth, signer := k.rotation.auth(), k.rotation.signer(); st.Keys.Auth != auth || st.Keys.Signing != signer && auth != "receive-only" {
			k.Fatalf("%s has %+v, want %s", s.node.Name, st.Keys, &k.rotation)
		}
		heard := 0
		for _, p := range st.Peers {
			if !p.Lost {
				heard++
			}
			if p.Missing+p.GivenUp > 0 {
				lacks(int(1e3*(p.Missing+p.GivenUp)), "%s has %+v", s.node.Name, p)
			}
		}
		if heard != len(k.daemons)-1 {
			lacks(1e7, "%s has peers %+v", s.node.Name, st.Peers)
		}
		if n := st.Connections.Local + st.Connections.Remote; n < live {
			lacks(live-n, "the replica of %s has %d of %d", s.node.Name, n, live)
		}
	}
	return weight, why
}

// equal asks all directors at the same time for a comparison with their kernel and their peers.
func (k *killer) equal() (differ int, why []string) {
	k.Helper()
	all := make([]comparison, len(k.daemons))
	var g errgroup.Group
	for i, s := range k.daemons {
		g.Go(func() (err error) {
			all[i], err = s.tryCompare()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return math.MaxInt - 1, []string{err.Error()}
	}
	for i, c := range all {
		if !c.summary.Equal || len(c.summary.Peers) != len(k.daemons)-1 {
			differ += max(1, len(c.differences))
			why = append(why, fmt.Sprintf("saructl sync compare on %s: %+v\n%+v", k.daemons[i].node.Name, c.summary, c.differences))
		}
	}
	return differ, why
}

// untilNone calls check until it finds that nothing lacks, as long as there is progress.
func (k *killer) untilNone(what string, check func() (lacks int, why []string)) time.Duration {
	k.Helper()
	began := time.Now()
	least, progress, slow := math.MaxInt, began, false
	for ; ; time.Sleep(100 * time.Millisecond) {
		lacks, why := check()
		if lacks == 0 {
			return time.Since(began)
		}
		if !slow && time.Since(began) > killSlow {
			slow = true
			k.Logf("not %s after %v: %s", what, time.Since(began).Round(10*time.Millisecond), why[0])
		}
		if lacks < least {
			least, progress = lacks, time.Now()
		}
		if time.Since(progress) > killStuck || time.Since(began) > killLimit {
			k.books.missing = lacks
			k.Fatalf("not %s after %v, no progress for %v:\n%s", what, time.Since(began), time.Since(progress), strings.Join(why[:min(10, len(why))], "\n"))
		}
	}
}

// converge waits until nothing is missing anywhere, while losses go on, and then until every director says so. Anything wrong is an error
// at once. Comparisons have the segment without loss, where they take a quarter of the time.
func (k *killer) converge() {
	k.Helper()
	took := k.untilNone("converged", func() (int, []string) {
		if lacks, why := k.ready(); lacks > 0 {
			return lacks, why
		}
		lacks, why, wrong := k.look()
		if k.books.wrong += len(wrong); len(wrong) > 0 {
			k.Fatalf("%d wrong entries:\n%s", len(wrong), strings.Join(wrong[:min(10, len(wrong))], "\n"))
		}
		return lacks, why
	})
	k.converged = append(k.converged, took)
	impair(k.T, k.farm.Directors, "")
	compared := k.untilNone("equal", k.equal)
	k.once()
	k.refused()
	k.Logf("converged after %v, equal %v later: %d entries in kernels and replicas", took.Round(10*time.Millisecond), compared.Round(10*time.Millisecond), k.books.checked)
}

// foreign reports whether a sync thread was there before this scenario.
func (k *killer) foreign(pid int) bool { return slices.Contains(k.others, pid) }

// once fails unless each director has one master thread and one backup thread, and the guest no others.
func (k *killer) once() {
	k.Helper()
	for _, d := range k.farm.Directors {
		must(k.T, d.Do(func() error {
			daemons, err := ipvs.OpenDaemons()
			if err != nil {
				return err
			}
			defer daemons.Close()
			running, err := daemons.List()
			if err == nil && (len(running) != 2 || running[0].State == running[1].State) {
				k.Errorf("%s has kernel threads %+v", d.Name, running)
			}
			return err
		}))
	}
	masters, backups := syncThreads(k.T)
	masters, backups = slices.DeleteFunc(masters, k.foreign), slices.DeleteFunc(backups, k.foreign)
	if n := len(k.daemons); len(masters) != n || len(backups) != n {
		k.Errorf("the guest has %d master and %d backup threads for %d directors", len(masters), len(backups), n)
	}
}

// neverCounted are counters of what nobody has sent here, or has asked for: forged datagrams, damaged ones, and those of steps of the
// rotation that are over; and of connections that changed hands.
var neverCounted = []string{
	control.DropForged, control.DropTruncated, control.DropUnknownKey, control.DropUnsigned,
	"drop_syncid", "drop_version", "drop_kind", "drop_peers", "drop_stock",
	"namesakes", "tap_damaged", "takeovers",
}

func (k *killer) refused() {
	k.Helper()
	for _, s := range k.daemons {
		counters := s.ask(k.T).Counters
		for _, name := range neverCounted {
			if n := counters[name]; n != 0 {
				k.Errorf("%s on %s is %d\n%v", name, s.node.Name, n, counters)
			}
		}
	}
}

// resultLine prints what came out.
func (k *killer) resultLine(rounds int, took time.Duration) {
	k.Helper()
	total, phases := 0, ""
	for _, phase := range []string{"join", "join_newcomer", "join_teacher", "repair", "rotation"} {
		total += k.kills[phase]
		phases += fmt.Sprintf(" %s=%d", phase, k.kills[phase])
	}
	k.Logf("RESULT kill_anywhere rounds=%d kills=%d%s before_joined=%d converged_p50_ms=%d converged_max_ms=%d connections=%d entries_checked=%d missing=%d wrong=%d ends_sent_again=%d took_s=%.0f",
		rounds, total, phases, k.unfinished, quantile(k.converged, 50).Milliseconds(), quantile(k.converged, 100).Milliseconds(),
		k.churn.next, k.books.checked, k.books.missing, k.books.wrong, k.books.again, took.Seconds())
}
