package share

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"saru/lib/flow"
)

// DefaultTable is the name of the table of the farm with id 1.
const DefaultTable = "saru"

// maxVirtuals is how many addresses of a family the map of addresses holds: it is made with a size, so that the kernel takes its faster hash table.
const maxVirtuals = 1024

// Config is what the filter needs to know.
type Config struct {
	// Table is the table's name; empty stands for DefaultTable.
	Table string
	// Function has the number of buckets and the seed; its other fields do not count, each Virtual has its own.
	Function flow.Function
	// Virtuals are the virtual addresses of the beginning; SetVirtuals changes them.
	Virtuals []Virtual
	// Inside is the interface of LVS-NAT real servers; empty: there is none.
	Inside string
	// Masquerade are the networks inside whose servers may open connections to the outside.
	Masquerade []netip.Prefix
	// MAC is the address that the directors share, for frames that reach it by chance; nil: those are let through.
	MAC net.HardwareAddr
	// Period is the time between two calls of Renew.
	Period time.Duration
	// Slack is by how much a fence outlasts the moment for which it is set, and so the most by which a late renewal can prolong a lease (docs/SAFETY.md section 3); 0: 50 ms.
	Slack time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// Virtual is a virtual address.
type Virtual struct {
	Address netip.Addr
	Sense   flow.Sense
	// Mask is how many bits of the source address count; 0: all.
	Mask uint8
	// Open is false for an address that is closed for now, whatever is owned.
	Open     bool
	Services []Service
}

// Service is a service of a virtual address as far as the filter must know it.
type Service struct {
	// Protocol is TCP, UDP or SCTP; it does not count for a service by Fwmark.
	Protocol uint8
	// Port 0: all ports that no other service of the protocol has.
	Port uint16
	// NAT: replies come back through the directors, from Destinations, over Config.Inside.
	NAT          bool
	Destinations []netip.AddrPort
	// BySource: the source address alone tells the bucket, with PersistMask bits of it (0: all), or those of the virtual address if they are fewer. For FTP (TCP
	// port 21) this extends to all TCP ports without a service, where its data connections go; IKE (UDP ports 500 and 4500) is by source always, as ESP is.
	BySource    bool
	PersistMask uint8
	// Fwmark is the mark of a service by mark. Its packets cannot be told from others before they have been marked, so with BySource all of the address is
	// balanced by source.
	Fwmark uint32
	// Local: this host is one of the real servers. IPVS then leaves its packets to this host, and the late drop is off.
	Local bool
}

func isPorted(protocol uint8) bool {
	return slices.Contains(portedProtocols, protocol)
}

func (c Config) check() (Config, error) {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Slack == 0 {
		c.Slack = defaultSlack
	}
	switch {
	case c.Function.Seed == 0:
		return c, errors.New("share: seed 0: the kernel would draw one")
	case c.Function.Buckets == 0 || c.Function.Buckets > flow.MaxBuckets:
		return c, fmt.Errorf("share: %d buckets: 1 to %d", c.Function.Buckets, flow.MaxBuckets)
	case len(c.Inside) >= unix.IFNAMSIZ:
		return c, fmt.Errorf("share: interface name %q is too long", c.Inside)
	case len(c.Masquerade) > 0 && c.Inside == "":
		return c, errors.New("share: networks to masquerade, but no inside interface")
	case len(c.MAC) != 0 && len(c.MAC) != 6:
		return c, fmt.Errorf("share: MAC address %v", c.MAC)
	case c.Period <= 0:
		return c, fmt.Errorf("share: period %v", c.Period)
	case c.Slack < 0:
		return c, fmt.Errorf("share: slack %v", c.Slack)
	}
	for _, p := range c.Masquerade {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return c, fmt.Errorf("share: %v is no network to masquerade", p)
		}
	}
	var err error
	c.Virtuals, err = c.checkVirtuals(c.Virtuals)
	return c, err
}

