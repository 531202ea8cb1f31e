package reconcile

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/tap"
)

// Service is a virtual service with its real servers.
type Service = tap.Service

// ftpPort and ftpData are FTPPORT and FTPDATA of include/net/ip_vs.h.
const (
	ftpPort = 21
	ftpData = 20
)

// services finds the service and the real server of an entry, as the kernel does for an injected one (ip_vs_ctl.c,
// ip_vs_service_find and ip_vs_find_dest).
type services struct {
	address map[addressKey]*service
	mark    map[markKey]*service
	marked  map[bool][]*service // those by mark, by family (true: IPv6)
}

type addressKey struct {
	protocol uint8
	address  netip.Addr
	port     uint16
}

type markKey struct {
	mark uint32
	six  bool
}

type service struct {
	ipvs.Service
	servers map[netip.AddrPort]uint32 // forwarding method
	hosts   map[netip.Addr]uint32     // the same without ports, for templates of many ports
}

func indexServices(list []Service) *services {
	s := &services{address: map[addressKey]*service{}, mark: map[markKey]*service{}, marked: map[bool][]*service{}}
	for _, l := range list {
		svc := &service{l.Service, map[netip.AddrPort]uint32{}, map[netip.Addr]uint32{}}
		for _, d := range l.Destinations {
			a := d.Address.Unmap()
			svc.servers[netip.AddrPortFrom(a, d.Port)] = d.Method
			svc.hosts[a] = d.Method
		}
		key := l.Service.Key()
		if six := key.Family == unix.AF_INET6; key.Fwmark != 0 {
			s.mark[markKey{key.Fwmark, six}] = svc
			s.marked[six] = append(s.marked[six], svc)
		} else {
			s.address[addressKey{key.Protocol, key.Address, key.Port}] = svc
		}
	}
	return s
}

// server returns the forwarding method of a real server of the service.
func (s *service) server(real netip.AddrPort) (method uint32, ok bool) {
	if method, ok = s.servers[real]; !ok {
		method, ok = s.servers[netip.AddrPortFrom(real.Addr(), 0)]
	}
	if !ok && real.Port() == 0 {
		method, ok = s.hosts[real.Addr()]
	}
	return method, ok
}

// match is what services know of an entry.
type match struct {
	service *service // nil: there is none; without server: the first that the kernel would look at
	server  bool     // the service has the real server
	method  uint32
	mark    uint32 // of the service
}

// find looks for the service of an entry and, if there are several, for one that has its real server. The mark is that of the
// entry's packets where it is known.
func (s *services) find(r *ipvssync.Record) (m match) {
	six := r.Is6()
	try := func(svc *service) bool {
		if svc == nil {
			return false
		}
		method, ok := svc.server(r.Real)
		if ok || m.service == nil {
			m = match{svc, ok, method, svc.Fwmark}
		}
		return ok
	}
	if r.Fwmark != 0 && try(s.mark[markKey{r.Fwmark, six}]) {
		return m
	}
	if r.Protocol == ipvssync.ProtocolIP {
		return m
	}
	at := addressKey{r.Protocol, r.Virtual.Addr(), r.Virtual.Port()}
	if try(s.address[at]) {
		return m
	}
	if r.Protocol == ipvssync.ProtocolTCP && (at.port == ftpData || at.port == 0 || at.port >= 1024) {
		at.port = ftpPort
		if try(s.address[at]) {
			return m
		}
	}
	at.port = 0
	if try(s.address[at]) || r.Fwmark != 0 {
		return m
	}
	if g := s.guess(r.Real, six); g.server {
		return g
	}
	return m
}

// guess looks for a service by mark that has a real server: of a connection /proc shows no mark. If several have it, the first will do, as
// the mark only decides whose counters another director counts it in, unless they forward in different ways.
func (s *services) guess(real netip.AddrPort, six bool) (m match) {
	for _, svc := range s.marked[six] {
		method, ok := svc.server(real)
		switch {
		case !ok:
		case !m.server:
			m = match{svc, true, method, svc.Fwmark}
		case method != m.method:
			return match{}
		}
	}
	return m
}
