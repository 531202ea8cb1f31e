package guard

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// inspect says in words how the kernel's table differs from the desired one; empty: not at all.
func inspect(cfg Config) (why string, err error) {
	c, err := connect()
	if err != nil {
		return "", fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list nftables tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == cfg.Table })
	if i < 0 {
		return "table " + cfg.Table + " was deleted", nil
	}
	t := tables[i]
	if t.Flags != 0 {
		return "table " + cfg.Table + " has got flags", nil // such as dormant, which switches it off
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	have := slices.DeleteFunc(all, func(ch *nftables.Chain) bool { return ch.Table == nil || ch.Table.Name != cfg.Table })
	want := chains(cfg, t)
	for _, w := range want {
		i := slices.IndexFunc(have, func(ch *nftables.Chain) bool { return ch.Name == w.chain.Name })
		if i < 0 {
			return "chain " + w.chain.Name + " was deleted", nil
		}
		if !sameChain(have[i], w.chain) {
			return "chain " + w.chain.Name + " was changed", nil
		}
		rules, err := c.GetRules(t, w.chain)
		if err != nil {
			return "", fmt.Errorf("list rules of chain %s: %w", w.chain.Name, err)
		}
		if !slices.EqualFunc(rules, w.rules, sameRule) {
			return "rules of chain " + w.chain.Name + " were changed", nil
		}
	}
	if len(have) != len(want) {
		return "a chain was added", nil
	}
	return "", nil
}

func sameChain(a, b *nftables.Chain) bool {
	return a.Type == b.Type && samePointer(a.Hooknum, b.Hooknum) && samePointer(a.Priority, b.Priority) && samePointer(a.Policy, b.Policy)
}

func samePointer[T comparable](a, b *T) bool {
	return a != nil && b != nil && *a == *b
}

// sameRule compares without the counters' values.
func sameRule(have *nftables.Rule, want rule) bool {
	return bytes.Equal(have.UserData, want.userData()) && slices.EqualFunc(have.Exprs, want.exprs, func(h, w expr.Any) bool {
		if _, ok := h.(*expr.Counter); ok {
			h = &expr.Counter{}
		}
		return reflect.DeepEqual(h, w)
	})
}
