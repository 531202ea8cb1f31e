package share

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// Filter is the table in the kernel. Its methods may be called from several goroutines, and from any network namespace: they act in that of Open.
type Filter struct {
	mu        sync.Mutex
	cfg       Config
	content   content
	flags     uint32
	protect   bool
	sock      *socket
	namespace int
	closed    bool
	// owned is what the kernel's set holds; in doubt it has to be read back.
	owned []uint64
	doubt bool
	// fenced is when the kernel confirmed a fence of Period + Slack; zero: there may be none, or one of unknown length.
	fenced time.Time
	// changes counts what may have changed the kernel's table, so that Watch can tell whether it has read it in the middle.
	changes uint64
}

// Open installs the table closed, in one transaction, and returns when the kernel has it. A table of the same name is replaced, unless another process owns
// it. It needs CAP_NET_ADMIN, and acts in the network namespace of the calling thread.
func Open(cfg Config) (*Filter, error) { return open(cfg, true) }

func open(cfg Config, protect bool) (*Filter, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	f := &Filter{cfg: cfg, protect: protect, namespace: -1}
	if f.sock, err = openSocket(); err != nil {
		return nil, err
	}
	if f.namespace, err = ownNamespace(); err == nil {
		err = f.install()
	}
	if err != nil {
		f.release()
		return nil, err
	}
	return f, nil
}

func (f *Filter) release() {
	f.closed = true
	f.sock.close()
	if f.namespace >= 0 {
		_ = unix.Close(f.namespace)
	}
}

// install replaces the table by a closed one.
func (f *Filter) install() error {
	f.changes++
	f.fenced = time.Time{}
	ct, flags, err := installBest(f.sock, f.cfg, f.protect)
	if err != nil {
		f.doubt = true
		return err
	}
	f.content, f.flags, f.doubt = ct, flags, false
	f.owned = make([]uint64, f.words())
	return nil
}

func (f *Filter) words() int { return int(f.cfg.Function.Buckets+63) / 64 }

// use locks the filter for a change.
func (f *Filter) use() (done func(), err error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, os.ErrClosed
	}
	f.changes++
	return func() { f.changes++; f.mu.Unlock() }, nil
}

// commit sends a transaction.
func (f *Filter) commit(fill func(c *nftables.Conn) error) error {
	msgs, err := encode(fill)
	if err != nil || len(msgs) == 0 {
		return err
	}
	return f.sock.commit(msgs)
}

// Apply makes the set of owned buckets this one: bit b%64 of word b/64 is bucket b. Only the difference is sent, in one transaction; when Apply returns nil, the
// kernel has it. With an error the set is as it was, or unknown, and the next Apply reads it back first.
func (f *Filter) Apply(owned []uint64) error {
	done, err := f.use()
	if err != nil {
		return err
	}
	defer done()
	if len(owned) != f.words() {
		return fmt.Errorf("share: %d words of buckets, not %d", len(owned), f.words())
	}
	if rest := f.cfg.Function.Buckets % 64; rest != 0 && owned[len(owned)-1]>>rest != 0 {
		return fmt.Errorf("share: a bucket beyond %d", f.cfg.Function.Buckets)
	}
	for range 2 {
		if f.doubt {
			real, readErr := f.listing().owned()
			if readErr != nil {
				return errors.Join(err, readErr)
			}
			f.owned, f.doubt = real, false
		}
		if err = f.apply(owned); err == nil {
			return nil
		}
		f.doubt = true // an element was there or not there, or the answer was lost
	}
	return fmt.Errorf("set owned buckets: %w", err)
}

func (f *Filter) apply(owned []uint64) error {
	owned = slices.Clone(owned)
	var gone, fresh []nftables.SetElement
	for w := range owned {
		gone = appendBuckets(gone, w, f.owned[w]&^owned[w])
		fresh = appendBuckets(fresh, w, owned[w]&^f.owned[w])
	}
	err := f.commit(func(c *nftables.Conn) error {
		s := f.content.set(setOwned)
		return errors.Join(
			chunks(gone, func(part []nftables.SetElement) error { return c.SetDeleteElements(s, part) }),
			chunks(fresh, func(part []nftables.SetElement) error { return c.SetAddElements(s, part) }),
		)
	})
	if err == nil {
		f.owned = owned
	}
	return err
}

func appendBuckets(elements []nftables.SetElement, word int, set uint64) []nftables.SetElement {
	for ; set != 0; set &= set - 1 {
		bucket := uint32(64*word + bits.TrailingZeros64(set))
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(bucket)})
	}
	return elements
}

// SetVirtuals changes the virtual addresses in one transaction. Owned buckets, lease and fence stay, and the counters of addresses that stay. With a *RefusedError
// nothing has changed; the address can be given again closed and without services.
//
// When it returns nil, no packet is judged by the old addresses any more: one that was held up in the middle, by a CPU that was stopped, could otherwise get its bucket from an old share function and meet what
// this director owns by the next one.
func (f *Filter) SetVirtuals(virtuals []Virtual) error {
	if err := f.setVirtuals(virtuals); err != nil {
		return err
	}
	return passBy() // without the lock: renewals need not wait
}

