package share

import (
	"bytes"
	"fmt"
	"math/bits"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// desired is what the kernel's table should be.
type desired struct {
	content
	flags   uint32
	owned   []uint64
	changes uint64
}

// inspect says in words how the kernel's table differs from the desired one; empty: not at all. Lease and fence may have ended, but nobody may have
// put elements without an end into them.
func inspect(namespace int, want desired) (why string, err error) {
	c, err := reader(namespace)
	if err != nil {
		return "", err
	}
	name := want.table.Name
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list nftables tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if i < 0 {
		return "table " + name + " was deleted", nil
	}
	// google/nftables v0.3.0 reads this number in the machine's byte order; the kernel sends it in the network's.
	if have := tables[i].Flags; have != want.flags && have != bits.ReverseBytes32(want.flags) {
		return "table " + name + " has got other flags", nil // such as dormant, which switches it off
	}
	if why, err = want.inspectChains(c); why != "" || err != nil {
		return why, err
	}
	return want.inspectSets(c)
}

func (want desired) inspectChains(c *nftables.Conn) (why string, err error) {
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	have := slices.DeleteFunc(all, func(ch *nftables.Chain) bool { return ch.Table == nil || ch.Table.Name != want.table.Name })
	for _, w := range want.chains {
		i := slices.IndexFunc(have, func(ch *nftables.Chain) bool { return ch.Name == w.chain.Name })
		if i < 0 {
			return "chain " + w.chain.Name + " was deleted", nil
		}
		if !sameChain(have[i], w.chain) {
			return "chain " + w.chain.Name + " was changed", nil
		}
		if w.chain.Name == chainDefragment {
			continue // google/nftables v0.3.0 cannot read a tproxy expression
		}
		rules, err := c.GetRules(want.table, w.chain)
		if err != nil {
			return "", fmt.Errorf("list rules of chain %s: %w", w.chain.Name, err)
		}
		if !slices.EqualFunc(rules, w.rules, sameRule) {
			return "rules of chain " + w.chain.Name + " were changed", nil
		}
	}
	if len(have) != len(want.chains) {
		return "a chain was added", nil
	}
	return "", nil
}

func (want desired) inspectSets(c *nftables.Conn) (why string, err error) {
	for _, w := range want.sets {
		elements, err := c.GetSetElements(w.set)
		if err != nil {
			return "", fmt.Errorf("list set %s: %w", w.set.Name, err)
		}
		switch w.set.Name {
		case setLease, setFence:
			if slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.Timeout == 0 }) {
				return "set " + w.set.Name + " was changed", nil
			}
			continue
		case setOwned:
			w.elements = nil
			for i, word := range want.owned {
				w.elements = appendBuckets(w.elements, i, word)
			}
		}
		if len(elements) != len(w.elements) || len(without(w.elements, elements)) > 0 {
			return "set " + w.set.Name + " was changed", nil
		}
	}
	return "", nil
}

func sameChain(a, b *nftables.Chain) bool {
	return a.Type == b.Type && samePointer(a.Hooknum, b.Hooknum) && samePointer(a.Priority, b.Priority) && samePointer(a.Policy, b.Policy)
}

func samePointer[T comparable](a, b *T) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func sameRule(have *nftables.Rule, want rule) bool {
	return bytes.Equal(have.UserData, want.userData()) && slices.EqualFunc(have.Exprs, want.exprs, func(h, w expr.Any) bool {
		return reflect.DeepEqual(h, w)
	})
}

// Finding is what Check found to be missing.
type Finding string

// Check says what this kernel lacks for a configuration. It changes nothing: what it tries is made and deleted within one transaction.
func Check(cfg Config) ([]Finding, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	var findings []Finding
	for _, p := range probes(cfg) {
		if err := s.probe(cfg.Table+"-check", p.fill, p.flags); err != nil {
			findings = append(findings, Finding(fmt.Sprintf("%s: %v", p.what, err)))
		}
	}
	return findings, nil
}

type probe struct {
	what  string
	flags uint32
	fill  func(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) error
}

// probes are the expressions beyond the simplest, and what they are good for.
func probes(cfg Config) []probe {
	rule := func(exprs ...expr.Any) func(*nftables.Conn, *nftables.Table, *nftables.Chain) error {
		return func(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) error {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
			return nil
		}
	}
	port := &expr.Immediate{Register: word(0), Data: binaryutil.BigEndian.PutUint16(1)}
	out := []probe{
		{"nftables", 0, rule()},
		{"the expression jhash (module nft_hash)", 0, rule(direct4.src.load(word(0)),
			&expr.Hash{SourceRegister: word(0), DestRegister: word(0), Length: 4, Modulus: 2, Seed: 1, Type: expr.HashTypeJenkins})},
		{"sets with timeouts", 0, func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) error {
			return c.AddSet(&nftables.Set{Table: t, Name: setLease, KeyType: nftables.TypeNFProto, HasTimeout: true}, timed(leaseKeys, defaultSlack))
		}},
		{"counters with names", 0, func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) error {
			c.AddObj(&nftables.CounterObj{Table: t, Name: "probe"})
			return nil
		}},
		{"defragmentation before the filter (module nft_tproxy): fragmented datagrams will be dropped", 0,
			rule(port, &expr.TProxy{Family: 0, RegPort: word(0)})},
		{"protection of the table by flags owner and persist (Linux 6.9): a foreign flush opens it until it is mended", protectedFlags, rule()},
	}
	if cfg.Inside != "" || len(cfg.MAC) > 0 {
		out = append(out, probe{"the expression fib (modules nft_fib, nft_fib_inet)", 0, rule(&expr.Fib{Register: word(0), ResultADDRTYPE: true, FlagDADDR: true})})
	}
	if len(cfg.Masquerade) > 0 {
		out = append(out, probe{"masquerading (module nft_masq)", 0, func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) error {
			post := c.AddChain(&nftables.Chain{Table: t, Name: "post", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
			c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: []expr.Any{&expr.Masq{}}})
			return nil
		}})
	}
	return out
}

// probe makes a dormant table with something in it, and deletes it, in one transaction.
func (s *socket) probe(name string, fill func(*nftables.Conn, *nftables.Table, *nftables.Chain) error, flags uint32) error {
	msgs, err := encode(func(c *nftables.Conn) error {
		t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
		c.AddTable(t)
		ch := c.AddChain(&nftables.Chain{Table: t, Name: "probe"})
		if err := fill(c, t, ch); err != nil {
			return err
		}
		c.DelTable(t)
		return nil
	})
	if err == nil {
		err = withFlags(msgs, flags|flagDormant)
	}
	if err != nil {
		return err
	}
	return s.commit(msgs)
}
