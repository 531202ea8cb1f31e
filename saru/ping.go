package saru

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Pinging: a node counts as reached for pingAge after its last answer; it is asked every pingTime.
const (
	pingTime = 500 * time.Millisecond
	pingAge  = 2 * time.Second
)

// pinger asks ping nodes whether they are there. DESIGN 4.1: who reaches fewer than others is not eligible.
type pinger struct {
	log     *slog.Logger
	changed func()

	mu       sync.Mutex
	nodes    []netip.Addr
	answered map[netip.Addr]time.Time
	reached  int
}

func (p *pinger) configure(nodes []netip.Addr) {
	p.mu.Lock()
	p.nodes = nodes
	p.mu.Unlock()
}

// count returns how many nodes there are and how many answer.
func (p *pinger) count() (all, reached int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.nodes), p.recount(time.Now())
}

func (p *pinger) recount(now time.Time) (n int) {
	for _, a := range p.nodes {
		if at, ok := p.answered[a]; ok && now.Sub(at) < pingAge {
			n++
		}
	}
	return n
}

// run asks until ctx ends. It opens sockets only when there are ping nodes.
func (p *pinger) run(ctx context.Context) error {
	if all, _ := p.count(); all == 0 {
		<-ctx.Done() // options that add some need a restart
		return nil
	}
	p.answered = map[netip.Addr]time.Time{}
	id := uint16(os.Getpid())
	var conns [2]*icmp.PacketConn // IPv4, IPv6
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, network := range []string{"ip4:icmp", "ip6:ipv6-icmp"} {
		if !p.needs(i == 1) {
			continue
		}
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return fmt.Errorf("--ping_node: %w", err)
		}
		defer c.Close()
		conns[i] = c
		stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		wg.Go(func() { p.listen(ctx, c, i == 1, id) })
	}
	t := time.NewTicker(pingTime)
	defer t.Stop()
	for seq := uint16(0); ; seq++ {
		p.ask(conns, id, seq)
		p.mu.Lock()
		n := p.recount(time.Now())
		changed := n != p.reached
		p.reached = n
		p.mu.Unlock()
		if changed {
			p.changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (p *pinger) needs(v6 bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.nodes {
		if a.Is6() == v6 {
			return true
		}
	}
	return false
}

// ask sends an echo request to each node.
func (p *pinger) ask(conns [2]*icmp.PacketConn, id, seq uint16) {
	p.mu.Lock()
	nodes := p.nodes
	p.mu.Unlock()
	for _, a := range nodes {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(id), Seq: int(seq), Data: []byte("saru")}}
		c := conns[0]
		if a.Is6() {
			m.Type, c = ipv6.ICMPTypeEchoRequest, conns[1]
		}
		if c == nil {
			continue // added by a reload, of a family that there was none of
		}
		b, err := m.Marshal(nil)
		if err == nil {
			_, err = c.WriteTo(b, &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()})
		}
		if err != nil {
			p.log.Debug("ping", "node", a, "error", err)
		}
	}
}

// listen notes answers until ctx ends.
func (p *pinger) listen(ctx context.Context, c *icmp.PacketConn, v6 bool, id uint16) {
	reply := byte(ipv4.ICMPTypeEchoReply)
	if v6 {
		reply = byte(ipv6.ICMPTypeEchoReply)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.log.Debug("ping", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pingTime):
			}
			continue
		}
		ip, ok := from.(*net.IPAddr)
		if !ok || n < 8 || buf[0] != reply || binary.BigEndian.Uint16(buf[4:]) != id {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.IP)
		p.mu.Lock()
		p.answered[a.Unmap().WithZone(ip.Zone)] = time.Now()
		p.mu.Unlock()
	}
}
