package ipvs

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ProcConn is a connection or a persistence template as /proc shows it. What /proc does not show: flags, the forwarding
// method, the mark, the state's full timeout, sequence deltas.
type ProcConn struct {
	// Protocol is IPPROTO_*; 0 (IPPROTO_IP) for a template of a service by fwmark.
	Protocol uint8
	// Client, Virtual and Real are unmapped. Real may be of another family (tunnelled servers). Where FwmarkService is set,
	// Virtual is not a real address: the mark stands in its first 4 bytes, as in the kernel's sync messages.
	Client, Virtual, Real netip.AddrPort
	// State is the kernel's name: ESTABLISHED, FIN_WAIT, UDP, ...; of a template NONE or ASSURED.
	State    string
	Template bool
	// Invalidated says that the kernel has given the template up, because its server is gone; it only waits for its expiry.
	Invalidated bool
	// FwmarkService is the mark of the service that a template belongs to; 0: it is not by mark.
	FwmarkService uint32
	// Synced says that the entry came by a sync message. Only ReadConns knows it.
	Synced bool
	// Expires is what remains of its life.
	Expires time.Duration
	// PEName and PEData are of the persistence engine, PEData in the engine's own text form. Only ReadConnsPE knows them.
	PEName, PEData string
}

// ReadConns streams the connections of /proc/net/ip_vs_conn_sync, which tells the origin of each, but nothing of
// persistence engines. The root is "/proc", or "/proc/thread-self" for the network namespace of the calling thread where
// that differs from the process's.
//
// At most one error is yielded, as the last element; it wraps ErrNotAvailable when the file is missing.
//
// The list is not a snapshot: an entry that the kernel has all the time may be left out, or come twice, though hardly ever in two
// readings. The kernel gives 4 KiB at a time, some 50 entries, and finds the place to go on by counting: below Linux 6.14 all entries before it, those
// of other network namespaces included, so that each that has gone meanwhile makes it skip one; from then on only those before it in the same hash
// bucket (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_array). Below 6.14 the cost therefore grows with the square of their number, too.
func ReadConns(root string) iter.Seq2[ProcConn, error] {
	return readConns(filepath.Join(root, "net/ip_vs_conn_sync"))
}

// ReadConnsPE streams the connections of /proc/net/ip_vs_conn, which tells the persistence engine, but not the origin.
// For the rest see ReadConns.
func ReadConnsPE(root string) iter.Seq2[ProcConn, error] {
	return readConns(filepath.Join(root, "net/ip_vs_conn"))
}

