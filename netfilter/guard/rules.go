package guard

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// chain is a base chain with its rules.
type chain struct {
	chain *nftables.Chain
	rules []rule
}

// rule is a list of expressions with a comment for the operator.
type rule struct {
	exprs   []expr.Any
	comment string
}

func (r rule) rule(t *nftables.Table, ch *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{Table: t, Chain: ch, Exprs: r.exprs, UserData: r.userData()}
}

// userData is the comment in nft's own form.
func (r rule) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
}

// chains are the desired content of the table.
func chains(cfg Config, t *nftables.Table) []chain {
	in, out := iifname(expr.CmpOpEq, cfg.Device), oifname(cfg.Device)
	outside := join(iifname(expr.CmpOpNeq, "lo"), iifname(expr.CmpOpNeq, cfg.Device))

	accepted := []rule{{
		join(in, ipv4(saddr(cfg.Peer), daddr(cfg.Group.Addr())), dport(unix.IPPROTO_UDP, cfg.Group.Port()), verdict(expr.VerdictAccept)),
		"syncd to the kernel's backup thread",
	}}
	if cfg.TickPort != 0 {
		accepted = append(accepted, rule{
			join(in, ipv4(saddr(cfg.Peer), daddr(cfg.Local)), dport(unix.IPPROTO_TCP, cfg.TickPort), verdict(expr.VerdictAccept)),
			"syncd's tick, which flushes the kernel's master thread",
		})
	}
	// The order of the hooks: raw (-300) comes before connection tracking (-200) and before IPVS at output (-98); filter
	// (0) comes before IPVS at input (98) and forward (99).
	raw, filter := nftables.ChainPriorityRaw, nftables.ChainPriorityFilter
	return []chain{
		{base(t, "prerouting", nftables.ChainHookPrerouting, raw), []rule{
			{join(outside, ipv4(daddr(cfg.Local)), verdict(expr.VerdictDrop)), "nobody outside may reach the tick's service"},
			{join(outside, ipv4(daddr(cfg.Peer)), verdict(expr.VerdictDrop)), "nor syncd's end of the tap"},
			{join(in, notrack()), "no connection tracking from the tap"},
		}},
		{base(t, "input", nftables.ChainHookInput, filter), append(accepted,
			rule{join(in, verdict(expr.VerdictDrop)), "nothing else comes in from the tap"},
		)},
		{base(t, "forward", nftables.ChainHookForward, filter), []rule{
			{join(in, verdict(expr.VerdictDrop)), "nothing is forwarded from the tap"},
			{join(out, verdict(expr.VerdictDrop)), "nor into it"},
		}},
		{base(t, "output", nftables.ChainHookOutput, raw), []rule{
			{join(out, notRoot(), verdict(expr.VerdictDrop)), "no user can forge messages on the tap"},
			{join(ipv4(daddr(cfg.Local)), notRoot(), verdict(expr.VerdictDrop)), "nor use the tick's service"},
			{join(out, notrack()), "no connection tracking into the tap"},
		}},
	}
}

func base(t *nftables.Table, name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return &nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority, Policy: &policy}
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// ifname is a name in the kernel's fixed size; all of it is compared, or "syncd0" would match "syncd01".
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iifname(op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: ifname(name)},
	}
}

func oifname(name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(name)},
	}
}

// header says which bytes of the IPv4 header to compare (RFC 791).
type header struct {
	offset uint32
	addr   netip.Addr
}

func saddr(a netip.Addr) header { return header{12, a} }
func daddr(a netip.Addr) header { return header{16, a} }

// ipv4 compares addresses. In an inet table the protocol must be asked first, once, as nft itself does.
func ipv4(fields ...header) []expr.Any {
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
	for _, f := range fields {
		exprs = append(exprs,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.addr.AsSlice()},
		)
	}
	return exprs
}

// dport compares the destination port, which UDP and TCP have at the same place.
func dport(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// notRoot matches packets of a user's socket, unless the user is root. A packet without a socket, or of a kernel's socket,
// ends the rule without a match (net/netfilter/nft_meta.c, nft_meta_get_eval_skugid).
func notRoot() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: kind}}
}

func notrack() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Notrack{}}
}
