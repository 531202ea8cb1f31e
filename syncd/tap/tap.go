// Package tap connects syncd with the connection table of its own kernel. The kernel has no call to list, create or watch
// single connections, but it has sync threads: what its master thread sends says which connections it has, and what its backup
// thread receives becomes connections. A Tap is the other end of both.
//
// Kernel is the real one, over a TUN device on which nothing but the two threads and syncd talk. Memory is a double for tests and
// measurements.
package tap

import (
	"errors"
)

// Message is one message of the kernel's master thread: a sync message as package ipvssync describes it, without IP and UDP headers.
type Message struct {
	Buf  []byte // room for the whole packet, given by the caller: at least MaxPacket bytes
	Data []byte // the message, within Buf
}

// MaxPacket is the longest packet that a tap delivers: an IPv4 and a UDP header and a message of 255 IPv4 records.
const MaxPacket = 9216

// MaxInject is the longest message that Inject takes: 255 IPv4 records.
const MaxInject = MaxPacket - headersLen

// Errors of a tap.
var (
	// ErrForeignDaemon: a sync thread that is not ours runs in this network namespace, which can have only one of each kind.
	ErrForeignDaemon = errors.New("a sync daemon of the kernel runs already")
	// ErrBackupOnly: net.ipv4.vs.backup_only is set, which together with a backup thread turns IPVS off (ip_vs.h, backup_only).
	ErrBackupOnly = errors.New("net.ipv4.vs.backup_only is 1")
)

// Tap is the kernel's connection table as syncd uses it. Read is called by one goroutine, everything else by any.
type Tap interface {
	// Read waits for a message and then takes what is there, at most len(msgs), and returns how many. When it returns fewer than
	// len(msgs), nothing was left. After Close it returns os.ErrClosed.
	Read(msgs []Message) (int, error)
	// Inject hands a message to the kernel, which enters its records. The kernel drops silently what overflows its receive
	// buffer: look at Queued now and then. The tap sets the message's syncid.
	Inject(msg []byte) error
	// Queued returns how many bytes of what was injected the kernel has not yet looked at, as it counts them (sk_buff truesize), and
	// how many messages it has dropped; a thread that was started anew counts as one more, as what was injected meanwhile is lost.
	// ErrNoThread: nobody takes what is injected.
	Queued() (queued, dropped uint64, err error)
	// Tick makes the kernel report a connection of the tap's own, number n, twice, so that it gives out what it has reported before:
	// it holds each record until the next one.
	Tick(n uint16) error
	// Close detaches. The kernel goes on, and a later process can attach again.
	Close() error
}