func readConns(path string) iter.Seq2[ProcConn, error] {
	return func(yield func(ProcConn, error) bool) {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrNotAvailable, err)
		}
		if err != nil {
			yield(ProcConn{}, err)
			return
		}
		defer func() { _ = f.Close() }()
		for c, err := range ParseConns(&uneven{r: f, first: minFirst + rand.IntN(maxFirst-minFirst)}) {
			if err != nil {
				err = fmt.Errorf("%s: %w", path, err)
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// uneven makes the first read shorter. What the list leaves out are the first entries of a read (ReadConns). If all readings were split
// in the same places, two of them might well miss the same entry.
type uneven struct {
	r     io.Reader
	first int
}

// Bounds of the first read, in bytes: some lines, and less than the page that the kernel gives at most.
const minFirst, maxFirst = 300, 4000

func (u *uneven) Read(b []byte) (int, error) {
	if u.first > 0 {
		b = b[:min(u.first, len(b))]
		u.first = 0
	}
	return u.r.Read(b)
}

// ParseConns reads the text of either file; the heading tells which one it is.
func ParseConns(r io.Reader) iter.Seq2[ProcConn, error] {
	return func(yield func(ProcConn, error) bool) {
		br := bufio.NewReaderSize(r, 8192) // the kernel gives at most 4096 bytes at once
		var p connParser
		for line := 1; ; line++ {
			text, err := br.ReadSlice('\n')
			if err != nil && (!errors.Is(err, io.EOF) || len(text) > 0) {
				yield(ProcConn{}, fmt.Errorf("line %d: %w", line, unexpected(err)))
				return
			}
			if err != nil {
				return
			}
			text = text[:len(text)-1]
			if line == 1 {
				if err := p.heading(text); err != nil {
					yield(ProcConn{}, err)
					return
				}
				continue
			}
			c, err := p.parse(text)
			if err != nil {
				yield(ProcConn{}, fmt.Errorf("line %d %q: %w", line, text, err))
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// unexpected names the end of file in the middle of a line.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// connParser parses lines of net/netfilter/ipvs/ip_vs_conn.c: ip_vs_conn_seq_show, ip_vs_conn_sync_seq_show.
type connParser struct {
	origin bool // the column is there
}

func (p *connParser) heading(b []byte) error {
	f := bytes.Fields(b)
	if len(f) < 9 || string(f[0]) != "Pro" || string(f[7]) != "State" {
		return fmt.Errorf("line 1 %q: not the heading of a list of connections", b)
	}
	p.origin = string(f[8]) == "Origin"
	return nil
}

var errColumn = errors.New("unknown form")

func (p *connParser) parse(b []byte) (ProcConn, error) {
	var c ProcConn
	var err error
	field := func() (f []byte) {
		b = bytes.TrimLeft(b, " ")
		f, b, _ = bytes.Cut(b, []byte{' '})
		return f
	}
	column := func(name string, ferr error) {
		if ferr != nil && err == nil {
			err = fmt.Errorf("column %s: %w", name, ferr)
		}
	}
	endpoint := func(name string) (ap netip.AddrPort) {
		ap, ferr := parseEndpoint(field(), field())
		column(name, ferr)
		return ap
	}
	protocol, perr := parseProtocol(field())
	column("Pro", perr)
	c.Protocol = protocol
	c.Client = endpoint("FromIP")
	c.Virtual = endpoint("ToIP")
	c.Real = endpoint("DestIP")
	c.State = stateName(field())
	if p.origin {
		switch string(field()) {
		case "SYNC":
			c.Synced = true
		case "LOCAL":
		default:
			column("Origin", errColumn)
		}
	}
	seconds, serr := strconv.ParseUint(string(field()), 10, 32)
	column("Expires", serr)
	c.Expires = time.Duration(seconds) * time.Second
	if !p.origin && len(b) > 0 {
		c.PEName = string(field())
		c.PEData = string(b)
	}
	if err != nil {
		return ProcConn{}, err
	}
	// A template has no client port, and its state is one of these two. A connection in state NONE whose client port is not
	// known yet would look the same, but the only ones without a port, FTP data, begin in LISTEN.
	c.Template = c.Client.Port() == 0 && (c.State == "NONE" || c.State == "ASSURED")
	if c.Template && c.Protocol == unix.IPPROTO_IP {
		// ip_vs_core.c, ip_vs_sched_persist: the mark is put into .ip, the first 4 bytes, in both families.
		a := c.Virtual.Addr().AsSlice()
		c.FwmarkService = uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	}
	// ip_vs_conn.c, ip_vs_check_template: up to 6.x both ports, in 7.x only the server's.
	c.Invalidated = c.Template && c.Real.Port() == 0xffff
	return c, nil
}

// parseProtocol is the reverse of ip_vs_proto_name.
func parseProtocol(b []byte) (uint8, error) {
	switch string(b) {
	case "TCP":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	case "IP":
		return unix.IPPROTO_IP, nil
	case "ICMP":
		return unix.IPPROTO_ICMP, nil
	case "ICMPv6":
		return unix.IPPROTO_ICMPV6, nil
	}
	number, ok := bytes.CutPrefix(b, []byte("IP_"))
	if !ok {
		return 0, errColumn
	}
	n, err := strconv.ParseUint(string(number), 10, 8)
	return uint8(n), err
}

// parseEndpoint parses an address, IPv4 as 8 hexadecimal digits in network order, IPv6 as 8 full groups with colons,
// and a port of 4 hexadecimal digits.
func parseEndpoint(addr, port []byte) (netip.AddrPort, error) {
	var a16 [16]byte
	var a4, p [4]byte
	if len(port) != 4 {
		return netip.AddrPort{}, errColumn
	}
	if _, err := hex.Decode(p[:2], port); err != nil {
		return netip.AddrPort{}, err
	}
	n := uint16(p[0])<<8 | uint16(p[1])
	switch len(addr) {
	case 8:
		if _, err := hex.Decode(a4[:], addr); err != nil {
			return netip.AddrPort{}, err
		}
		return netip.AddrPortFrom(netip.AddrFrom4(a4), n), nil
	case 39:
		for i := range 8 {
			group := addr[5*i:]
			if i < 7 && group[4] != ':' {
				return netip.AddrPort{}, errColumn
			}
			if _, err := hex.Decode(a16[2*i:], group[:4]); err != nil {
				return netip.AddrPort{}, err
			}
		}
		return netip.AddrPortFrom(netip.AddrFrom16(a16), n), nil
	}
	return netip.AddrPort{}, errColumn
}

// stateNames are the names that occur, so that a list of a million lines does not make a string for each.
var stateNames = []string{
	"ESTABLISHED", "UDP", "NONE", "ASSURED", "TIME_WAIT", "FIN_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "SYN_SENT", "SYN_RECV",
	"LISTEN", "SYNACK", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "S-SENT", "S-RECEIVED", "S-ACK-SENT",
	"REJECTED", "CLOSED", "ERR!",
}

func stateName(b []byte) string {
	for _, s := range stateNames {
		if s == string(b) { // does not allocate
			return s
		}
	}
	return string(b)
}
