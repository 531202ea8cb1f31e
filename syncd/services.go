package syncd

import (
	"net/netip"

	"saru/lib/ipvs"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// services remembers which virtual services with which real servers this kernel had.
type services struct {
	known map[ipvs.Service]map[netip.AddrPort]bool
}

// update takes the present services and returns those that have come, or have got another real server, since the last time: entries
// that were injected before are not bound to them. The first time, everything has come.
func (s *services) update(list []tap.Service) []engine.Service {
	var came []engine.Service
	now := map[ipvs.Service]map[netip.AddrPort]bool{}
	for _, svc := range list {
		key, dests := svc.Key(), map[netip.AddrPort]bool{}
		old, known := s.known[key]
		grown := !known
		for _, d := range svc.Destinations {
			at := netip.AddrPortFrom(d.Address, d.Port)
			dests[at] = true
			grown = grown || !old[at]
		}
		now[key] = dests
		if grown && len(dests) > 0 {
			e := engine.Service{Protocol: svc.Protocol, Fwmark: svc.Fwmark}
			if svc.Fwmark == 0 {
				e.Virtual = netip.AddrPortFrom(svc.Address, svc.Port)
			}
			came = append(came, e)
		}
	}
	s.known = now
	return came
}
