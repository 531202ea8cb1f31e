package syncd

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"saru/lib/control"
	"saru/syncd/engine"
	"saru/syncd/table"
)

// incarnation returns the incarnation as logs print it.
func (m *Mirrorer) incarnation() (s string) {
	m.With(func(e *engine.Engine) { s = e.Incarnation().String() })
	return s
}

// controlServer answers saructl.
func (d *daemon) controlServer() *control.Server {
	var s control.Server
	s.HandleJSON(control.PathSyncStatus, func(context.Context, url.Values) (any, error) { return d.status(), nil })
	s.HandleStream(control.PathSyncConnections, d.connections)
	s.HandleWork(control.PathSyncCompare, d.compare)
	s.HandleWork("POST "+control.PathSyncResync, d.resync)
	s.HandleWork("POST "+control.PathSyncFlush, d.serveFlush)
	s.HandleWork("POST "+control.PathSyncShare, d.serveShare)
	return &s
}

// status adds to the mirrorer's status what only the daemon knows.
func (d *daemon) status() control.SyncStatus {
	s := d.Status()
	s.KernelAudit = d.audit.status(time.Now())
	s.Audit.IntervalMS = d.interval().Milliseconds()
	for name, v := range d.teaches.Counters().All("teach_") {
		s.Counters[name] = v
	}
	return s
}

// authNames are the values of --auth.
var authNames = map[engine.Auth]string{engine.Enforce: AuthEnforce, engine.Permissive: AuthPermissive, engine.ReceiveOnly: AuthReceiveOnly}

// since returns the milliseconds since a time; control.Never for the zero time.
func since(now, t time.Time) int64 {
	if t.IsZero() {
		return control.Never
	}
	return now.Sub(t).Milliseconds()
}

// joinStatus says how the join goes.
func joinStatus(j engine.JoinStatus) control.SyncJoin {
	s := control.SyncJoin{
		State: control.JoinJoining, Teacher: j.Teacher, Entries: j.Entries, Total: max(j.Total, j.Entries),
		TookMS: j.Took.Milliseconds(), Attempts: j.Attempts,
	}
	if s.Total > 0 {
		s.Percent = int(100 * s.Entries / s.Total)
	}
	if j.State == engine.Synced {
		s.Percent, s.State = 100, control.JoinSynced
		if j.Partial {
			s.State = control.JoinPartial
		}
	}
	return s
}

func peerStatus(now time.Time, p *engine.PeerStatus) control.SyncPeer {
	s := control.SyncPeer{
		Node: p.Name, Incarnation: p.Incarnation.String(), Sequence: p.Sequence, Missing: p.Missing,
		LastHeardMS: now.Sub(p.LastHeard).Milliseconds(), Synced: p.Synced, GivenUp: p.GivenUp, Lost: p.Lost,
		Entries: uint64(p.Entries), Confirmed: p.Confirmed, Links: []control.SyncLink{},
	}
	if p.Teaches.IsValid() {
		s.Teaches = p.Teaches.String()
	}
	for _, l := range p.Links {
		s.Links = append(s.Links, control.SyncLink{Interface: l.Interface, LastHeardMS: since(now, l.LastHeard)})
	}
	return s
}

