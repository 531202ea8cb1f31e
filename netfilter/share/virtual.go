package share

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

// address builds the chains of one virtual address.
type address struct {
	*builder
	v          Virtual
	is4        bool
	own, other string // counters
	whole      flow.Function
	source     flow.Function // of the source address
}

// virtual adds the chains and sets of a virtual address.
func (b *builder) virtual(v Virtual) {
	a := address{builder: b, v: v, is4: v.Address.Is4(), own: named("own", v.Address), other: named("foreign", v.Address), whole: b.cfg.function(v)}
	a.source = a.whole
	a.source.Sense = flow.SenseOf(flow.SrcAddr)
	b.addCounter(a.own)
	b.addCounter(a.other)
	entry := named("vip", v.Address)
	if v.Open {
		a.open(entry)
	} else {
		b.addChain(entry, append(a.neighbour(), a.drop("this address is closed"))...)
	}
	b.addElement(virtualMap(a.is4), jumpElement(v.Address.AsSlice(), entry))
	b.addElement(addressSet(a.is4), nftables.SetElement{Key: v.Address.AsSlice()})
}

// open adds the chains of an address that is open. Each decides about one kind of packets alone and drops what is left: no packet may come to another rule
// that looks at other fields, and be accepted by a second director there.
func (a address) open(entry string) {
	ports, failed := named("ports", a.v.Address), named("error", a.v.Address)
	sets := a.serviceSets()
	var main []rule
	for _, p := range portedProtocols {
		a.addElement(portedMap(a.is4), jumpElement(keyHost(p, a.v.Address), ports))
	}
	a.addChain(ports, slices.Concat(a.bySource(sets, direct(a.is4), "source"), a.decide(direct(a.is4), a.whole, ""))...)

	icmp, errors := uint8(unix.IPPROTO_ICMPV6), setErrors6
	if a.is4 {
		icmp, errors = unix.IPPROTO_ICMP, setErrors4
	}
	icmpType := place{th, 0, 1}
	ported := []expr.Any{meta(expr.MetaKeyL4PROTO, word(0)), in(setPorted), count(a.other), verdict(expr.VerdictDrop)}
	main = append(main, rule{ported, "only in the middle of a change"})
	main = append(main, a.neighbour()...)
	main = append(main, rule{join(protocol(icmp), []expr.Any{icmpType.load(word(0)), in(errors), gotoChain(failed)}), "errors follow their connection"})
	if f := a.cfg.ipsecFunction(a.v, a.source); f != a.source {
		for _, p := range []uint8{unix.IPPROTO_ESP, unix.IPPROTO_AH} {
			main = append(main, rule{join(protocol(p), []expr.Any{gotoChain(a.sourceChain("source", direct(a.is4), f))}), "as IKE"})
		}
	}
	a.addChain(entry, append(main, rule{[]expr.Any{gotoChain(a.sourceChain("source", direct(a.is4), a.source))}, "everything else"})...)
	a.addChain(failed, slices.Concat(a.parsed(), a.bySource(sets, embedded(a.is4), "client"), a.decide(embedded(a.is4), a.whole, ""))...)
}

// decide ends a chain: own buckets pass, all else is dropped.
func (a address) decide(v view, f flow.Function, comment string) []rule {
	return []rule{
		{join(family(a.is4), jhash(v, f), []expr.Any{in(setOwned)}, leased(), []expr.Any{count(a.own), verdict(expr.VerdictAccept)}), comment},
		a.drop(""),
	}
}

func (a address) drop(comment string) rule {
	return rule{[]expr.Any{count(a.other), verdict(expr.VerdictDrop)}, comment}
}

// neighbour lets neighbour discovery pass.
func (a address) neighbour() []rule {
	if a.is4 {
		return nil
	}
	icmpType := place{th, 0, 1}
	return []rule{{join(protocol(unix.IPPROTO_ICMPV6), []expr.Any{icmpType.load(word(0)), in(setNeighbour), verdict(expr.VerdictAccept)}), ""}}
}

// parsed sends errors whose inner header is not as expected elsewhere.
func (a address) parsed() []rule {
	v := embedded(a.is4)
	client := gotoChain(a.sourceChain("client", v, a.source))
	var rules []rule
	if a.is4 {
		version, fragment := place{th, icmpHeader, 1}, place{th, icmpHeader + 6, 2}
		rules = append(rules,
			rule{[]expr.Any{version.load(word(0)), compare(expr.CmpOpNeq, 0x45), client}, "inner header with options"},
			rule{[]expr.Any{fragment.load(word(0)), mask(2, word(0), []byte{0x1f, 0xff}), compare(expr.CmpOpNeq, 0, 0), client}, "inner header of a later fragment"},
		)
	}
	return append(rules, rule{[]expr.Any{v.protocol.load(word(0)), notIn(setPorted), client}, "inner header without ports"})
}

