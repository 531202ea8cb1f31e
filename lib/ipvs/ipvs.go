package ipvs

import (
	"errors"
	"net/netip"
	"time"
)

var (
	// ErrNotAvailable says that this kernel has no IPVS, or that its module cannot be loaded.
	ErrNotAvailable = errors.New("the kernel has no IPVS (module ip_vs)")
	// ErrExists says that a service, a destination or a sync thread of that kind is there already.
	ErrExists = errors.New("exists already")
	// ErrNotFound says that there is no such service or destination.
	ErrNotFound = errors.New("does not exist")
	// ErrNotRunning says that no sync thread of that kind runs.
	ErrNotRunning = errors.New("sync thread is not running")
)

// Forwarding methods of a destination (include/uapi/linux/ip_vs.h, IP_VS_CONN_F_FWD_MASK).
const (
	MethodMasq   uint32 = 0 // network address translation
	MethodLocal  uint32 = 1 // the director itself
	MethodTunnel uint32 = 2 // IP in IP
	MethodDirect uint32 = 3 // direct routing
)

// Flags of a service (include/uapi/linux/ip_vs.h, IP_VS_SVC_F_*).
const (
	ServicePersistent uint32 = 0x1 // a client stays with its server for Timeout
	ServiceOnePacket  uint32 = 0x4 // each datagram is scheduled anew
	ServiceSched1     uint32 = 0x8 // the scheduler's own: sh-fallback, mh-fallback
	ServiceSched2     uint32 = 0x10
	ServiceSched3     uint32 = 0x20
)

// serviceHashed (IP_VS_SVC_F_HASHED) is internal to the kernel; listings leave it out, so that what was written equals
// what is read.
const serviceHashed uint32 = 0x2

// Service is a virtual service. It is named by Fwmark and Family, or else by Protocol, Address and Port.
type Service struct {
	Protocol uint8      // IPPROTO_TCP, UDP, SCTP; 0 with Fwmark
	Address  netip.Addr // invalid with Fwmark
	Port     uint16     // 0: all ports, for a persistent service
	Fwmark   uint32     // packets with this mark; 0: not by mark
	// Family is AF_INET or AF_INET6. 0 stands for the family of Address, and AF_INET with Fwmark.
	Family    uint16
	Scheduler string // rr, wlc, sh, ...
	Flags     uint32 // Service*
	// Timeout of persistence, in whole seconds.
	Timeout time.Duration
	// Netmask is the granularity of persistence: for IPv4 a mask such as 0xffffff00, for IPv6 a prefix length. 0 stands for
	// single addresses.
	Netmask uint32
	PEName  string // persistence engine, "sip"; empty: none
}

// Key names the service: two services with the same key are the same to the kernel.
func (s Service) Key() Service {
	s = s.normal()
	if s.Fwmark != 0 {
		return Service{Fwmark: s.Fwmark, Family: s.Family}
	}
	return Service{Protocol: s.Protocol, Address: s.Address, Port: s.Port, Family: s.Family}
}

// normal fills in what 0 stands for.
func (s Service) normal() Service {
	s.Address = s.Address.Unmap()
	if s.Family == 0 {
		s.Family = familyInet
		if s.Address.Is6() {
			s.Family = familyInet6
		}
	}
	if s.Netmask == 0 && s.Family == familyInet6 {
		s.Netmask = 128
	} else if s.Netmask == 0 {
		s.Netmask = 0xffffffff
	}
	s.Flags &^= serviceHashed
	return s
}

const (
	familyInet  = 2  // AF_INET
	familyInet6 = 10 // AF_INET6
)

// Destination is a real server of a service.
type Destination struct {
	Address netip.Addr
	Port    uint16
	Method  uint32 // Method*
	Weight  int    // 0: no new connections
	// What follows is counted by the kernel and ignored when writing.
	ActiveConns, InactiveConns, PersistentConns int
}

// Entries returns how many connections and templates the kernel has for the destination. What it has for none, because
// their service was deleted or never was, is in no such count.
func (d Destination) Entries() int { return d.ActiveConns + d.InactiveConns + d.PersistentConns }

// Services reads and writes virtual services. All methods may be called from several goroutines; none takes longer than
// some seconds. An error for which errors.Is(err, os.ErrDeadlineExceeded) holds leaves open whether the change was made.
type Services interface {
	// Services lists all services in the kernel's order.
	Services() ([]Service, error)
	// Destinations lists the destinations of a service; ErrNotFound when there is no such service.
	Destinations(Service) ([]Destination, error)
	// AddService returns ErrExists when there is one with the same key.
	AddService(Service) error
	// DeleteService deletes the service with its destinations; connections stay. ErrNotFound.
	DeleteService(Service) error
	// AddDestination returns ErrExists or ErrNotFound (of the service).
	AddDestination(Service, Destination) error
	// DeleteDestination returns ErrNotFound when the service or the destination is not there.
	DeleteDestination(Service, Destination) error
	Close() error
}

// DaemonState is the kind of a sync thread.
type DaemonState uint32

// The two kinds (include/uapi/linux/ip_vs.h, IP_VS_STATE_*).
const (
	Master DaemonState = 1 // sends
	Backup DaemonState = 2 // receives
)

func (s DaemonState) String() string {
	switch s {
	case Master:
		return "master"
	case Backup:
		return "backup"
	}
	return "unknown"
}

// Daemon is a sync thread of the kernel. There is at most one of each kind in a network namespace.
type Daemon struct {
	State DaemonState
	// Interface that it sends to or receives from.
	Interface string
	// SyncID goes into each message; a backup with 0 takes messages with any.
	SyncID uint8
	// MaxLen is the length of a message in bytes; 0 stands for the kernel's default: 1472 for a master, the interface's MTU
	// less 28 for a backup.
	MaxLen uint16
	// Group is the multicast address; invalid stands for 224.0.0.81.
	Group netip.Addr
	// Port is the UDP port; 0 stands for 8848.
	Port uint16
	// TTL of what a master sends; 0 stands for 1.
	TTL uint8
}

// Daemons controls the kernel's sync threads. All methods may be called from several goroutines; none takes longer than
// some seconds.
type Daemons interface {
	// List returns the running threads, the master first. The kernel reports all values, defaults included.
	List() ([]Daemon, error)
	// Start returns ErrExists when one of the kind runs already, ENODEV when the interface does not exist, ENETUNREACH when
	// it is down.
	Start(Daemon) error
	// Stop returns ErrNotRunning when none of the kind runs. A master's records that have not been sent are lost.
	Stop(DaemonState) error
	Close() error
}
