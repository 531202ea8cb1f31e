package saru

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector gives Prometheus what status tells.
type collector struct{ d *daemon }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("saru_"+name, help, labels, nil)
}

var (
	descBuckets  = describe("buckets", "Buckets by what this director is to them: owned, next or open.", "role")
	descTotal    = describe("buckets_total", "Buckets of the table.")
	descLease    = describe("lease_remaining_seconds", "What remains of this director's lease; 0: nothing is let through.")
	descTerm     = describe("term", "Term of the table that counts.")
	descVersion  = describe("version", "Version of the table that counts.")
	descMembers  = describe("members", "Members of the table, and directors that join, by state.", "state")
	descAlarms   = describe("alarms", "Alarms that are raised now.")
	descDrops    = describe("drops_total", "Datagrams that changed nothing, by reason.", "reason")
	descAccepted = describe("filter_accepted_packets_total", "Packets to a virtual address that were let through.", "virtual")
	descForeign  = describe("filter_foreign_packets_total", "Packets to a virtual address that are another director's.", "virtual")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuckets, descTotal, descLease, descTerm, descVersion, descMembers, descAlarms, descDrops, descAccepted, descForeign} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.d.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descBuckets, float64(s.Buckets.Owned), "owned")
	gauge(descBuckets, float64(s.Buckets.Next), "next")
	gauge(descBuckets, float64(s.Buckets.Open), "open")
	gauge(descTotal, float64(s.Buckets.Total))
	gauge(descLease, (time.Duration(s.Lease.RemainingMS) * time.Millisecond).Seconds())
	gauge(descTerm, float64(s.Term))
	gauge(descVersion, float64(s.Version))
	gauge(descAlarms, float64(len(s.Alarms)))
	states := map[string]int{}
	for _, m := range s.Members {
		states[m.State]++
	}
	for state, n := range states {
		gauge(descMembers, float64(n), state)
	}
	c.d.coord.mu.Lock()
	drops := c.d.coord.drops
	c.d.coord.mu.Unlock()
	for reason, n := range map[string]uint64{
		"forged": drops.Forged, "replayed": drops.Replayed, "truncated": drops.Truncated, "unknown_key": drops.UnknownKey,
		"incarnation": drops.Incarnation, "unsigned": drops.Unsigned, "own": drops.Own,
	} {
		counter(descDrops, n, reason)
	}
	for _, v := range s.Filter {
		counter(descAccepted, v.Accepted, v.Virtual)
		counter(descForeign, v.Foreign, v.Virtual)
	}
}
