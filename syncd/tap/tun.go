package tap

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"saru/lib/tun"
)

// TUN is a tap on whatever sends and receives sync messages on a TUN device: the kernel's threads, once a Kernel has started
// them, or ordinary sockets in measurements.
type TUN struct {
	dev    *tun.Device
	reader *tun.Reader
	local  netip.Addr
	proc   string // /proc/.../net/udp of the device's network namespace
	log    *slog.Logger

	syncID  atomic.Uint32 // of the backup thread
	ignored atomic.Uint64 // packets that are not messages of the master thread

	receivers receivers // which socket is the backup thread's

	// Used by Read only.
	master   netip.AddrPort // the master thread's socket
	refused  netip.AddrPort // the latest source that is not
	lookedUp time.Time      // when it was refused
	bufs     [][]byte
	sizes    []int

	writing sync.Mutex // guards out
	out     []byte
}

// NewTUN returns a tap on a device whose kernel's end has the address local and the other end the next one. The file proc, which has
// the form of /proc/net/udp, tells which socket is the master thread's and how much the backup thread has not yet read. The tap closes the
// device.
func NewTUN(dev *tun.Device, local netip.Addr, proc string, log *slog.Logger) (*TUN, error) {
	r, err := dev.NewReader()
	if err != nil {
		return nil, err
	}
	return &TUN{dev: dev, reader: r, local: local, proc: proc, log: log}, nil
}

// Read is Tap.Read. Only what comes from the master thread's own socket is a message: a process of this host that sends to the group
// on this device has another source port.
func (t *TUN) Read(msgs []Message) (int, error) {
	if len(t.bufs) != len(msgs) {
		t.bufs, t.sizes = make([][]byte, len(msgs)), make([]int, len(msgs))
	}
	for {
		for i := range msgs {
			t.bufs[i] = msgs[i].Buf
		}
		got, err := t.reader.Read(t.bufs, t.sizes)
		if err != nil {
			return 0, err
		}
		n := 0
		for i := range got {
			src, dst, payload, ok := parseUDP(t.bufs[i][:t.sizes[i]])
			if !ok || dst != group || !t.fromMaster(src) {
				t.ignored.Add(1)
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

// fromMaster reports whether src is the master thread's socket. A source that is not is looked up again after a second at the earliest. It
// is src that is looked up, and not the socket: that of a thread that was stopped may be there for a while beside the new one's.
func (t *TUN) fromMaster(src netip.AddrPort) bool {
	if src == t.master {
		return true
	}
	now := time.Now()
	if src == t.refused && now.Sub(t.lookedUp) < time.Second {
		return false
	}
	found := false
	err := readSockets(t.proc, func(s procSocket) bool {
		// Only root and kernel sockets have uid 0; the device's guard lets nobody else send.
		found = s.local == src && s.remote == group && s.uid == 0 && src.Addr() == t.local
		return !found
	})
	if err != nil {
		t.log.Warn("look for the master thread's socket", "error", err)
	}
	if found {
		t.master = src
	} else {
		t.refused, t.lookedUp = src, now
	}
	return found
}

// Ignored returns how many packets of the device were no messages of the master thread: the tick on its way to its real server, IGMP
// reports, and whatever a process of this host sent there.
func (t *TUN) Ignored() uint64 { return t.ignored.Load() }

// Inject is Tap.Inject.
func (t *TUN) Inject(msg []byte) error {
	if len(msg) > MaxInject {
		return fmt.Errorf("inject %d bytes: at most %d", len(msg), MaxInject)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	t.out = append(append(t.out[:0], make([]byte, headersLen)...), msg...)
	t.out[headersLen+1] = uint8(t.syncID.Load()) // syncid of the message
	// The source is the device's other end: that passes rp_filter (net/ipv4/fib_frontend.c, fib_validate_source).
	putUDP(t.out, netip.AddrPortFrom(t.local.Next(), port), group)
	_, err := t.dev.Write(t.out)
	return err
}

// Queued is Tap.Queued.
func (t *TUN) Queued() (queued, dropped uint64, err error) { return t.receivers.queued(t.proc) }

// Tick is Tap.Tick. It plays a client of the tick's service: SYN makes a connection, FIN and RST each change its state, and each
// change makes the kernel report it at once (ip_vs_sync.c, ip_vs_sync_conn_needed: "force").
func (t *TUN) Tick(n uint16) error {
	src := netip.AddrPortFrom(t.local.Next(), tickClientPort+n%TickPorts)
	t.writing.Lock()
	defer t.writing.Unlock()
	for _, flags := range []uint8{tcpSYN, tcpFIN | tcpACK, tcpRST} {
		t.out = appendTCP(t.out[:0], src, netip.AddrPortFrom(t.local, port), flags)
		if _, err := t.dev.Write(t.out); err != nil {
			return err
		}
	}
	return nil
}

// TickNumber returns which tick, modulo TickPorts, a connection of the tick's service with this client port is.
func TickNumber(clientPort uint16) uint16 { return clientPort - tickClientPort }

// Close is Tap.Close: it detaches from the device.
func (t *TUN) Close() error { return t.dev.Close() }

// Reattached reports whether the device of an earlier process was found.
func (t *TUN) Reattached() bool { return t.dev.Reattached() }

var _ Tap = (*TUN)(nil)
