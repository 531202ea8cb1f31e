package control

import "saru/proto/ipvssync"

// NewConnection describes a record that expires in so many seconds.
func NewConnection(r *ipvssync.Record, origin string, expiresS int64) Connection {
	family := "ipv4"
	if r.Is6() {
		family = "ipv6"
	}
	return Connection{
		Family: family, Protocol: ipvssync.ProtocolName(r.Protocol),
		Client: r.Client.String(), Virtual: r.Virtual.String(), Real: r.Real.String(),
		State: ipvssync.StateName(r.Protocol, r.State, r.Template()),
		Flags: ipvssync.FlagNames(r.Flags), Origin: origin, ExpiresS: expiresS,
	}
}
