package saru

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"saru/lib/control"
	"saru/lib/flow"
	"saru/lib/peer"
	"saru/proto/coord"
	"saru/saru/core"
)

// controlServer answers saructl.
func (d *daemon) controlServer() *control.Server {
	var s control.Server
	plain := func(answer func() any) func(context.Context, url.Values) (any, error) {
		return func(_ context.Context, q url.Values) (any, error) {
			if err := control.Parameters(q); err != nil {
				return nil, err
			}
			return answer(), nil
		}
	}
	s.HandleJSON(control.PathStatus, plain(func() any { return d.status() }))
	s.HandleJSON(control.PathMembers, plain(func() any { return d.status().Members }))
	s.HandleJSON(control.PathBuckets, plain(func() any { return buckets(d.report()) }))
	s.HandleJSON(control.PathWhich, func(_ context.Context, q url.Values) (any, error) { return d.which(q) })
	s.HandleWork("POST "+control.PathDrain, d.drain(coord.VerbDrain))
	s.HandleWork("POST "+control.PathUndrain, d.drain(coord.VerbUndrain))
	s.HandleWork(control.PathHistory, d.serveHistory)
	return &s
}

func (d *daemon) report() core.Report {
	d.coord.mu.Lock()
	defer d.coord.mu.Unlock()
	return d.coord.core.Report(time.Now())
}

func hexDigits(x uint64) string { return fmt.Sprintf("%016x", x) }

func hexDigest(x coord.Digest) string {
	if x == (coord.Digest{}) {
		return ""
	}
	return fmt.Sprintf("%x", x[:])
}

// status is everything in short.
func (d *daemon) status() control.Status {
	r, now := d.report(), time.Now()
	fn, usable := d.virtuals.local()
	s := control.Status{
		Node: r.Node, State: stateOf(&r), Members: []control.Member{}, Alarms: []string{}, Filter: []control.FilterCounts{},
		Buckets: control.BucketCounts{Total: int(fn.Buckets)}, Sync: control.Sync{Synced: true},
		Incarnation: hexDigits(r.Incarnation), UptimeMS: now.Sub(r.Started).Milliseconds(), SinceMS: control.Never,
		Pending: r.Pending, ConfiguredDigest: hexDigest(r.Function), Usable: usable,
	}
	s.Pings.Total, s.Pings.Reached = d.pinger.count()
	if d.syncd != nil {
		s.Sync.Synced, _, s.Sync.Error = d.syncd.state()
	}
	if left := r.Lease.Sub(now); !r.Lease.IsZero() && left > 0 && !none(r.Open) {
		s.Lease.RemainingMS = left.Milliseconds()
	}
	for name, text := range r.Alarms {
		s.Alarms = append(s.Alarms, name+": "+text)
	}
	if s.Sync.Error != "" {
		s.Alarms = append(s.Alarms, "syncd: "+s.Sync.Error)
	}
	slices.Sort(s.Alarms)
	own, next := countOwners(r.Table)
	if t := r.Table; t != nil {
		s.Term, s.Version, s.SinceMS, s.FunctionDigest = t.Term, t.Version, now.Sub(r.Since).Milliseconds(), hexDigest(t.Function.Digest())
		s.Buckets.Total = int(t.Function.Buckets)
		s.Policy = map[coord.Policy]string{coord.Quorum: control.PolicyQuorum, coord.Available: control.PolicyAvailable}[t.Policy]
		s.Master, s.Line = nameIn(&r, t.Master), control.Line{Term: t.Line.Term, Node: founderIn(&r, t)}
	}
	for i := range r.Members {
		m := d.member(&r, &r.Members[i], now, own, next)
		if m.Self {
			s.Buckets.Owned, s.Buckets.Next, s.Buckets.Open = m.Owned, m.Next, m.Open
			m.Synced, m.Usable, m.Pings, m.Term, m.Version, m.UptimeMS = s.Sync.Synced, usable, s.Pings.Reached, s.Term, s.Version, s.UptimeMS
		}
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b control.Member) int { return strings.Compare(a.Node, b.Node) })
	if st, err := d.filter.Read(); err == nil {
		for _, v := range st.Virtuals {
			s.Filter = append(s.Filter, control.FilterCounts{
				Virtual: v.Address.String(), Accepted: v.Own.Packets, Foreign: v.Foreign.Packets, Late: v.Late.Packets,
			})
		}
		s.Inside = control.InsideCounts{Accepted: st.Inside.Packets, Foreign: st.InsideForeign.Packets}
		s.Chance = control.ChanceCounts{Accepted: st.Chance.Packets, Foreign: st.ChanceForeign.Packets, Rebounded: st.Rebounded.Packets}
	}
	return s
}

