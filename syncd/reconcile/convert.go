package reconcile

import (
	"hash/maphash"
	"time"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
)

// conversion says what became of a line.
type conversion uint8

const (
	converted   conversion = iota
	invalidated            // a template that the kernel has given up
	unknown                // a state or families that no record can have
)

// convert makes a record of a line.
func (s *services) convert(p *ipvs.ProcConn, c *Conn) conversion {
	if p.Invalidated {
		return invalidated
	}
	four := p.Client.Addr().Is4()
	if p.Virtual.Addr().Is4() != four || p.Real.Addr().Is4() != four {
		return unknown
	}
	state, ok := ipvs.StateNumber(p.Protocol, p.State, p.Template)
	if !ok {
		return unknown
	}
	*c = Conn{Record: ipvssync.Record{
		Protocol: p.Protocol, State: state, Fwmark: p.FwmarkService, Client: p.Client, Virtual: p.Virtual, Real: p.Real,
	}, Expires: p.Expires}
	r := &c.Record
	if p.Synced {
		r.Flags |= ipvssync.FlagSync
	}
	if p.Template {
		r.Flags |= ipvssync.FlagTemplate
	} else if p.Client.Port() == 0 {
		r.Flags |= ipvssync.FlagNoCPort
	}
	if ipvs.Inactive(p.Protocol, state, p.Template) {
		r.Flags |= ipvssync.FlagInactive
	}
	m := s.find(r)
	if m.server {
		r.Flags |= m.method & ipvssync.FlagFwdMask
		if m.method != ipvs.MethodMasq { // ip_vs_ctl.c, __ip_vs_update_dest
			r.Flags |= ipvssync.FlagNoOutput
		}
		r.Fwmark = m.mark
	} else {
		c.Fault = NoServer
	}
	if m.service != nil && m.service.PEName != "" {
		c.Fault = EngineData
	}
	left := uint32(p.Expires / time.Second)
	switch {
	case !p.Template:
		r.Timeout = max(ipvs.DefaultTimeout(p.Protocol, state, false), left, 1)
		c.Age = r.Timeout - left
	case m.service != nil:
		r.Timeout = max(uint32(m.service.Timeout/time.Second), left, 1)
	default:
		r.Timeout = max(left, 1)
	}
	return converted
}

// hashOf hashes what the kernel looks an entry up by.
func hashOf(seed maphash.Seed, r *ipvssync.Record) uint64 {
	var b [38]byte
	client, virtual := r.Client.Addr().As16(), r.Virtual.Addr().As16()
	copy(b[:], client[:])
	copy(b[16:], virtual[:])
	cp, vp := r.Client.Port(), r.Virtual.Port()
	b[32], b[33], b[34], b[35], b[36] = byte(cp>>8), byte(cp), byte(vp>>8), byte(vp), r.Protocol
	if r.Template() {
		b[37] |= 1
	}
	if r.Client.Addr().Is4() { // an IPv4 address and the IPv6 address that contains it are two
		b[37] |= 2
	}
	return maphash.Bytes(seed, b[:])
}
