package engine

import (
	"net/netip"
	"testing"

	"saru/proto/ipvssync"
)

// BenchmarkSelective shows what --mirror and --mirror_service save: bytes on the wire and entries in each replica for a connection, where
// each client has a template and ten connections to each of two services, and each connection is reported three times (ESTABLISHED,
// FIN_WAIT, CLOSE).
func BenchmarkSelective(b *testing.B) {
	https := netip.MustParseAddrPort("192.0.2.1:443")
	for name, filter := range map[string]Filter{
		"all": {}, "templates": {TemplatesOnly: true}, "one of two services": {Services: []Service{{Protocol: 6, Virtual: https}}},
	} {
		b.Run(name, func(b *testing.B) {
			const clients, each = 200, 10
			var bytes, entries float64
			for b.Loop() {
				var s sink
				e := benchEngine(b, "a", &s)
				e.SetFilter(filter)
				now := alone(e)
				before := e.counters[SentBytes]
				for c := range clients {
					for port := range 2 {
						var recs []ipvssync.Record
						for _, state := range []uint16{ipvssync.TCPEstablished, ipvssync.TCPFinWait, ipvssync.TCPClose} {
							for i := range each {
								r := far(c)
								r.Client, r.State = netip.AddrPortFrom(r.Client.Addr(), uint16(2000+i)), state
								if port == 1 {
									r.Virtual = https
								}
								recs = append(recs, r)
							}
						}
						template := recs[0]
						template.State, template.Timeout, template.Flags = 0, 300, ipvssync.FlagTemplate
						template.Client = netip.AddrPortFrom(template.Client.Addr(), 0)
						e.FromTap(now, kernelMessage(b, append(recs, template)...))
					}
				}
				e.Flush()
				bytes, entries = float64(e.counters[SentBytes]-before), float64(e.Len())
			}
			b.ReportMetric(bytes/(2*clients*each), "wire-bytes/conn")
			b.ReportMetric(entries/(2*clients*each), "entries/conn")
			b.ReportMetric(0, "ns/op")
		})
	}
}