// stateOf is the state of this director.
func stateOf(r *core.Report) string {
	switch {
	case r.Table == nil || !r.Member:
		if r.Leaving {
			return control.StateClosed
		}
		return control.StateJoining
	case r.Draining || r.Leaving:
		return control.StateDraining
	case len(r.Table.Members) > 1 && (r.Alone || r.Table.Policy == coord.Quorum && !r.Majority):
		return control.StateIsolated
	case r.Lapsed || !r.Fits:
		return control.StateClosed
	}
	return control.StateMember
}

// founderIn is who founded the line of a table, which names an incarnation: its name, as long as it is known.
func founderIn(r *core.Report, t *coord.Table) string {
	for i := range r.Members {
		if r.Members[i].Incarnation == t.Line.Node {
			return r.Members[i].Name
		}
	}
	for _, m := range t.Members {
		if m.Incarnation == t.Line.Node {
			return m.Name
		}
	}
	return hexDigits(t.Line.Node)
}

func nameIn(r *core.Report, node uint64) string {
	for i := range r.Members {
		if r.Members[i].Node == node {
			return r.Members[i].Name
		}
	}
	if r.Table != nil {
		if i := r.Table.MemberIndex(node); i >= 0 {
			return r.Table.Members[i].Name
		}
	}
	return hexDigits(node)
}

// countOwners counts buckets by the index of owner and next owner.
func countOwners(t *coord.Table) (own, next [256]int) {
	if t != nil {
		for b := range t.Owner {
			own[t.Owner[b]]++
			next[t.Next[b]]++
		}
	}
	return own, next
}

func (d *daemon) member(r *core.Report, e *core.MemberReport, now time.Time, own, next [256]int) control.Member {
	m := control.Member{
		Node: e.Name, Links: []control.Link{}, Incarnation: hexDigits(e.Incarnation), Self: e.Self, LastHeardMS: control.Never,
		Weight: int(e.Said.Weight), Open: int(e.Said.Open), Synced: e.Said.State&coord.StateSynced != 0, Usable: e.Said.State&coord.StateUsable != 0,
		Pings: int(e.Said.Pings), Term: e.Said.Term, Version: e.Said.Counts.Version, UptimeMS: int64(e.Said.UptimeMS),
	}
	if e.Index >= 0 {
		m.Owned, m.Next, m.Master = own[e.Index], next[e.Index], r.Table.Master == e.Node
	}
	if e.Self {
		d.coord.mu.Lock()
		m.Weight = int(d.Options.Weight)
		d.coord.mu.Unlock()
		m.State, m.Open, m.LastHeardMS = stateOf(r), len(bucketsOf(r.Open)), 0
		return m
	}
	for i, at := range e.Links {
		l := control.Link{Interface: d.Options.Interfaces[i], LastHeardMS: control.Never}
		if !at.IsZero() {
			l.LastHeardMS = now.Sub(at).Milliseconds()
		}
		m.Links = append(m.Links, l)
	}
	if !e.LastHeard.IsZero() {
		m.LastHeardMS = now.Sub(e.LastHeard).Milliseconds()
	}
	switch s := e.Said.State; {
	case e.Index < 0:
		m.State = control.StateJoining
	case !e.Heard:
		m.State = control.StateDead
	case s&(coord.StateDrains|coord.StateLeaves) != 0:
		m.State = control.StateDraining
	case s&coord.StateDeaf != 0:
		m.State = control.StateIsolated
	case s&coord.StateLapsed != 0 || s&coord.StateFits == 0:
		m.State = control.StateClosed
	default:
		m.State = control.StateMember
	}
	return m
}

// buckets is who owns what.
func buckets(r core.Report) control.Buckets {
	b := control.Buckets{Node: r.Node, Members: []string{}, Owner: []byte{}, Next: []byte{}, Open: flow.FormatBuckets(nil, 1)}
	t := r.Table
	if t == nil {
		return b
	}
	b.Term, b.Version, b.Buckets, b.Members, b.Owner, b.Next = t.Term, t.Version, len(t.Owner), core.Names(t), t.Owner, t.Next
	if time.Now().Before(r.Lease) {
		b.Open = flow.FormatBuckets(bucketsOf(r.Open), len(t.Owner))
	}
	return b
}

