package reconcile

import (
	"fmt"
	"time"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
	"saru/syncd/table"
)

// Kind says how an entry of the kernel and one of the replica relate. The first five are differences, the others explain why
// something that looks like one is none; of those, only the number is kept.
type Kind uint8

// The kinds.
const (
	// MissingInReplica: the kernel has it, in a state that it reports.
	MissingInReplica Kind = iota
	// MissingInKernel: the replica has it from another director.
	MissingInKernel
	// OtherServer: both have it, with different real servers.
	OtherServer
	// OtherState: both have it, in different states.
	OtherState
	// Expires: the kernel will lose it, long before the director that it comes from does.
	Expires

	// Gone: this director's own, and its kernel has it no more. The kernel does not report an end.
	Gone
	// Ahead: the kernel's state is newer, and it has not reported it because only the server's packets, or none yet, have led to it.
	Ahead
	// KernelKeeps: the kernel ignores a closing record of another real server (ip_vs_sync.c, ip_vs_proc_conn).
	KernelKeeps
	// GivenUp: a template whose server this kernel cannot use; it waits there, marked, for its expiry.
	GivenUp
	// Leftover: a template of another director that this kernel has had for longer than the replica. The kernel starts a
	// template's time anew when it is injected.
	Leftover
	// Unserved: the real server is not, or no longer, in this kernel's service.
	Unserved
	// Unopened: a connection that is being opened, or a state that the kernel does not report.
	Unopened
	// Engine: an entry of a persistence engine that /proc does not show in full.
	Engine
	// Elsewhere: another director's, and by --kernel_entries this kernel is not to have it.
	Elsewhere
	// Settling: refreshed, or about to expire, within seconds.
	Settling

	kinds
)

var kindNames = [kinds]string{
	"missing_in_replica", "missing_in_kernel", "other_server", "other_state", "expires_early",
	"gone", "ahead", "kernel_keeps", "given_up", "leftover", "unserved", "unopened", "persistence_engine", "elsewhere", "settling",
}

// String returns the name as status and metrics have it.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Difference reports whether the kind is one, as opposed to an explanation.
func (k Kind) Difference() bool { return k <= Expires }

// Counts has how often each kind occurred.
type Counts [kinds]int

// All yields names and numbers in order.
func (c *Counts) All(yield func(Kind, int) bool) {
	for k, n := range c {
		if !yield(Kind(k), n) {
			return
		}
	}
}

// Differences returns the sum over the kinds that are differences.
func (c *Counts) Differences() (n int) {
	for k := range c {
		if Kind(k).Difference() {
			n += c[k]
		}
	}
	return n
}

// Finding is a difference in one entry.
type Finding struct {
	Kind    Kind
	At      time.Time
	Kernel  *Conn        // nil when it is missing
	Replica *table.Entry // nil when it is missing
	Local   bool         // the replica's comes from this director
}

// Record returns the kernel's record, or else the replica's, to name the entry by.
func (f *Finding) Record() *ipvssync.Record {
	if f.Kernel != nil {
		return &f.Kernel.Record
	}
	return &f.Replica.Record
}

// Why says what differs.
func (f *Finding) Why() string {
	switch f.Kind {
	case MissingInReplica:
		return fmt.Sprintf("the kernel has it, %s, for %v more; the replica does not", state(&f.Kernel.Record), f.Kernel.Expires)
	case MissingInKernel:
		return fmt.Sprintf("the replica has it, %s, for %v more; the kernel does not", state(&f.Replica.Record), f.Replica.Remaining)
	case OtherServer:
		return fmt.Sprintf("the real server is %s in the kernel and %s in the replica", f.Kernel.Record.Real, f.Replica.Record.Real)
	case OtherState:
		return fmt.Sprintf("the state is %s in the kernel and %s in the replica", state(&f.Kernel.Record), state(&f.Replica.Record))
	case Expires:
		return fmt.Sprintf("it expires in %v in the kernel and in %v in the replica", f.Kernel.Expires, f.Replica.Remaining)
	}
	return f.Kind.String()
}

func state(r *ipvssync.Record) string { return ipvssync.StateName(r.Protocol, r.State, r.Template()) }

// Repairs says what mends findings that were confirmed. inject has the replica's entries that the kernel is to be given again; move those
// of them that it has with another real server; publish has what the kernel's master thread should have reported, to be entered and sent as
// this director's own.
func Repairs(findings []Finding) (inject, move []table.Entry, publish []Conn) {
	for i := range findings {
		f := &findings[i]
		switch {
		case f.Kind == MissingInReplica:
			publish = append(publish, *f.Kernel)
		case f.Publishes():
			if c, ok := f.report(); ok {
				publish = append(publish, c)
			}
		case f.Kind == MissingInKernel:
			inject = append(inject, *f.Replica)
		case f.Kind == OtherServer:
			move = append(move, *f.Replica)
		case f.Kind.Difference():
			inject = append(inject, *f.Replica)
		}
	}
	return inject, move, publish
}

// Publishes reports whether the repair is to tell others what the kernel has.
func (f *Finding) Publishes() bool {
	return f.Kind == MissingInReplica || f.Kind != MissingInKernel && (f.Local || f.live())
}

// live reports whether the kernel's entry is not what another director's record should have replaced, but a connection that was opened
// here since: this kernel made it, for another server, and has seen packets of it after the replica's record was made. It has not been
// told of, and must not be overwritten.
func (f *Finding) live() bool {
	if f.Kind != OtherServer || f.Kernel.Fault != Sound {
		return false
	}
	k, r := f.Kernel, &f.Kernel.Record
	// Where timeouts were made longer with ipvsadm --set, the age cannot be told.
	usual := r.Timeout == ipvs.DefaultTimeout(r.Protocol, r.State, false)
	return !r.Template() && r.Flags&ipvssync.FlagSync == 0 && usual && k.Age+settle < f.Replica.Age()
}

// report is what the kernel should have reported of an entry that the replica has differently. The replica knows what /proc does not
// show: mark, forwarding method, a persistence engine's data.
func (f *Finding) report() (Conn, bool) {
	c := *f.Kernel
	if f.Kind == OtherServer {
		if c.Record.Fwmark == 0 {
			c.Record.Fwmark = f.Replica.Record.Fwmark
		}
		return c, c.Fault == Sound
	}
	r := f.Replica.Record
	r.State, r.Timeout = c.Record.State, c.Record.Timeout
	r.Flags = r.Flags&^ipvssync.FlagInactive | c.Record.Flags&(ipvssync.FlagInactive|ipvssync.FlagSync)
	c.Record, c.Fault = r, Sound
	return c, true
}