func (f *Filter) setVirtuals(virtuals []Virtual) error {
	done, err := f.use()
	if err != nil {
		return err
	}
	defer done()
	cfg := f.cfg
	if cfg.Virtuals, err = cfg.checkVirtuals(virtuals); err != nil {
		return err
	}
	next, err := build(cfg, f.content.hasDefragment())
	if err != nil {
		return err
	}
	if err := f.commit(func(c *nftables.Conn) error { return replace(c, f.content, next) }); err != nil {
		return fmt.Errorf("change virtual addresses: %w", err)
	}
	f.cfg, f.content = cfg, next
	return nil
}

func (ct content) hasDefragment() bool {
	return slices.ContainsFunc(ct.chains, func(ch chain) bool { return ch.chain.Name == chainDefragment })
}

// replace turns one content into another. Rules go first, then elements that lead to chains, one by one: kernels before 6.5 release the chains that a map leads to too late for their
// deletion in the same transaction when the map is deleted as a whole.
//
// A transaction is not atomic for a packet in the middle of it: it is judged by the rules of the generation in which it came to the base chain (nf_tables_core.c, nft_do_chain), but by the
// elements that a set has when they are looked up (nft_set_elem_active). So old rules meet new elements, and a chain that an element leads to is still empty for old rules.
// None of this may let a packet through:
//   - what an element leads to returns if it is empty, to a rule that drops everything for a virtual address;
//   - a packet with ports is not judged by the chain for all else when its element has gone;
//   - a set that is no map is replaced as a whole when its elements change: for old rules the old set stays as it was.
func replace(c *nftables.Conn, old, next content) error {
	c.FlushTable(old.table)
	for _, s := range old.sets {
		i := slices.IndexFunc(next.sets, func(n set) bool { return n.set.Name == s.set.Name })
		gone := s.elements
		switch {
		case !s.set.IsMap && (i < 0 || !s.same(next.sets[i])):
			c.DelSet(s.set)
			continue
		case i >= 0:
			gone = without(s.elements, next.sets[i].elements)
		}
		if err := chunks(gone, func(part []nftables.SetElement) error { return c.SetDeleteElements(s.set, keys(part)) }); err != nil {
			return err
		}
		if i < 0 {
			c.DelSet(s.set)
		}
	}
	for _, ch := range old.chains {
		if !slices.ContainsFunc(next.chains, func(n chain) bool { return n.chain.Name == ch.chain.Name }) {
			c.DelChain(ch.chain)
		}
	}
	for _, name := range old.counters {
		if !slices.Contains(next.counters, name) {
			c.DeleteObject(&nftables.CounterObj{Table: old.table, Name: name})
		}
	}
	for _, name := range next.counters {
		if !slices.Contains(old.counters, name) {
			c.AddObj(&nftables.CounterObj{Table: next.table, Name: name})
		}
	}
	for _, ch := range next.chains {
		if !slices.ContainsFunc(old.chains, func(o chain) bool { return o.chain.Name == ch.chain.Name }) {
			c.AddChain(ch.chain)
		}
	}
	for _, s := range next.sets {
		i := slices.IndexFunc(old.sets, func(o set) bool { return o.set.Name == s.set.Name })
		if i < 0 || !s.set.IsMap && !s.same(old.sets[i]) {
			if err := addSet(c, s); err != nil {
				return err
			}
			continue
		}
		fresh := without(s.elements, old.sets[i].elements)
		if err := chunks(fresh, func(part []nftables.SetElement) error { return c.SetAddElements(s.set, part) }); err != nil {
			return err
		}
	}
	next.addRules(c)
	return nil
}

// same says whether two sets have the same elements.
func (s set) same(other set) bool {
	return len(s.elements) == len(other.elements) && len(without(s.elements, other.elements)) == 0
}

// without returns the elements of a that are not in b with the same value.
func without(a, b []nftables.SetElement) []nftables.SetElement {
	in := make(map[string]string, len(b))
	for _, e := range b {
		in[string(e.Key)] = "to " + chainOf(e)
	}
	return slices.DeleteFunc(slices.Clone(a), func(e nftables.SetElement) bool { return in[string(e.Key)] == "to "+chainOf(e) })
}

// keys returns elements without their values, as they are deleted.
func keys(elements []nftables.SetElement) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range elements {
		out = append(out, nftables.SetElement{Key: e.Key})
	}
	return out
}

// Bucket returns the bucket of a packet from a client to a virtual address that the filter has, as the kernel tells it.
func (f *Filter) Bucket(protocol uint8, src, dst netip.AddrPort) (bucket uint32, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.cfg.Virtuals {
		if v.Address == dst.Addr().Unmap() {
			fn := f.cfg.FunctionOf(v, protocol, dst.Port())
			return fn.Bucket(netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), netip.AddrPortFrom(v.Address, dst.Port())), true
		}
	}
	return 0, false
}

// Shutdown closes the share and leaves the table in place, closed. The filter cannot be used any more.
func (f *Filter) Shutdown() error {
	err := f.CloseShare()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.release()
	}
	return err
}
