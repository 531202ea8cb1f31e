package share

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Names of what is always there.
const (
	setOwned, setLease, setFence = "owned", "lease", "fence"
	setPorted                    = "ported"
	setErrors4, setErrors6       = "icmp-errors", "icmpv6-errors"
	setNeighbour                 = "neighbour-discovery"
	chainShare, chainLate        = "share", "late"
	chainDefragment              = "defragment"
)

// portedProtocols have their ports in the first 4 bytes.
var portedProtocols = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP}

// chain is a chain with its rules. A base chain has a hook.
type chain struct {
	chain *nftables.Chain
	rules []rule
}

// rule is a list of expressions with a comment for the operator.
type rule struct {
	exprs   []expr.Any
	comment string
}

func (r rule) userData() []byte {
	if r.comment == "" {
		return nil
	}
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
}

// set is a set or a map with what is in it.
type set struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

// content is what the table should hold, apart from the elements of owned, lease and fence.
type content struct {
	table    *nftables.Table
	counters []string
	sets     []set
	chains   []chain
}

// set returns a set of the table by its name.
func (ct content) set(name string) *nftables.Set {
	for _, s := range ct.sets {
		if s.set.Name == name {
			return s.set
		}
	}
	return &nftables.Set{Table: ct.table, Name: name}
}

// builder builds a content.
type builder struct {
	content
	cfg Config
}

var (
	typeProtocolPort = concat(nftables.TypeInetProto, nftables.TypeInetService)
	typeEndpoint     = map[bool]nftables.SetDatatype{
		true:  concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
		false: concat(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService),
	}
	typeHost = map[bool]nftables.SetDatatype{
		true: concat(nftables.TypeIPAddr, nftables.TypeInetProto), false: concat(nftables.TypeIP6Addr, nftables.TypeInetProto),
	}
	typeAddress = map[bool]nftables.SetDatatype{true: nftables.TypeIPAddr, false: nftables.TypeIP6Addr}
)

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	t, _ := nftables.ConcatSetType(types...) // fails with more than 5
	return t
}

// build makes the content for a checked configuration.
func build(cfg Config, defragment bool) (content, error) {
	b := builder{cfg: cfg, content: content{table: &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyINet}}}
	// Sets with a size get the kernel's hash table of fixed size, which is faster than the growing one (nft_set_hash.c, nft_hash_estimate). Type mark: of
	// all types with 4 bytes the one that nft 1.0.6 lists best.
	b.addSet(&nftables.Set{Name: setOwned, KeyType: nftables.TypeMark, Size: cfg.Function.Buckets, Comment: "buckets that this director owns"})
	b.addSet(&nftables.Set{Name: setLease, KeyType: nftables.TypeNFProto, HasTimeout: true, Comment: "nothing is accepted when this has timed out"})
	b.addSet(&nftables.Set{Name: setFence, KeyType: nftables.TypeNFProto, HasTimeout: true, Comment: "no renewal succeeds when this has timed out"})
	b.addSet(&nftables.Set{Name: setPorted, KeyType: nftables.TypeInetProto, Comment: "protocols with ports"},
		bytesElements(portedProtocols...)...)
	// Destination unreachable, time exceeded, parameter problem (RFC 792); with packet too big, 1 to 4 (RFC 4443).
	b.addSet(&nftables.Set{Name: setErrors4, KeyType: nftables.TypeICMPType}, bytesElements(3, 11, 12)...)
	b.addSet(&nftables.Set{Name: setErrors6, KeyType: nftables.TypeICMP6Type}, bytesElements(1, 2, 3, 4)...)
	// RFC 4861 section 4.
	b.addSet(&nftables.Set{Name: setNeighbour, KeyType: nftables.TypeICMP6Type}, bytesElements(133, 134, 135, 136, 137)...)

	if defragment {
		port := binaryutil.BigEndian.PutUint16(1)
		b.addChain(chainDefragment, rule{
			[]expr.Any{&expr.Immediate{Register: word(0), Data: port}, &expr.TProxy{Family: unix.NFPROTO_UNSPEC, RegPort: word(0)}},
			"never called: that it exists makes the kernel put fragments together before these rules",
		})
	}
	for _, is4 := range []bool{true, false} {
		b.addSet(&nftables.Set{Name: portedMap(is4), KeyType: typeHost[is4], IsMap: true, DataType: nftables.TypeVerdict, Size: uint32(len(portedProtocols)) * maxVirtuals, Comment: "virtual addresses, packets with ports"})
		b.addSet(&nftables.Set{Name: virtualMap(is4), KeyType: typeAddress[is4], IsMap: true, DataType: nftables.TypeVerdict, Size: maxVirtuals, Comment: "virtual addresses"})
		b.addSet(&nftables.Set{Name: addressSet(is4), KeyType: typeAddress[is4], Comment: "all virtual addresses"})
		b.addSet(&nftables.Set{Name: lateMap(is4), KeyType: typeAddress[is4], IsMap: true, DataType: nftables.TypeVerdict, Size: maxVirtuals, Comment: "virtual addresses with services"})
	}
	for _, v := range cfg.Virtuals {
		b.virtual(v)
		b.late(v)
	}
	loopback := rule{[]expr.Any{meta(expr.MetaKeyIIF, word(0)), compare(expr.CmpOpEq, nativeUint32(loopbackIndex)...), verdict(expr.VerdictAccept)}, ""}
	share, late := []rule{loopback}, []rule{loopback}
	for _, is4 := range []bool{true, false} {
		at := join(family(is4), []expr.Any{direct(is4).dst.load(word(0))})
		// What is most has the shortest way: one look-up in the place of one and up to three comparisons saves a tenth of the price of a foreign packet.
		share = append(share, rule{join(at, []expr.Any{meta(expr.MetaKeyL4PROTO, word(direct(is4).dst.len/4)), dispatch(portedMap(is4))}), "packets with ports"})
		share = append(share, rule{join(at, []expr.Any{dispatch(virtualMap(is4))}), "all else"})
		share = append(share, rule{join(at, []expr.Any{in(addressSet(is4)), verdict(expr.VerdictDrop)}), "only in the middle of a change"})
		late = append(late, rule{join(at, []expr.Any{dispatch(lateMap(is4))}), "what IPVS did not take"})
	}
	if cfg.Inside != "" {
		inside, err := b.inside()
		if err != nil {
			return content{}, err
		}
		share = append(share, inside)
	}
	if len(cfg.MAC) > 0 && !cfg.repliesAnywhere() {
		share = append(share, b.chance())
	}
	b.addBase(chainShare, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, share...)
	b.addBase(chainLate, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRef(latePriority), late...)
	return b.content, nil
}

