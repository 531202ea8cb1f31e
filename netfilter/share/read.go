package share

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/google/nftables"
)

// State is what the kernel's table holds.
type State struct {
	// Owned are the buckets of the set, as Apply takes them.
	Owned []uint64
	// Lease and Fence are what remains of them; 0: there is none.
	Lease, Fence time.Duration
	Virtuals     []VirtualState
	// Inside and InsideForeign count packets of real servers.
	Inside, InsideForeign Count
	// Chance are frames that reached the shared MAC address by chance and were forwarded, ChanceForeign those that others forward, Rebounded those for other directors.
	Chance, ChanceForeign, Rebounded Count
	// Protected: nobody else can change the table.
	Protected bool
}

// VirtualState are the counters of a virtual address.
type VirtualState struct {
	Address netip.Addr
	// Own packets were accepted, Foreign ones dropped, Late ones dropped because IPVS did not take them.
	Own, Foreign, Late Count
}

// Count is a counter.
type Count struct{ Packets, Bytes uint64 }

// Read reads the table.
func (f *Filter) Read() (State, error) {
	f.mu.Lock()
	l, closed, virtuals := f.listing(), f.closed, f.cfg.Virtuals
	st := State{Protected: f.flags != 0}
	f.mu.Unlock() // renewals must not wait for listings
	if closed {
		return State{}, os.ErrClosed
	}
	if err := l.read(&st); err != nil {
		return st, err
	}
	counts, err := l.counters()
	if err != nil {
		return st, err
	}
	for _, v := range virtuals {
		st.Virtuals = append(st.Virtuals, VirtualState{
			Address: v.Address, Own: counts[named("own", v.Address)], Foreign: counts[named("foreign", v.Address)], Late: counts[named("late", v.Address)],
		})
	}
	st.Inside, st.InsideForeign = counts[counterIn], counts[counterInForeign]
	st.Chance, st.ChanceForeign, st.Rebounded = counts[counterChance], counts[counterChanceForeign], counts[counterRebounded]
	return st, nil
}

// listing reads the kernel's table.
type listing struct {
	namespace int
	content   content
	buckets   uint32
}

func (f *Filter) listing() listing { return listing{f.namespace, f.content, f.cfg.Function.Buckets} }

func (l listing) counters() (map[string]Count, error) {
	c, err := reader(l.namespace)
	if err != nil {
		return nil, err
	}
	objs, err := c.GetObjects(l.content.table)
	if err != nil {
		return nil, fmt.Errorf("list nftables counters: %w", err)
	}
	counts := map[string]Count{}
	for _, o := range objs {
		if o, ok := o.(*nftables.CounterObj); ok {
			counts[o.Name] = Count{o.Packets, o.Bytes}
		}
	}
	return counts, nil
}

// read reads the sets.
func (l listing) read(st *State) error {
	var err error
	if st.Owned, err = l.owned(); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		to   *time.Duration
	}{{setLease, &st.Lease}, {setFence, &st.Fence}} {
		elements, err := l.elements(s.name)
		if err != nil {
			return err
		}
		for _, e := range elements {
			*s.to = max(*s.to, e.Expires)
		}
	}
	return nil
}

func (l listing) elements(name string) ([]nftables.SetElement, error) {
	c, err := reader(l.namespace)
	if err != nil {
		return nil, err
	}
	elements, err := c.GetSetElements(l.content.set(name))
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s: %w", name, err)
	}
	return elements, nil
}

func (l listing) owned() ([]uint64, error) {
	elements, err := l.elements(setOwned)
	if err != nil {
		return nil, err
	}
	owned := make([]uint64, int(l.buckets+63)/64)
	for _, e := range elements {
		if len(e.Key) != 4 {
			continue
		}
		if b := binary.NativeEndian.Uint32(e.Key); b < l.buckets {
			owned[b/64] |= 1 << (b % 64)
		}
	}
	return owned, nil
}
