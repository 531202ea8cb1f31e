package share

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

const (
	chainChance                                           = "by-chance"
	counterChance, counterChanceForeign, counterRebounded = "own-by-chance", "foreign-by-chance", "rebounded"
)

// repliesAnywhere reports whether replies of LVS-NAT real servers may come by any interface: they are for the client's director, and cannot be told from what comes by chance.
func (c Config) repliesAnywhere() bool {
	return c.Inside == "" && slices.ContainsFunc(c.Virtuals, func(v Virtual) bool {
		return slices.ContainsFunc(v.Services, func(s Service) bool { return s.NAT || s.Fwmark != 0 })
	})
}

// chance adds the chain for frames to the shared MAC address whose packets are neither for a virtual address nor for this host, and returns the rule that leads there. All directors
// get such a frame, and each would forward it:
//   - A packet for another director's own address would come back to the shared MAC address, and to all again, until its time to live is over. It is known by its route,
//     which is the way that it came; nobody forwards it, and nobody sends a redirect. So the directors do not route between hosts of one segment.
//   - Any other is forwarded by the director that owns the bucket of its source address.
//
// What comes by the interface of real servers (Inside) is not among them: it may be a reply of a connection that IPVS alone knows, such as FTP's data.
func (b *builder) chance() rule {
	b.addCounter(counterChance)
	b.addCounter(counterChanceForeign)
	b.addCounter(counterRebounded)
	back := &expr.Fib{Register: word(0), ResultOIF: true, FlagDADDR: true, FlagIIF: true, FlagPRESENT: true}
	rules := []rule{{[]expr.Any{back, compare(expr.CmpOpEq, 1), count(counterRebounded), verdict(expr.VerdictDrop)}, "its way is the one that it came"}}
	f := b.cfg.Function
	f.Mask4, f.Mask6, f.Sense = 32, 128, flow.SenseOf(flow.SrcAddr)
	for _, is4 := range []bool{true, false} {
		rules = append(rules, rule{join(family(is4), jhash(direct(is4), f), []expr.Any{in(setOwned)}, leased(), []expr.Any{count(counterChance), verdict(expr.VerdictAccept)}), ""})
	}
	b.addChain(chainChance, append(rules, rule{[]expr.Any{count(counterChanceForeign), verdict(expr.VerdictDrop)}, ""})...)
	const ethernet = 1 // ARPHRD_ETHER, include/uapi/linux/if_arp.h
	frame := []expr.Any{
		meta(expr.MetaKeyIIFTYPE, word(0)), compare(expr.CmpOpEq, binary.NativeEndian.AppendUint16(nil, ethernet)...),
		&expr.Payload{DestRegister: word(0), Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6}, compare(expr.CmpOpEq, b.cfg.MAC...),
	}
	kind := &expr.Fib{Register: word(0), ResultADDRTYPE: true, FlagDADDR: true}
	return rule{join(frame, []expr.Any{kind, compare(expr.CmpOpEq, nativeUint32(unix.RTN_UNICAST)...), gotoChain(chainChance)}), "frames that reach the shared MAC address by chance"}
}