// Status returns what `saructl sync status` shows.
func (m *Mirrorer) Status() control.SyncStatus {
	now := time.Now()
	var st engine.Status
	var node, incarnation string
	m.With(func(e *engine.Engine) { st, node, incarnation = e.Status(now), e.Node(), e.Incarnation().String() })
	p50, p99 := m.lag.quantiles()
	out := control.SyncStatus{
		Node: node, Synced: st.Synced,
		Connections: control.SyncCounts{Local: st.Local, Remote: st.Total - st.Local},
		Peers:       []control.SyncPeer{},
		LagMS:       control.Lag{P50: milliseconds(p50), P99: milliseconds(p99)},
		Counters:    control.NewSyncCounter(),
	}
	out.Incarnation, out.KernelEntries, out.Share = incarnation, kernelEntries(st.Share.Next), shareStatus(&st.Share)
	out.Join = joinStatus(st.Join)
	out.Backlog = control.SyncBacklog{
		Bytes: st.Backlog.Bytes, LimitBytes: st.Backlog.Limit, Datagrams: st.Backlog.Datagrams, ReachMS: st.Backlog.Reach.Milliseconds(),
	}
	out.Audit = control.SyncAudit{
		LastMSAgo: since(now, st.Audit.At), Peer: st.Audit.Peer, Equal: !st.Audit.At.IsZero() && st.Audit.Differing == 0,
		DifferingBuckets: st.Audit.Differing, Repaired: st.Audit.Total, Rounds: st.Audit.Count,
	}
	out.ClockLeadMS = st.Lead.Milliseconds()
	out.KernelAudit.LastMSAgo = control.Never
	out.Keys = control.SyncKeys{Signing: int(st.Signer), Auth: authNames[st.Auth]}
	for i := range st.Peers {
		out.Peers = append(out.Peers, peerStatus(now, &st.Peers[i]))
	}
	for name, v := range st.Counter.All {
		out.Counters[name] = v
	}
	for name, v := range m.ioCounters() {
		out.Counters[name] = v
	}
	for name, v := range m.pulled.All("pull_") {
		out.Counters[name] = v
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ioCounters are those of sockets and tap.
func (m *Mirrorer) ioCounters() map[string]uint64 {
	c := map[string]uint64{"io_failures": m.dropped.total.Load()}
	for _, l := range m.conn.Links() {
		c["socket_dropped"] += l.Dropped()
	}
	if _, dropped, err := m.tap.Queued(); err == nil {
		c["kernel_dropped"] = dropped
	}
	c["input_blocked"] = 0
	if m.intake.isBlocked() {
		c["input_blocked"] = 1
	}
	if k, ok := m.tap.(interface{ Ignored() uint64 }); ok {
		c["tap_ignored"] = k.Ignored()
	}
	return c
}

// connections streams what `saructl sync connections` shows. The engine is held for a thousand entries at a time.
func (m *Mirrorer) connections(_ context.Context, q url.Values, emit func(any) error) error {
	filter, err := control.ParseConnectionFilter(q)
	if err != nil {
		return err
	}
	var found []control.Connection
	for c := (table.Cursor{}); !c.Done; {
		found = found[:0]
		now := time.Now()
		m.With(func(e *engine.Engine) {
			c = e.Walk(now, c, 1000, func(en *table.Entry, origin string) bool {
				r := &en.Record
				if filter.MatchEndpoints(r.Client, r.Virtual, r.Real) {
					found = append(found, control.NewConnection(r, origin, int64(en.Remaining/time.Second)))
				}
				return true
			})
		})
		for i := range found {
			if f := &found[i]; filter.MatchNames(f.Protocol, f.State, f.Origin) {
				if err := emit(f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// collector gives Prometheus what `saructl sync status` shows.
type collector struct{ m *Mirrorer }

var (
	descEvents      = prometheus.NewDesc("saru_syncd_events_total", "Counters of syncd by name, as in saructl sync status.", []string{"name"}, nil)
	descConnections = prometheus.NewDesc("saru_syncd_connections", "Connections in the replica by where they come from.", []string{"origin"}, nil)
	descSynced      = prometheus.NewDesc("saru_syncd_synced", "1 if the replica is complete as far as this director knows.", nil, nil)
	descLag         = prometheus.NewDesc("saru_syncd_lag_seconds", "How long a record waits in this director's kernel and tap.", []string{"quantile"}, nil)
	descClockLead   = prometheus.NewDesc("saru_syncd_clock_lead_seconds", "By how much the farm's clock is ahead of this director's.", nil, nil)
	descPeerMissing = prometheus.NewDesc("saru_syncd_peer_missing", "Messages of a peer's stream that were not received.", []string{"peer"}, nil)
	descPeerHeard   = prometheus.NewDesc("saru_syncd_peer_last_heard_seconds", "Time since a peer was last heard.", []string{"peer"}, nil)
)

// Describe is prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEvents, descConnections, descSynced, descLag, descClockLead, descPeerMissing, descPeerHeard} {
		ch <- d
	}
}

// Collect is prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.m.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name, v := range s.Counters {
		ch <- prometheus.MustNewConstMetric(descEvents, prometheus.CounterValue, float64(v), name)
	}
	gauge(descConnections, float64(s.Connections.Local), "local")
	gauge(descConnections, float64(s.Connections.Remote), "remote")
	synced := 0.0
	if s.Synced {
		synced = 1
	}
	gauge(descSynced, synced)
	gauge(descLag, s.LagMS.P50/1000, "0.5")
	gauge(descLag, s.LagMS.P99/1000, "0.99")
	gauge(descClockLead, float64(s.ClockLeadMS)/1000)
	for _, p := range s.Peers {
		gauge(descPeerMissing, float64(p.Missing), p.Node)
		gauge(descPeerHeard, float64(p.LastHeardMS)/1000, p.Node)
	}
}
