package reconcile

import (
	"net/netip"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
)

func anyPort(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 0) }

// judge compares an entry of the kernel with what the replica has of it; false: they agree.
func (p *Pass) judge(k *Conn, v *View) (Kind, bool) {
	switch {
	case !v.Known:
		return unknownTo(k), true
	case v.Entry.Remaining < ending:
		return Settling, true
	case v.Local:
		return own(k, &v.Entry.Record)
	}
	return p.foreign(k, v)
}

// unknownTo is about an entry of the kernel that the replica does not have.
func unknownTo(k *Conn) Kind {
	r := &k.Record
	switch {
	case k.Expires < ending:
		return Settling
	case !ipvs.Reported(r.Protocol, r.State, r.Template()):
		return Unopened
	case r.Template() && r.Flags&ipvssync.FlagSync != 0:
		return Leftover
	case k.Fault == EngineData:
		return Engine
	case k.Fault == NoServer:
		return Unserved
	}
	return MissingInReplica
}

// own is about an entry that comes from this director: the kernel is right, but may not have reported all.
func own(k *Conn, r *ipvssync.Record) (Kind, bool) {
	switch {
	case k.Expires < ending:
		return Settling, true
	case !ipvs.Reported(k.Record.Protocol, k.Record.State, k.Record.Template()):
		if k.Record.State == r.State && k.Record.Real == r.Real { // told by a flush
			return 0, false
		}
		return Ahead, true
	case k.Record.Real != r.Real:
		return OtherServer, true
	case k.Record.State == r.State:
		return 0, false
	case r.Template():
		return Ahead, true // becomes assured with a connection that has been told of
	case r.Flags&ipvssync.FlagNoOutput == 0 && ipvs.Silently(r.Protocol, r.State, k.Record.State):
		return Ahead, true
	}
	return OtherState, true
}

// foreign is about an entry of another director: what it said should be in the kernel.
func (p *Pass) foreign(k *Conn, v *View) (Kind, bool) {
	r := &v.Entry.Record
	if !p.cfg.kept(r) {
		return 0, false
	}
	if v.Entry.Age() < settle {
		return Settling, true
	}
	opening := !ipvs.Reported(k.Record.Protocol, k.Record.State, k.Record.Template())
	switch {
	case k.Record.Real != r.Real && r.Flags&ipvssync.FlagInactive != 0 && closes(r):
		return KernelKeeps, true
	case k.Record.Real != r.Real && opening && k.Record.Flags&ipvssync.FlagSync == 0:
		return Ahead, true // a client uses its port again, here
	case k.Record.Real != r.Real:
		return OtherServer, true
	case k.Record.State == r.State:
	case r.Template():
		if r.State == ipvssync.TemplateNone {
			return Ahead, true
		}
		return OtherState, true
	case opening && (k.Record.Flags&ipvssync.FlagSync == 0 || ipvs.Inactive(r.Protocol, r.State, false)):
		return Ahead, true // the same, after the former connection was closed
	default:
		return OtherState, true
	}
	if v.Entry.Remaining-k.Expires > early {
		return Expires, true
	}
	return 0, false
}

// closes reports whether an inactive record is of a connection that is being closed: templates, and connections of protocols
// without states, are always inactive.
func closes(r *ipvssync.Record) bool {
	return !r.Template() && (r.Protocol == ipvssync.ProtocolTCP || r.Protocol == ipvssync.ProtocolSCTP)
}

// absent is about an entry of the replica that the kernel has not listed.
func (p *Pass) absent(v *View) Kind {
	e := &v.Entry
	r := &e.Record
	m := p.services.find(r)
	switch {
	case e.Remaining < ending:
		return Settling
	case r.Template() && (len(r.PEName) > 0 || m.service != nil && m.service.PEName != ""):
		return Engine
	case v.Local:
		return Gone
	case !p.cfg.kept(r):
		return Elsewhere
	case e.Age() < settle:
		return Settling
	case r.Template() && p.givenUp[p.templateHash(r)]:
		return GivenUp
	case m.service != nil && !m.server:
		return Unserved
	}
	return MissingInKernel
}
