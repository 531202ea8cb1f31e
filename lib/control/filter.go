package control

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ConnectionFilter selects connections. Its zero value selects all of them.
type ConnectionFilter struct {
	// Protocol, State and Origin are compared without regard to case; empty
	// means any.
	Protocol, State, Origin string
	// Client, Virtual and Real select endpoints.
	Client, Virtual, Real EndpointFilter
}

// EndpointFilter selects addresses and ports. Its zero value selects all.
type EndpointFilter struct {
	// Prefix is the zero Prefix for any address.
	Prefix netip.Prefix
	// Port is 0 for any port.
	Port uint16
}

// ParseEndpointFilter reads ADDR, ADDR/BITS, ADDR:PORT, [ADDR]:PORT or :PORT; an
// empty text selects everything.
func ParseEndpointFilter(s string) (EndpointFilter, error) {
	var f EndpointFilter
	if s == "" {
		return f, nil
	}
	bad := fmt.Errorf("%q must be ADDR, ADDR/BITS, ADDR:PORT, [ADDR]:PORT or :PORT", s)
	if port, ok := strings.CutPrefix(s, ":"); ok && !strings.Contains(port, ":") {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return f, bad
		}
		f.Port = uint16(n)
		return f, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		f.Prefix = p.Masked()
		return f, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return f, bad
		}
		a, f.Port = ap.Addr(), ap.Port()
	}
	a = a.Unmap()
	if a.Zone() != "" {
		return EndpointFilter{}, bad
	}
	f.Prefix = netip.PrefixFrom(a, a.BitLen())
	return f, nil
}

// Match reports whether the filter selects an endpoint.
func (f EndpointFilter) Match(e netip.AddrPort) bool {
	return (f.Port == 0 || f.Port == e.Port()) && (!f.Prefix.IsValid() || f.Prefix.Contains(e.Addr()))
}

// String returns what ParseEndpointFilter reads.
func (f EndpointFilter) String() string {
	switch {
	case f == EndpointFilter{}:
		return ""
	case !f.Prefix.IsValid():
		return ":" + strconv.Itoa(int(f.Port))
	case f.Port == 0:
		return f.Prefix.String()
	}
	return netip.AddrPortFrom(f.Prefix.Addr(), f.Port).String()
}

// MatchEndpoints reports whether the filter selects a connection by its
// endpoints. It needs no text, so a daemon asks it first.
func (f *ConnectionFilter) MatchEndpoints(client, virtual, real netip.AddrPort) bool {
	return f.Client.Match(client) && f.Virtual.Match(virtual) && f.Real.Match(real)
}

// MatchNames reports whether the filter selects a connection by its names, which
// are those of Connection.
func (f *ConnectionFilter) MatchNames(protocol, state, origin string) bool {
	match := func(want, have string) bool { return want == "" || strings.EqualFold(want, have) }
	return match(f.Protocol, protocol) && match(f.State, state) && match(f.Origin, origin)
}

// Query returns the filter as parameters of PathSyncConnections.
func (f *ConnectionFilter) Query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"protocol": f.Protocol, "state": f.State, "origin": f.Origin,
		"client": f.Client.String(), "virtual": f.Virtual.String(), "real": f.Real.String(),
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// ParseConnectionFilter reads what Query returns. Its errors wrap ErrBadRequest;
// parameters that it does not know are refused, as their effect would be missed.
func ParseConnectionFilter(q url.Values) (ConnectionFilter, error) {
	var f ConnectionFilter
	var err error
	for name := range q {
		switch value := q.Get(name); name {
		case "protocol":
			f.Protocol = value
		case "state":
			f.State = value
		case "origin":
			f.Origin = value
		case "client":
			f.Client, err = ParseEndpointFilter(value)
		case "virtual":
			f.Virtual, err = ParseEndpointFilter(value)
		case "real":
			f.Real, err = ParseEndpointFilter(value)
		default:
			err = fmt.Errorf("no such filter")
		}
		if err != nil {
			return ConnectionFilter{}, fmt.Errorf("%w: %s: %w", ErrBadRequest, name, err)
		}
	}
	return f, nil
}
