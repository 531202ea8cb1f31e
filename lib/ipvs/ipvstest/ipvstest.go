// Package ipvstest has an IPVS kernel in memory, for tests of programs that use package ipvs.
package ipvstest

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"saru/lib/ipvs"
)

// Kernel holds services, destinations and sync threads. Its zero value is a kernel without any of them, ready to use. Any
// number of connections may be opened to it.
type Kernel struct {
	mu       sync.Mutex
	services []service
	daemons  []ipvs.Daemon
	fail     func(op string) error
	log      []string
}

type service struct {
	ipvs.Service
	dests []ipvs.Destination
}

var (
	_ ipvs.Services = (*Conn)(nil)
	_ ipvs.Daemons  = Daemons{}
)

// Fail makes fn decide about each call: what it returns is returned, and nothing happens; nil lets the call through. The
// operation is the name of the method, with "Daemons." before those of sync threads. A nil fn ends it.
func (k *Kernel) Fail(fn func(op string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fn
}

// Log returns the changes that were made, one line each, oldest first, in a form for comparison in tests.
func (k *Kernel) Log() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.log)
}

// Flush deletes all services, as ipvsadm -C does.
func (k *Kernel) Flush() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.services = nil
	k.log = append(k.log, "flush")
}

// SetConns sets the counters of a destination.
func (k *Kernel) SetConns(svc ipvs.Service, dst ipvs.Destination) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, d, err := k.find(svc, dst)
	if err != nil {
		return err
	}
	d.ActiveConns, d.InactiveConns, d.PersistentConns = dst.ActiveConns, dst.InactiveConns, dst.PersistentConns
	return nil
}

// find returns the places of a service and of a destination.
func (k *Kernel) find(svc ipvs.Service, dst ipvs.Destination) (*service, *ipvs.Destination, error) {
	i := slices.IndexFunc(k.services, func(s service) bool { return s.Key() == svc.Key() })
	if i < 0 {
		return nil, nil, ipvs.ErrNotFound
	}
	s := &k.services[i]
	j := slices.IndexFunc(s.dests, func(d ipvs.Destination) bool {
		return d.Address == dst.Address.Unmap() && d.Port == dst.Port
	})
	if j < 0 {
		return s, nil, ipvs.ErrNotFound
	}
	return s, &s.dests[j], nil
}

// Services opens a connection.
func (k *Kernel) Services() *Conn { return &Conn{k: k} }

// Daemons opens a connection to the sync threads.
func (k *Kernel) Daemons() Daemons { return Daemons{&Conn{k: k}} }

// Conn is an ipvs.Services. After Close its methods return os.ErrClosed.
type Conn struct {
	k      *Kernel
	closed bool // guarded by k.mu
}

