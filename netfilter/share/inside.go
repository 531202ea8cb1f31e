package share

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

const (
	chainInside, chainMasquerade = "inside", "masquerade"
	counterIn, counterInForeign  = "own-inside", "foreign-inside"
)

// inside adds the chains for packets of LVS-NAT real servers and returns the rule that leads there: only to what would be forwarded, not to what is for this host.
// All directors get these packets where the servers' gateway has the shared address.
func (b *builder) inside() (rule, error) {
	b.addCounter(counterIn)
	b.addCounter(counterInForeign)
	var rules []rule
	for _, is4 := range []bool{true, false} {
		replies, hosts, failures := familyName("reply", is4), familyName("reply-host", is4), familyName("reply-error", is4)
		b.addSet(&nftables.Set{Name: replies, KeyType: typeEndpoint[is4], IsMap: true, DataType: nftables.TypeVerdict, Comment: "real servers"})
		b.addSet(&nftables.Set{Name: hosts, KeyType: typeHost[is4], IsMap: true, DataType: nftables.TypeVerdict, Comment: "real servers of all ports"})
		b.addSet(&nftables.Set{Name: failures, KeyType: typeEndpoint[is4], IsMap: true, DataType: nftables.TypeVerdict, Comment: "real servers, in the headers that errors carry"})
		v := direct(is4)
		proto := meta(expr.MetaKeyL4PROTO, word(v.src.len/4))
		from := func(last ...expr.Any) []expr.Any {
			return join(family(is4), []expr.Any{v.src.load(word(0)), proto}, last)
		}
		rules = append(rules,
			rule{from(v.sport.load(word(v.src.len/4+1)), dispatch(replies)), "replies: by the client"},
			rule{from(dispatch(hosts)), ""},
			b.failure(is4, failures),
		)
	}
	for _, v := range b.cfg.Virtuals {
		for _, s := range v.Services {
			if s.NAT && s.Fwmark == 0 {
				if err := b.replies(v, s); err != nil {
					return rule{}, err
				}
			}
		}
	}
	rules = append(rules, b.masquerade()...)
	b.addChain(chainInside, rules...)
	at := &expr.Fib{Register: word(0), ResultADDRTYPE: true, FlagDADDR: true}
	return rule{
		join(interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, b.cfg.Inside),
			[]expr.Any{at, compare(expr.CmpOpEq, nativeUint32(unix.RTN_UNICAST)...), gotoChain(chainInside)}),
		"LVS-NAT real servers: what is not for this host",
	}, nil
}

func nativeUint32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// failure leads errors about what was sent to real servers to their connections' chains. Where the inner header has other things at the places of its fields, they are
// found in no map, and the packet is as any other of that host.
func (b *builder) failure(is4 bool, failures string) rule {
	v := embedded(is4).mirrored() // the inner header went from the client to the server
	icmp, errors := uint8(unix.IPPROTO_ICMPV6), setErrors6
	var plain []expr.Any
	if is4 {
		icmp, errors = unix.IPPROTO_ICMP, setErrors4
		plain = []expr.Any{place{th, icmpHeader, 1}.load(word(0)), compare(expr.CmpOpEq, 0x45)}
	}
	key, words := loadAll(v.dst, v.protocol, v.dport)
	_ = words
	return rule{join(family(is4), protocol(icmp), []expr.Any{place{th, 0, 1}.load(word(0)), in(errors)}, plain, key, []expr.Any{dispatch(failures)}), "errors: by their connection"}
}

// replies adds the chains for what comes from a service's real servers, and the elements that lead there. Two services of the same servers must have the same share
// function, or nobody could tell to which one a reply belongs.
func (b *builder) replies(v Virtual, s Service) error {
	is4 := v.Address.Is4()
	f := b.cfg.FunctionOf(v, s.Protocol, s.Port)
	reply, failed := shareName("reply", f, is4), shareName("reply-error", f, is4)
	if !b.hasChain(reply) {
		b.addChain(reply, b.decideInside(is4, direct(is4).mirrored(), f)...)
		b.addChain(failed, b.decideInside(is4, embedded(is4).mirrored(), f)...)
	}
	for _, d := range s.Destinations {
		d = netip.AddrPortFrom(d.Addr().Unmap(), d.Port())
		var ok bool
		if d.Port() == 0 {
			ok = b.addElement(familyName("reply-host", is4), jumpElement(keyHost(s.Protocol, d.Addr()), reply))
		} else {
			key := keyEndpoint(s.Protocol, d)
			ok = b.addElement(familyName("reply", is4), jumpElement(key, reply)) && b.addElement(familyName("reply-error", is4), jumpElement(key, failed))
		}
		if !ok {
			return &RefusedError{v.Address, fmt.Errorf("its real server %v serves another address with another share function", d)}
		}
	}
	return nil
}

// shareName names a chain after its function, which several addresses may have.
func shareName(what string, f flow.Function, is4 bool) string {
	name := familyName(what, is4)
	for _, field := range f.Sense.Fields() {
		name += "-" + field.String()
	}
	bits := f.Mask6
	if is4 {
		bits = f.Mask4
	}
	return fmt.Sprintf("%s-%d", name, bits)
}

func (b *builder) decideInside(is4 bool, v view, f flow.Function) []rule {
	return []rule{
		{join(family(is4), jhash(v, f), []expr.Any{in(setOwned)}, leased(), []expr.Any{count(counterIn), verdict(expr.VerdictAccept)}), ""},
		{[]expr.Any{count(counterInForeign), verdict(expr.VerdictDrop)}, ""},
	}
}

// masquerade adds the chains for connections that servers open, and returns the rules that lead there.
func (b *builder) masquerade() []rule {
	var lead, out []rule
	for _, n := range b.cfg.Masquerade {
		is4 := n.Addr().Is4()
		name := familyName("opened", is4)
		if !b.hasChain(name) {
			b.opened(is4, name)
		}
		source := join(family(is4), network(direct(is4).src, n))
		lead = append(lead, rule{join(source, []expr.Any{gotoChain(name)}), "connections that servers open"})
		out = append(out, rule{join(source, interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, b.cfg.Inside), []expr.Any{&expr.Masq{}}), ""})
	}
	if len(out) > 0 {
		b.addBase(chainMasquerade, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, out...)
	}
	return lead
}

// opened adds the chains that give each connection of a server to one director, by the server's address and port, or address.
func (b *builder) opened(is4 bool, name string) {
	f := b.cfg.Function
	f.Mask4, f.Mask6, f.Sense = 32, 128, flow.SenseOf(flow.SrcAddr)
	b.addChain(name+"-rest", b.decideInside(is4, direct(is4), f)...)
	f.Sense = flow.SenseOf(flow.SrcAddr, flow.SrcPort)
	b.addChain(name, append([]rule{{[]expr.Any{meta(expr.MetaKeyL4PROTO, word(0)), notIn(setPorted), gotoChain(name + "-rest")}, ""}},
		b.decideInside(is4, direct(is4), f)...)...)
}