// loopbackIndex is the index of "lo" in every network namespace (net/core/dev.c, LOOPBACK_IFINDEX). An index is cheaper to compare than a name.
const loopbackIndex = 1

// latePriority is behind IPVS, which hooks input at 98 and 99 (net/netfilter/ipvs/ip_vs_core.c).
const latePriority = 150

func portedMap(is4 bool) string  { return familyName("ported", is4) }
func virtualMap(is4 bool) string { return familyName("virtual", is4) }
func addressSet(is4 bool) string { return familyName("address", is4) }
func lateMap(is4 bool) string    { return familyName("late", is4) }

func familyName(name string, is4 bool) string {
	if is4 {
		return name + "4"
	}
	return name + "6"
}

// named is the name of what belongs to an address, in the characters that nft takes for names.
func named(what string, a netip.Addr) string {
	return what + "-" + strings.ReplaceAll(a.String(), ":", "_")
}

func namedMask(what string, mask uint8, a netip.Addr) string {
	return named(what+strconv.Itoa(int(mask)), a)
}

func bytesElements(keys ...byte) []nftables.SetElement {
	var out []nftables.SetElement
	for _, k := range keys {
		out = append(out, nftables.SetElement{Key: []byte{k}})
	}
	return out
}

func (b *builder) addSet(s *nftables.Set, elements ...nftables.SetElement) {
	s.Table = b.table
	s.Concatenation = strings.Contains(s.KeyType.Name, " . ")
	if s.KeyType.Bytes == 4 && s.KeyType.Name == nftables.TypeMark.Name {
		s.KeyByteOrder = binaryutil.NativeEndian
	}
	b.sets = append(b.sets, set{s, elements})
}

// addElement puts an element into a set that is there. An element with the same key and value may be there; with another value it is a conflict.
func (b *builder) addElement(name string, e nftables.SetElement) bool {
	for i := range b.sets {
		s := &b.sets[i]
		if s.set.Name != name {
			continue
		}
		for _, have := range s.elements {
			if bytes.Equal(have.Key, e.Key) {
				return sameValue(have, e)
			}
		}
		s.elements = append(s.elements, e)
	}
	return true
}

func (b *builder) addCounter(name string) { b.counters = append(b.counters, name) }

func (b *builder) addChain(name string, rules ...rule) {
	b.chains = append(b.chains, chain{&nftables.Chain{Table: b.table, Name: name}, rules})
}

// hasChain says whether a chain of this name was added.
func (b *builder) hasChain(name string) bool {
	for _, ch := range b.chains {
		if ch.chain.Name == name {
			return true
		}
	}
	return false
}

func (b *builder) addBase(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...rule) {
	policy := nftables.ChainPolicyAccept
	b.chains = append(b.chains, chain{
		&nftables.Chain{Table: b.table, Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy}, rules,
	})
}

// sameValue compares what two elements of a map lead to.
func sameValue(a, b nftables.SetElement) bool {
	return chainOf(a) == chainOf(b)
}

// chainOf returns the chain that an element of a map leads to, as it was made or as it was read: then the value holds the attributes
// NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN (google/nftables does not decode them).
func chainOf(e nftables.SetElement) string {
	if e.VerdictData != nil {
		return e.VerdictData.Chain
	}
	const code, header = 8, 4
	if len(e.Val) < code+header {
		return ""
	}
	name, _, _ := bytes.Cut(e.Val[code+header:], []byte{0})
	return string(name)
}
