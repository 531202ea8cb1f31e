package tap

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"saru/netfilter/guard"
)

// Read is Tap.Read. Only what comes from the master thread's own socket is a message: a process of this host that sends to the group
// on this device has another source port.
func (k *Kernel) Read(msgs []Message) (int, error) {
	if len(k.bufs) != len(msgs) {
		k.bufs, k.sizes = make([][]byte, len(msgs)), make([]int, len(msgs))
	}
	for {
		for i := range msgs {
			k.bufs[i] = msgs[i].Buf
		}
		got, err := k.reader.Read(k.bufs, k.sizes)
		if err != nil {
			return 0, err
		}
		n := 0
		for i := range got {
			src, dst, payload, ok := parseUDP(k.bufs[i][:k.sizes[i]])
			if !ok || dst != group || !k.fromMaster(src) {
				k.ignored.Add(1)
				continue
			}
			msgs[n].Buf, msgs[i].Buf = msgs[i].Buf, msgs[n].Buf
			msgs[n].Data = payload
			n++
		}
		if n > 0 {
			return n, nil
		}
	}
}

// fromMaster reports whether src is the master thread's socket. It is looked up again, at most once a second, when it is not: the
// thread may have been started anew.
func (k *Kernel) fromMaster(src netip.AddrPort) bool {
	if src == k.master {
		return true
	}
	if now := time.Now(); now.Sub(k.lookedUp) > time.Second {
		k.lookedUp = now
		err := readSockets(udpTable, func(s procSocket) bool {
			// Only root and kernel sockets have uid 0; the device's guard lets nobody else send.
			if s.remote == group && s.uid == 0 && s.local.Addr() == k.cfg.Local {
				k.master = s.local
				return false
			}
			return true
		})
		if err != nil {
			k.cfg.Log.Warn("master thread's socket not found", "error", err)
		}
	}
	return src == k.master
}

// Ignored returns how many packets of the device were no messages of the master thread: the tick on its way to its real server, IGMP
// reports, and whatever a process of this host sent there.
func (k *Kernel) Ignored() uint64 { return k.ignored.Load() }

// Inject is Tap.Inject.
func (k *Kernel) Inject(msg []byte) error {
	if len(msg) > MaxInject {
		return fmt.Errorf("inject %d bytes: at most %d", len(msg), MaxInject)
	}
	k.writing.Lock()
	defer k.writing.Unlock()
	k.out = append(append(k.out[:0], make([]byte, headersLen)...), msg...)
	k.out[headersLen+1] = uint8(k.backupID.Load()) // syncid of the message
	// The source is the device's other end: that passes rp_filter (net/ipv4/fib_frontend.c, fib_validate_source).
	putUDP(k.out, netip.AddrPortFrom(k.cfg.peer(), port), group)
	_, err := k.dev.Write(k.out)
	return err
}

// Queued is Tap.Queued.
func (k *Kernel) Queued() (queued, dropped uint64, err error) {
	err = readSockets(udpTable, func(s procSocket) bool {
		if s.local == group && s.uid == 0 {
			queued, dropped = max(queued, s.queued), max(dropped, s.drops)
		}
		return true
	})
	return queued, dropped, err
}

// Tick is Tap.Tick. It plays a client of the tick's service: SYN makes a connection, FIN and RST each change its state, and each
// change makes the kernel report it at once (ip_vs_sync.c, ip_vs_sync_conn_needed: "force").
func (k *Kernel) Tick(n uint16) error {
	src := netip.AddrPortFrom(k.cfg.peer(), tickClientPort+n%TickPorts)
	k.writing.Lock()
	defer k.writing.Unlock()
	for _, flags := range []uint8{tcpSYN, tcpFIN | tcpACK, tcpRST} {
		k.out = appendTCP(k.out[:0], src, k.cfg.TickService(), flags)
		if _, err := k.dev.Write(k.out); err != nil {
			return err
		}
	}
	return nil
}

// TickNumber returns which tick, modulo TickPorts, a connection of the tick's service with this client port is.
func TickNumber(clientPort uint16) uint16 { return clientPort - tickClientPort }

// Guard watches the device's guard and mends it until ctx ends.
func (k *Kernel) Guard(ctx context.Context) error {
	return guard.Watch(ctx, k.cfg.guard(), func(why string) {
		k.cfg.Log.Warn("the guard of the device was put back", "device", k.cfg.Device, "why", why)
	})
}

var _ Tap = (*Kernel)(nil)

// Reattached reports whether the device of an earlier process was found.
func (k *Kernel) Reattached() bool { return k.dev.Reattached() }