// sourceChain makes, once, the chain that decides by the source address alone, and returns its name.
func (a address) sourceChain(what string, v view, f flow.Function) string {
	f.Sense = flow.SenseOf(flow.SrcAddr)
	name := namedMask(what, sourceBits(f, a.v.Address), a.v.Address)
	if !a.hasChain(name) {
		a.addChain(name, a.decide(v, f, "")...)
	}
	return name
}

// serviceSet holds services that are balanced by source with the same mask.
type serviceSet struct {
	name     string
	function flow.Function
	rest     uint8 // not 0: this function is for all ports of the protocol that are not in the set
}

// serviceSets adds the sets of services by source: first those of certain ports, then those of the rest of a protocol.
func (a address) serviceSets() []serviceSet {
	var certain, rest []serviceSet
	for _, s := range a.v.Services {
		if !s.bySource() {
			continue
		}
		f := a.v.bySourceFunction(a.source, s)
		if s.Port != 0 {
			name := namedMask("by-source", sourceBits(f, a.v.Address), a.v.Address)
			if !slices.ContainsFunc(certain, func(have serviceSet) bool { return have.name == name }) {
				a.addSet(&nftables.Set{Name: name, KeyType: typeProtocolPort, Comment: "services balanced by source"})
				certain = append(certain, serviceSet{name: name, function: f})
			}
			a.addElement(name, nftables.SetElement{Key: keyProtocolPort(s.Protocol, s.Port)})
		}
		if s.takesRest() {
			rest = slices.DeleteFunc(rest, func(have serviceSet) bool { return have.rest == s.Protocol }) // the last one counts, as in FunctionOf
			rest = append(rest, serviceSet{name: named("services", a.v.Address), function: f, rest: s.Protocol})
		}
	}
	if len(rest) > 0 {
		name := rest[0].name
		a.addSet(&nftables.Set{Name: name, KeyType: typeProtocolPort, Comment: "services"})
		for _, s := range a.v.Services {
			if s.Fwmark == 0 && s.Port != 0 {
				a.addElement(name, nftables.SetElement{Key: keyProtocolPort(s.Protocol, s.Port)})
			}
		}
	}
	return append(certain, rest...)
}

// bySource sends packets of services by source elsewhere.
func (a address) bySource(sets []serviceSet, v view, what string) []rule {
	var rules []rule
	for _, s := range sets {
		chain := gotoChain(a.sourceChain(what, v, s.function))
		proto := meta(expr.MetaKeyL4PROTO, word(0))
		if v.protocol.len > 0 {
			proto = v.protocol.load(word(0))
		}
		if s.rest == 0 {
			rules = append(rules, rule{[]expr.Any{proto, v.dport.load(word(1)), in(s.name), chain}, ""})
			continue
		}
		rules = append(rules, rule{[]expr.Any{proto, compare(expr.CmpOpEq, s.rest), proto, v.dport.load(word(1)), notIn(s.name), chain}, "ports without a service"})
	}
	return rules
}

// late adds the chain of an address that drops at input what IPVS did not take of its services.
func (b *builder) late(v Virtual) {
	counter := named("late", v.Address)
	drop := []expr.Any{count(counter), verdict(expr.VerdictDrop)}
	var rules []rule
	for _, s := range v.Services {
		switch {
		case s.Local:
		case s.Fwmark != 0:
			mark := compare(expr.CmpOpEq, nativeUint32(s.Fwmark)...)
			rules = append(rules, rule{join([]expr.Any{meta(expr.MetaKeyMARK, word(0)), mark}, drop), ""})
		case s.Port == 0:
			rules = append(rules, rule{join(protocol(s.Protocol), drop), ""})
		default:
			port := direct(v.Address.Is4()).dport
			rules = append(rules, rule{join(protocol(s.Protocol), []expr.Any{port.load(word(0)), compare(expr.CmpOpEq, byte(s.Port>>8), byte(s.Port))}, drop), ""})
		}
	}
	if len(rules) == 0 {
		return
	}
	b.addCounter(counter)
	b.addChain(counter, rules...)
	b.addElement(lateMap(v.Address.Is4()), jumpElement(v.Address.AsSlice(), counter))
}
