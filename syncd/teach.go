package syncd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"saru/syncd/engine"
	"saru/syncd/tap"
	"saru/syncd/transfer"
)

// JoinPort is where a director teaches unless --join says otherwise: the number of the group's default port, by TCP.
const JoinPort = 8848

// ownAddress returns the address of an interface that is no VIP: what --join is by default. The family of the group is preferred to the
// other, addresses of a subnet to those of a single host, as VIPs are added like these, and any to a link-local one.
func ownAddress(name string, v6 bool, services []tap.Service) (netip.Addr, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("--join: --interface %s: %w", name, err)
	}
	list, err := ifi.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("--join: addresses of --interface %s: %w", name, err)
	}
	var best netip.Addr
	bestRank := -1
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		addr = addr.Unmap()
		if !ok || isVIP(addr, services) || addr.IsLoopback() || addr.IsMulticast() {
			continue
		}
		ones, bits := n.Mask.Size()
		rank := 0
		if !addr.IsLinkLocalUnicast() { // which may be tentative for a second or two
			rank += 4
		}
		if addr.Is6() == v6 {
			rank += 2
		}
		if ones < bits {
			rank++
		}
		if rank > bestRank {
			best, bestRank = addr, rank
		}
	}
	if bestRank < 0 {
		return best, fmt.Errorf("--interface %s has no address of its own: this director cannot teach others (--join ADDR:PORT, or none)", name)
	}
	if best.Is6() && best.IsLinkLocalUnicast() {
		best = best.WithZone(name)
	}
	return best, nil
}

func isVIP(a netip.Addr, services []tap.Service) bool {
	return slices.ContainsFunc(services, func(s tap.Service) bool { return s.Fwmark == 0 && s.Address == a })
}

// teacher listens where this director's replica can be pulled. The address may come and go, and may become a VIP.
type teacher struct {
	at     netip.AddrPort
	cancel context.CancelFunc
	done   chan struct{}
	failed string // the latest error, which has been logged
}

// teachAt makes this director teach at the address that the options and the present services ask for.
func (d *daemon) teachAt(ctx context.Context, services []tap.Service) {
	t := &d.teacher
	want, err := d.teachAddress(services)
	if err == nil && want == t.at && t.alive() {
		return
	}
	t.stop()
	if err == nil && want.IsValid() {
		err = t.start(ctx, want, d.teaches)
	}
	switch {
	case err != nil && err.Error() != t.failed:
		t.failed = err.Error()
		d.log.Warn("this director does not teach", "error", oneLine(err))
	case err == nil && want.IsValid():
		t.failed = ""
		d.log.Info("teaching", "address", want)
	}
	d.With(func(e *engine.Engine) { e.SetTeaches(t.at) })
}

func (d *daemon) teachAddress(services []tap.Service) (netip.AddrPort, error) {
	switch {
	case d.options.JoinOff:
		return netip.AddrPort{}, nil
	case d.options.Join.IsValid():
		return d.options.Join, nil
	}
	a, err := ownAddress(d.options.Interfaces[0], d.options.Group.Addr().Is6(), services)
	return netip.AddrPortFrom(a, JoinPort), err
}

// start listens and serves until stop.
func (t *teacher) start(ctx context.Context, at netip.AddrPort, server *transfer.Server) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("--join %s: the port is in use, choose another one: %w", at, err)
	}
	if err != nil {
		return fmt.Errorf("--join %s: %w", at, err)
	}
	ctx, t.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	t.at, t.done = at, done
	go func() {
		defer close(done)
		_ = server.Serve(ctx, l) // it ends with ctx; if the listener fails, alive says so
	}()
	return nil
}

// alive reports whether it teaches, or is not to.
func (t *teacher) alive() bool {
	select {
	case <-t.done: // nil: never
		return false
	default:
		return true
	}
}

// stop ends the sessions. It may be called at any time.
func (t *teacher) stop() {
	if t.cancel != nil {
		t.cancel()
		<-t.done
	}
	*t = teacher{failed: t.failed}
}
