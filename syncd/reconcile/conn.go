package reconcile

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"net/netip"
	"time"

	"saru/lib/ipvs"
	"saru/proto/ipvssync"
)

// Conn is an entry of the kernel in the form in which its master thread would have reported it.
type Conn struct {
	// Record has FlagSync where the entry was made by a sync message. A template's timeout is its service's.
	Record ipvssync.Record
	// Age is how many seconds ago the kernel started the entry's timer, as far as its usual timeout for the state
	// tells; 0 for a template, whose timer starts anew whenever one of its connections ends.
	Age uint32
	// Expires is what the kernel's timer has left, in whole seconds.
	Expires time.Duration
	// Fault says why the record must not be told to others; Sound: it may.
	Fault Fault
}

// Fault says what /proc does not show of an entry that others would have to know.
type Fault uint8

// The faults.
const (
	Sound      Fault = iota
	NoServer         // no service has this real server, so that the forwarding method is not known
	EngineData       // the service has a persistence engine, and its data belong to the entry
)

// Limit is how many entries the list of a kernel below 6.14 may have to be read (see Readable). A pass over so many took 4.1 s on 6.1 in
// software emulation, 0.7 s over 20,000, and on 7.2 1.3 s and 0.3 s; hardware is 10 to 30 times as fast.
const Limit = 50_000

// ErrTooLong says that the list went on beyond Config.Limit.
var ErrTooLong = errors.New("the kernel's list of connections is too long to be read")

// Readable reports whether the list may be read, by the estimated number of its entries (ipvs.Destination.Entries) and by whether
// the kernel reads it in linear time (ipvs.ProcLinear); why says so where it may not.
func Readable(entries int, linear bool) (ok bool, why string) {
	if linear || entries <= Limit {
		return true, ""
	}
	return false, fmt.Sprintf("reading %d connections takes too long before Linux 6.14 (at most %d)", entries, Limit)
}

// Config says what belongs to the comparison.
type Config struct {
	Services []Service
	// Tick is the virtual service of the tap's own connection, which is ignored.
	Tick netip.AddrPort
	// Mirrored reports whether a record is mirrored at all (--mirror, --mirror_service); nil: all are.
	Mirrored func(*ipvssync.Record) bool
	// Kept reports whether this kernel is to have the record of another director (--kernel_entries); nil: all of them.
	Kept func(*ipvssync.Record) bool
	// Limit is how many lines are read before ErrTooLong; 0: any number. On a kernel below 6.14 give Limit: the estimate
	// does not count what has no service.
	Limit int
	// Findings is how many findings are kept, 0 for 32,768. All are counted.
	Findings int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

func (c *Config) mirrored(r *ipvssync.Record) bool { return c.Mirrored == nil || c.Mirrored(r) }

func (c *Config) kept(r *ipvssync.Record) bool { return c.Kept == nil || c.Kept(r) }

// Conns yields the kernel's entries as records, each once: for a syncd that starts, and for flush (Opening). What can be no record is
// left out: templates that the kernel has given up, entries of the tick, servers of another family, unknown states. As each list leaves
// some out, several are put together.
// At most one error is yielded, as the last element.
func Conns(cfg Config, lists ...iter.Seq2[ipvs.ProcConn, error]) iter.Seq2[Conn, error] {
	return func(yield func(Conn, error) bool) {
		services, seen, seed := indexServices(cfg.Services), keySet{}, maphash.MakeSeed()
		var c Conn
		for n, list := range lists {
			lines := 0
			for p, err := range list {
				if lines++; err == nil && cfg.Limit > 0 && lines > cfg.Limit {
					err = fmt.Errorf("%w: more than %d entries", ErrTooLong, cfg.Limit)
				}
				if err != nil {
					yield(Conn{}, err)
					return
				}
				if p.Virtual == cfg.Tick || services.convert(&p, &c) != converted || !cfg.mirrored(&c.Record) {
					continue
				}
				// Several of a client, of a service with a persistence engine, differ only in what is not shown.
				if fresh := seen.add(hashOf(seed, &c.Record)); !fresh && (c.Fault != EngineData || n > 0) {
					continue
				}
				if !yield(c, nil) {
					return
				}
			}
		}
	}
}

// Opening reports whether a record is of a connection that the kernel has not reported yet because it is being opened.
func Opening(r *ipvssync.Record) bool {
	switch {
	case r.Template():
	case r.Protocol == ipvssync.ProtocolTCP:
		return r.State == ipvssync.TCPSynRecv || r.State == ipvssync.TCPSynSent || r.State == ipvssync.TCPSynAck
	case r.Protocol == ipvssync.ProtocolSCTP:
		return r.State < ipvssync.SCTPEstablished
	}
	return false
}
