package saru

import (
	"context"
	"errors"
	"log/slog"
	"math/bits"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"saru/lib/flow"
	"saru/lib/ipvs"
	"saru/netfilter/share"
	"saru/proto/coord"
)

// lookTime is how often services are looked at.
const lookTime = time.Second

// ftpPort is that of FTP's control connections: their data connections must come to the same director.
const ftpPort = 21

// ikePort and natTraversalPort are IKE's (RFC 7296 section 2): both, and ESP, must come to the same director.
const (
	ikePort          = 500
	natTraversalPort = 4500
)

// virtuals are the addresses that this director shares, as configured and as found in IPVS.
type virtuals struct {
	log *slog.Logger

	mu       sync.Mutex
	fixed    []netip.Addr
	auto     bool
	sense    flow.Sense
	senses   map[netip.Addr]flow.Sense
	services map[netip.Addr][]share.Service
	function coord.Function
	usable   bool
}

// configure takes over options.
func (v *virtuals) configure(o *Options) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fixed, v.auto, v.sense, v.senses = o.Virtuals, o.VirtualAuto, o.Sense, o.Senses
}

// kernelService is a service of IPVS with its destinations.
type kernelService struct {
	ipvs.Service
	destinations []ipvs.Destination
}

// look reads IPVS, where there is one, and reports whether anything has changed.
func (v *virtuals) look(s ipvs.Services) (changed bool, err error) {
	var list []kernelService
	if s != nil {
		services, err := s.Services()
		if err != nil {
			return false, err
		}
		for _, svc := range services {
			d, err := s.Destinations(svc)
			if errors.Is(err, ipvs.ErrNotFound) {
				continue // deleted meanwhile
			}
			if err != nil {
				return false, err
			}
			list = append(list, kernelService{svc, d})
		}
	}
	return v.take(list), nil
}