// call runs fn under the kernel's lock, if the connection is open and the test lets it.
func (c *Conn) call(op, step string, fn func(k *Kernel) error) error {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if c.closed {
		return os.ErrClosed
	}
	var err error
	if c.k.fail != nil {
		err = c.k.fail(op)
	}
	if err == nil {
		err = fn(c.k)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

func (k *Kernel) note(format string, args ...any) {
	k.log = append(k.log, fmt.Sprintf(format, args...))
}

// Services implements ipvs.Services.
func (c *Conn) Services() (list []ipvs.Service, err error) {
	err = c.call("Services", "list virtual services", func(k *Kernel) error {
		list = make([]ipvs.Service, 0, len(k.services))
		for _, s := range k.services {
			list = append(list, s.Service)
		}
		return nil
	})
	return list, err
}

// Destinations implements ipvs.Services.
func (c *Conn) Destinations(svc ipvs.Service) (list []ipvs.Destination, err error) {
	err = c.call("Destinations", "list destinations of "+svc.String(), func(k *Kernel) error {
		s, _, err := k.find(svc, ipvs.Destination{})
		if s == nil {
			return err
		}
		list = append([]ipvs.Destination{}, s.dests...)
		return nil
	})
	return list, err
}

// AddService implements ipvs.Services.
func (c *Conn) AddService(svc ipvs.Service) error {
	return c.call("AddService", "add virtual service "+svc.String(), func(k *Kernel) error {
		if s, _, _ := k.find(svc, ipvs.Destination{}); s != nil {
			return ipvs.ErrExists
		}
		// As the kernel reports it.
		key := svc.Key()
		svc.Protocol, svc.Address, svc.Port, svc.Family = key.Protocol, key.Address, key.Port, key.Family
		svc.Flags &^= 0x2
		k.services = append(k.services, service{Service: svc})
		k.note("add service %s %s", svc, svc.Scheduler)
		return nil
	})
}

// DeleteService implements ipvs.Services.
func (c *Conn) DeleteService(svc ipvs.Service) error {
	return c.call("DeleteService", "delete virtual service "+svc.String(), func(k *Kernel) error {
		s, _, err := k.find(svc, ipvs.Destination{})
		if s == nil {
			return err
		}
		k.services = slices.DeleteFunc(k.services, func(o service) bool { return o.Key() == svc.Key() })
		k.note("delete service %s", svc)
		return nil
	})
}

// AddDestination implements ipvs.Services.
func (c *Conn) AddDestination(svc ipvs.Service, dst ipvs.Destination) error {
	return c.call("AddDestination", fmt.Sprintf("add %s to virtual service %s", dst, svc), func(k *Kernel) error {
		s, d, err := k.find(svc, dst)
		if s == nil {
			return err
		}
		if d != nil {
			return ipvs.ErrExists
		}
		dst.Address = dst.Address.Unmap()
		dst.ActiveConns, dst.InactiveConns, dst.PersistentConns = 0, 0, 0
		s.dests = append(s.dests, dst)
		k.note("add destination %s to %s", dst, svc)
		return nil
	})
}

// DeleteDestination implements ipvs.Services.
func (c *Conn) DeleteDestination(svc ipvs.Service, dst ipvs.Destination) error {
	return c.call("DeleteDestination", fmt.Sprintf("delete %s from virtual service %s", dst, svc), func(k *Kernel) error {
		s, d, err := k.find(svc, dst)
		if err != nil {
			return err
		}
		s.dests = slices.DeleteFunc(s.dests, func(o ipvs.Destination) bool { return o.Address == d.Address && o.Port == d.Port })
		k.note("delete destination %s from %s", dst, svc)
		return nil
	})
}

// Close implements ipvs.Services.
func (c *Conn) Close() error {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if c.closed {
		return os.ErrClosed
	}
	c.closed = true
	return nil
}

// Daemons is an ipvs.Daemons.
type Daemons struct{ c *Conn }

// List implements ipvs.Daemons.
func (d Daemons) List() (list []ipvs.Daemon, err error) {
	err = d.c.call("Daemons.List", "list sync threads", func(k *Kernel) error {
		list = slices.Clone(k.daemons)
		return nil
	})
	return list, err
}

// Start implements ipvs.Daemons. Every interface exists and is up.
func (d Daemons) Start(one ipvs.Daemon) error {
	step := fmt.Sprintf("start the %s sync thread on %q", one.State, one.Interface)
	return d.c.call("Daemons.Start", step, func(k *Kernel) error {
		if err := one.Check(); err != nil {
			return err
		}
		if slices.ContainsFunc(k.daemons, func(o ipvs.Daemon) bool { return o.State == one.State }) {
			return ipvs.ErrExists
		}
		k.daemons = append(k.daemons, withDefaults(one))
		slices.SortFunc(k.daemons, func(a, b ipvs.Daemon) int { return cmp.Compare(a.State, b.State) })
		k.note("start %s on %s with syncid %d", one.State, one.Interface, one.SyncID)
		return nil
	})
}

// withDefaults fills in what the kernel chooses (net/netfilter/ipvs/ip_vs_sync.c, start_sync_thread).
func withDefaults(d ipvs.Daemon) ipvs.Daemon {
	if d.MaxLen == 0 {
		d.MaxLen = 1472
	}
	if !d.Group.IsValid() {
		d.Group = netip.AddrFrom4([4]byte{224, 0, 0, 81})
	}
	d.Group = d.Group.Unmap()
	if d.Port == 0 {
		d.Port = 8848
	}
	if d.TTL == 0 {
		d.TTL = 1
	}
	return d
}

// Stop implements ipvs.Daemons.
func (d Daemons) Stop(state ipvs.DaemonState) error {
	return d.c.call("Daemons.Stop", fmt.Sprintf("stop the %s sync thread", state), func(k *Kernel) error {
		before := len(k.daemons)
		k.daemons = slices.DeleteFunc(k.daemons, func(o ipvs.Daemon) bool { return o.State == state })
		if len(k.daemons) == before {
			return ipvs.ErrNotRunning
		}
		k.note("stop %s", state)
		return nil
	})
}

// Close implements ipvs.Daemons.
func (d Daemons) Close() error { return d.c.Close() }
