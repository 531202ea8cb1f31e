package share

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

// place is where a field of a packet is.
type place struct {
	base        expr.PayloadBase
	offset, len uint32
}

// view says where the fields of a connection are in a packet, seen from the client: its address and port, the service's address and port.
type view struct {
	src, sport, dst, dport place
	// protocol is that of the connection, where it stands in the packet; in the packet's own case the kernel knows it.
	protocol place
}

const (
	nh = expr.PayloadBaseNetworkHeader
	th = expr.PayloadBaseTransportHeader
	// An ICMP or ICMPv6 error has 8 bytes before the header that it carries (RFC 792, RFC 4443 section 3).
	icmpHeader = 8
)

var (
	// RFC 791 section 3.1, RFC 8200 section 3; ports stand first in TCP, UDP and SCTP.
	direct4 = view{place{nh, 12, 4}, place{th, 0, 2}, place{nh, 16, 4}, place{th, 2, 2}, place{}}
	direct6 = view{place{nh, 8, 16}, place{th, 0, 2}, place{nh, 24, 16}, place{th, 2, 2}, place{}}
	// An error's header was sent to the client by the service. Without IPv4 options it has 20 bytes.
	error4 = view{place{th, icmpHeader + 16, 4}, place{th, icmpHeader + 20 + 2, 2}, place{th, icmpHeader + 12, 4}, place{th, icmpHeader + 20, 2}, place{th, icmpHeader + 9, 1}}
	error6 = view{place{th, icmpHeader + 24, 16}, place{th, icmpHeader + 40 + 2, 2}, place{th, icmpHeader + 8, 16}, place{th, icmpHeader + 40, 2}, place{th, icmpHeader + 6, 1}}
)

// mirrored is the view of packets in the other direction.
func (v view) mirrored() view {
	return view{v.dst, v.dport, v.src, v.sport, v.protocol}
}

func direct(is4 bool) view {
	if is4 {
		return direct4
	}
	return direct6
}

func embedded(is4 bool) view {
	if is4 {
		return error4
	}
	return error6
}

// word is the register of the n-th 4 bytes, in the kernel's own spelling: one that begins a 16-byte register is named as such (nf_tables_api.c, nft_dump_register).
func word(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

func (p place) load(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: p.base, Offset: p.offset, Len: p.len}
}

// loadAll loads fields one behind the other, each padded to 4 bytes by the kernel. It returns how many words they have.
func loadAll(places ...place) (exprs []expr.Any, words uint32) {
	for _, p := range places {
		exprs = append(exprs, p.load(word(words)))
		words += (p.len + 3) / 4
	}
	return exprs, words
}

// jhash puts the bucket of a packet into the first register, as flow.Function.Bucket tells it.
func jhash(v view, f flow.Function) []expr.Any {
	at := map[flow.Field]place{flow.SrcAddr: v.src, flow.SrcPort: v.sport, flow.DstAddr: v.dst, flow.DstPort: v.dport}
	var exprs []expr.Any
	words, length := uint32(0), uint32(0)
	for _, field := range f.Sense.Fields() {
		p := at[field]
		exprs = append(exprs, p.load(word(words)))
		if field == flow.SrcAddr {
			exprs = append(exprs, maskSource(f, p.len, word(words))...)
		}
		length = p.len // of a field that stands alone
		if words > 0 || len(f.Sense.Fields()) > 1 {
			length = 4*words + (p.len+3)/4*4
		}
		words += (p.len + 3) / 4
	}
	return append(exprs, &expr.Hash{
		SourceRegister: word(0), DestRegister: word(0), Length: length, Modulus: f.Buckets, Seed: f.Seed, Type: expr.HashTypeJenkins,
	})
}

func maskSource(f flow.Function, length, reg uint32) []expr.Any {
	keep := int(f.Mask4)
	if length == 16 {
		keep = int(f.Mask6)
	}
	if keep >= int(8*length) {
		return nil
	}
	return []expr.Any{mask(length, reg, net.CIDRMask(keep, int(8*length)))}
}

func mask(length, reg uint32, bits []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: length, Mask: bits, Xor: make([]byte, length)}
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func compare(op expr.CmpOp, data ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: word(0), Data: data}
}

func meta(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }

// family asks for IPv4 or IPv6, without which the fields of a network header mean nothing in a table for both.
func family(is4 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV6)
	if is4 {
		proto = unix.NFPROTO_IPV4
	}
	return []expr.Any{meta(expr.MetaKeyNFPROTO, word(0)), compare(expr.CmpOpEq, proto)}
}

func protocol(p uint8) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO, word(0)), compare(expr.CmpOpEq, p)}
}

// ifname is a name in the kernel's fixed size; all of it is compared, or "eth1" would match "eth10".
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{meta(key, word(0)), compare(op, ifname(name)...)}
}

// in looks the first registers up in a set.
func in(set string) expr.Any { return &expr.Lookup{SourceRegister: word(0), SetName: set} }

func notIn(set string) expr.Any {
	return &expr.Lookup{SourceRegister: word(0), SetName: set, Invert: true}
}

// dispatch looks the first registers up in a map of verdicts.
func dispatch(set string) expr.Any {
	return &expr.Lookup{SourceRegister: word(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set}
}

// leased ends a rule without a match if the lease has ended.
func leased() []expr.Any { return []expr.Any{meta(expr.MetaKeyNFPROTO, word(0)), in(setLease)} }

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func gotoChain(name string) expr.Any {
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
}

// count counts in a counter with a name, which outlives the rule.
func count(counter string) expr.Any {
	return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}
}

// network compares an address with a network.
func network(p place, net4or6 netip.Prefix) []expr.Any {
	exprs := []expr.Any{p.load(word(0))}
	if net4or6.Bits() < int(8*p.len) {
		exprs = append(exprs, mask(p.len, word(0), net.CIDRMask(net4or6.Bits(), int(8*p.len))))
	}
	return append(exprs, compare(expr.CmpOpEq, net4or6.Addr().AsSlice()...))
}

// Keys of sets and maps, each field padded to 4 bytes.

func keyProtocolPort(protocol uint8, port uint16) []byte {
	return append([]byte{protocol, 0, 0, 0}, padded(port)...)
}

func keyEndpoint(protocol uint8, at netip.AddrPort) []byte {
	return slices.Concat(at.Addr().AsSlice(), keyProtocolPort(protocol, at.Port()))
}

func keyHost(protocol uint8, a netip.Addr) []byte {
	return append(a.AsSlice(), protocol, 0, 0, 0)
}

func padded(port uint16) []byte { return append(binaryutil.BigEndian.PutUint16(port), 0, 0) }

// jumpElement leads to a chain, and back if that has no rules yet (see replace).
func jumpElement(key []byte, chain string) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