// take derives the share function from services: see DESIGN 4.4 for what is by source address alone.
func (v *virtuals) take(list []kernelService) (changed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	addrs := slices.Clone(v.fixed)
	services := map[netip.Addr][]share.Service{}
	usable := true
	bySource := map[netip.Addr]uint8{} // mask
	var marks []kernelService
	for _, s := range list {
		if s.Fwmark != 0 {
			marks = append(marks, s)
			continue
		}
		a := s.Address.Unmap()
		if isTick(a, s) {
			continue
		}
		if v.auto && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
		if !slices.Contains(addrs, a) {
			continue
		}
		usable = usable && hasDestination(s.destinations)
		out := share.Service{Protocol: s.Protocol, Port: s.Port}
		for _, d := range s.destinations {
			switch d.Method {
			case ipvs.MethodMasq:
				out.NAT = true
				out.Destinations = append(out.Destinations, netip.AddrPortFrom(d.Address.Unmap(), d.Port))
			case ipvs.MethodLocal:
				out.Local = true
			}
		}
		services[a] = append(services[a], out)
		ftp := s.Protocol == unix.IPPROTO_TCP && s.Port == ftpPort
		ike := s.Protocol == unix.IPPROTO_UDP && (s.Port == ikePort || s.Port == natTraversalPort)
		if s.Flags&ipvs.ServicePersistent != 0 || s.PEName != "" || ftp || ike {
			mask := persistMask(s.Service)
			if old, ok := bySource[a]; !ok || mask < old {
				bySource[a] = mask
			}
		}
	}
	for _, s := range marks { // a mark may be on packets to any address
		usable = usable && hasDestination(s.destinations)
		for _, a := range addrs {
			if a.Is4() != (s.Family == unix.AF_INET6) {
				services[a] = append(services[a], share.Service{Fwmark: s.Fwmark})
				if s.Flags&ipvs.ServicePersistent != 0 {
					if old, ok := bySource[a]; !ok || persistMask(s.Service) < old {
						bySource[a] = persistMask(s.Service)
					}
				}
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	fn := coord.Function{Buckets: flow.Default.Buckets, Seed: flow.Default.Seed}
	for _, a := range addrs {
		e := coord.Virtual{Address: a, Fields: uint8(v.senseOf(a)), Mask: uint8(a.BitLen())}
		if mask, ok := bySource[a]; ok {
			e.Fields, e.Mask = uint8(flow.SenseOf(flow.SrcAddr)), mask
		}
		fn.Virtuals = append(fn.Virtuals, e)
	}
	changed = v.usable != usable || !reflect.DeepEqual(v.services, services) || !reflect.DeepEqual(v.function, fn)
	v.usable, v.services, v.function = usable, services, fn
	return changed
}

// isTick reports whether a service is that of syncd's tick (DESIGN 3.1), which is never taken for a virtual address: its real server is the other end
// of the tap, which has the address that follows.
func isTick(a netip.Addr, s kernelService) bool {
	const port = 8848
	return s.Protocol == unix.IPPROTO_TCP && s.Port == port && len(s.destinations) == 1 && s.destinations[0].Address.Unmap() == a.Next()
}

func (v *virtuals) senseOf(a netip.Addr) flow.Sense {
	if s, ok := v.senses[a]; ok {
		return s
	}
	return v.sense
}

func hasDestination(list []ipvs.Destination) bool {
	return slices.ContainsFunc(list, func(d ipvs.Destination) bool { return d.Weight > 0 })
}

// persistMask is how many bits of the client's address a persistent service looks at.
func persistMask(s ipvs.Service) uint8 {
	full := uint8(32)
	if s.Address.IsValid() && s.Address.Is6() || s.Family == unix.AF_INET6 {
		full = 128
	}
	switch {
	case s.Netmask == 0:
		return full
	case full == 128:
		return uint8(min(s.Netmask, 128))
	}
	return uint8(bits.OnesCount32(s.Netmask))
}

// local returns the share function, and whether every service can be used.
func (v *virtuals) local() (coord.Function, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.function, v.usable
}

// filter makes the filter's addresses: those of the agreed function are open, others that this director has stay closed. Those of the agreed function that it does
// not have, or not any more, are closed as well: it gets their packets, and would answer connections of other directors with resets.
func (v *virtuals) filter(agreed *coord.Function) []share.Virtual {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []share.Virtual
	for _, e := range v.function.Virtuals {
		out = append(out, share.Virtual{
			Address: e.Address, Sense: flow.Sense(e.Fields), Mask: e.Mask, Services: v.services[e.Address],
			Open: agreed != nil && slices.Contains(agreed.Virtuals, e),
		})
	}
	if agreed == nil {
		return out
	}
	for _, e := range agreed.Virtuals {
		if !slices.ContainsFunc(v.function.Virtuals, func(own coord.Virtual) bool { return own.Address == e.Address }) {
			out = append(out, share.Virtual{Address: e.Address, Sense: flow.Sense(e.Fields), Mask: e.Mask})
		}
	}
	return out
}

// watchLocal looks after what can change on this machine: services, syncd, ping nodes, links.
func (d *daemon) watchLocal(ctx context.Context) error {
	t := time.NewTicker(lookTime)
	defer t.Stop()
	for {
		d.lookLocal()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-d.look:
		}
	}
}

func (d *daemon) lookLocal() {
	changed, err := d.virtuals.look(d.services)
	if err != nil {
		d.log.Warn("look at the services", "error", err)
	}
	if changed {
		d.worker.servicesChanged()
	}
	for _, l := range d.conn.Links() {
		if stale, err := l.Stale(); err == nil && stale {
			if err := l.Rejoin(); err != nil {
				d.log.Warn("join again", "interface", l.Interface(), "error", err)
			} else {
				d.log.Info("interface joined again", "interface", l.Interface(), "index", l.Index())
			}
		}
	}
	d.tellLocal()
}

// lookSoon asks for that without waiting for the next second.
func (d *daemon) lookSoon() {
	select {
	case d.look <- struct{}{}:
	default:
	}
}