// RefusedError names a virtual address whose services the filter cannot share.
type RefusedError struct {
	Address netip.Addr
	Err     error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("share: virtual address %v: %v", e.Address, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// checkVirtuals returns a copy in which addresses are unmapped and masks are those that count.
func (c Config) checkVirtuals(virtuals []Virtual) ([]Virtual, error) {
	seen := map[netip.Addr]bool{}
	count := map[bool]int{}
	out := make([]Virtual, 0, len(virtuals))
	for _, v := range virtuals {
		v.Address = v.Address.Unmap()
		bits := v.Address.BitLen()
		if v.Mask == 0 {
			v.Mask = uint8(bits)
		}
		f := c.function(v)
		switch {
		case !v.Address.IsValid() || v.Address.Zone() != "" || v.Address.IsMulticast() || v.Address.IsUnspecified():
			return nil, fmt.Errorf("share: %v is no virtual address", v.Address)
		case seen[v.Address]:
			return nil, fmt.Errorf("share: virtual address %v is there twice", v.Address)
		case int(v.Mask) > bits:
			return nil, fmt.Errorf("share: %d bits of a source address of %v", v.Mask, v.Address)
		case f.Check() != nil:
			return nil, fmt.Errorf("share: virtual address %v: %w", v.Address, f.Check())
		}
		seen[v.Address] = true
		if count[v.Address.Is4()]++; count[v.Address.Is4()] > maxVirtuals {
			return nil, fmt.Errorf("share: more than %d virtual addresses of a family", maxVirtuals)
		}
		for _, s := range v.Services {
			if err := v.checkService(s); err != nil {
				return nil, &RefusedError{v.Address, err}
			}
		}
		out = append(out, v)
	}
	return out, nil
}

func (v Virtual) checkService(s Service) error {
	switch {
	case s.Fwmark == 0 && !isPorted(s.Protocol):
		return fmt.Errorf("protocol %d of a service", s.Protocol)
	case int(s.PersistMask) > v.Address.BitLen():
		return fmt.Errorf("%d bits of a source address of a service", s.PersistMask)
	case s.NAT && !s.BySource && (v.Sense.Has(flow.DstAddr) || v.Sense.Has(flow.DstPort)):
		return fmt.Errorf("sense %v with LVS-NAT: replies do not show the virtual address", v.Sense)
	}
	for _, d := range s.Destinations {
		if d.Addr().Unmap().Is4() != v.Address.Is4() && s.NAT {
			return fmt.Errorf("destination %v of another family", d)
		}
	}
	return nil
}

// function is the share function of what has no service with another one.
func (c Config) function(v Virtual) flow.Function {
	f := flow.Function{Sense: v.Sense, Buckets: c.Function.Buckets, Seed: c.Function.Seed, Mask4: 32, Mask6: 128}
	for _, s := range v.Services {
		if s.Fwmark != 0 && s.BySource {
			f.Sense, v.Mask = flow.SenseOf(flow.SrcAddr), v.sourceMask(s)
		}
	}
	return withMask(f, v.Address, v.Mask)
}

func withMask(f flow.Function, a netip.Addr, mask uint8) flow.Function {
	if a.Is4() {
		f.Mask4 = mask
	} else {
		f.Mask6 = mask
	}
	return f
}

// sourceMask is how many bits of the source address count for a service by source.
func (v Virtual) sourceMask(s Service) uint8 {
	mask := uint8(v.Address.BitLen())
	if v.Mask != 0 {
		mask = v.Mask
	}
	if s.PersistMask != 0 {
		mask = min(mask, s.PersistMask)
	}
	return mask
}

// bySource says whether the source address alone tells the bucket of a service's packets.
func (s Service) bySource() bool {
	return s.Fwmark == 0 && (s.BySource || s.Protocol == unix.IPPROTO_UDP && (s.Port == 500 || s.Port == 4500))
}

// takesRest says whether ports without a service are balanced by this service's function.
func (s Service) takesRest() bool {
	return s.bySource() && (s.Port == 0 || s.Protocol == unix.IPPROTO_TCP && s.Port == 21)
}

// FunctionOf returns the share function of a protocol and port of a virtual address; for protocols without ports, that of the source address.
func (c Config) FunctionOf(v Virtual, protocol uint8, port uint16) flow.Function {
	v.Address = v.Address.Unmap()
	if v.Mask == 0 {
		v.Mask = uint8(v.Address.BitLen())
	}
	whole := c.function(v)
	source := whole
	source.Sense = flow.SenseOf(flow.SrcAddr)
	if protocol == unix.IPPROTO_ESP || protocol == unix.IPPROTO_AH {
		return c.ipsecFunction(v, source)
	}
	if !isPorted(protocol) {
		return source
	}
	f := whole
	for _, s := range v.Services {
		switch {
		case s.Fwmark != 0 || s.Protocol != protocol:
		case s.Port == port && port != 0:
			if s.bySource() {
				return v.bySourceFunction(source, s)
			}
			return whole
		case s.takesRest():
			f = v.bySourceFunction(source, s)
		}
	}
	return f
}

// bySourceFunction is the function of a service by source; source is that of the whole address.
func (v Virtual) bySourceFunction(source flow.Function, s Service) flow.Function {
	return withMask(source, v.Address, min(v.sourceMask(s), sourceBits(source, v.Address)))
}

// ipsecFunction lets AH and ESP follow IKE: IPVS balances them with the connection of UDP port 500 of the same client.
func (c Config) ipsecFunction(v Virtual, source flow.Function) flow.Function {
	for _, s := range v.Services {
		if s.bySource() && s.Protocol == unix.IPPROTO_UDP && s.Port == 500 {
			return v.bySourceFunction(source, s)
		}
	}
	return source
}

func sourceBits(f flow.Function, a netip.Addr) uint8 {
	if a.Is4() {
		return f.Mask4
	}
	return f.Mask6
}