// which tells who answers a flow.
func (d *daemon) which(q url.Values) (any, error) {
	req, err := control.ParseWhichRequest(q)
	if err != nil {
		return nil, err
	}
	r := d.report()
	fn, _ := d.virtuals.local()
	if r.Table != nil {
		fn = r.Table.Function
	}
	functions := map[netip.Addr]flow.Function{}
	for _, v := range fn.Virtuals {
		functions[v.Address] = functionOf(&fn, v)
	}
	f, err := req.Function(functions)
	if err != nil {
		return nil, err
	}
	n := int(f.Bucket(req.Source, req.Destination))
	w := control.Which{Bucket: n, Sense: f.Sense.String(), Mask: int(f.Mask4)}
	if req.Source.Addr().Is6() {
		w.Mask = int(f.Mask6)
	}
	if t := r.Table; t != nil {
		w.Term, w.Version = t.Term, t.Version
		if o := t.Owner[n]; o != coord.NoMember {
			w.Owner = t.Members[o].Name
		}
		if o := t.Next[n]; o != coord.NoMember {
			w.Next = t.Members[o].Name
		}
		w.Open = len(r.Open) > n/64 && r.Open[n/64]&(1<<(n%64)) != 0 && time.Now().Before(r.Lease)
	}
	return w, nil
}

// drainLimit is for how long a director is waited for.
const drainLimit = 30 * time.Second

// drain tells a director to own nothing, or to take part again, and waits until it does.
func (d *daemon) drain(verb coord.Verb) func(context.Context, url.Values, func(any) error) error {
	return func(ctx context.Context, q url.Values, emit func(any) error) error {
		req, err := control.ParseDrainRequest(q)
		if err != nil {
			return err
		}
		if req.Node == "" {
			req.Node = d.Options.Node
		}
		begin := time.Now()
		sum := control.DrainSummary{Node: req.Node}
		d.coord.step(func(now time.Time, k *core.Core) {
			k.Tick(now)
			err = k.Order(req.Node, verb)
		})
		if err != nil {
			return fmt.Errorf("%w: %w", control.ErrBadRequest, err)
		}
		ctx, cancel := context.WithTimeout(ctx, drainLimit)
		defer cancel()
		state := func(k *core.Core) (owned, open int, member bool) {
			r := k.Report(time.Now())
			own, _ := countOwners(r.Table)
			for i := range r.Members {
				if m := &r.Members[i]; m.Node == uint64(peer.IDOf(req.Node)) && m.Index >= 0 {
					open = int(m.Said.Open)
					if m.Self {
						open = len(bucketsOf(r.Open))
					}
					return own[m.Index], open, true
				}
			}
			return 0, 0, false
		}
		why := "the director has not obeyed"
		err = d.coord.wait(ctx, func(k *core.Core) bool {
			sum.Obeyed = k.Obeyed()
			var member bool
			sum.Owned, sum.Open, member = state(k)
			if !sum.Obeyed || !req.Wait {
				return sum.Obeyed
			}
			if verb == coord.VerbDrain {
				why = "it still owns buckets: no other director is eligible to take them"
				return sum.Owned == 0 && sum.Open == 0
			}
			why = "it owns nothing yet"
			return member && sum.Owned > 0
		})
		if sum.Complete = err == nil; err != nil {
			sum.Why = why
		}
		sum.TookMS = time.Since(begin).Milliseconds()
		return emit(control.DrainLine{Summary: &sum})
	}
}

// serveHistory tells what has happened, and what happens.
func (d *daemon) serveHistory(ctx context.Context, q url.Values, emit func(any) error) error {
	req, err := control.ParseHistoryRequest(q)
	if err != nil {
		return err
	}
	events, next := d.history(0)
	if req.Last >= 0 && len(events) > req.Last {
		events = events[len(events)-req.Last:]
	}
	for {
		for _, e := range events {
			if err := emit(e); err != nil {
				return err
			}
		}
		if !req.Follow {
			return nil
		}
		d.coord.mu.Lock()
		changed := d.coord.changed
		d.coord.mu.Unlock()
		if events, next = d.history(next); len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (d *daemon) history(since uint64) ([]control.Event, uint64) {
	d.coord.mu.Lock()
	defer d.coord.mu.Unlock()
	return d.coord.history.since(since)
}
