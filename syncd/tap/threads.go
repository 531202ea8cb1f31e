package tap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"saru/lib/ipvs"
	"saru/lib/sysctl"
	"saru/netfilter/guard"
)

// Problem is something that keeps a tap from being opened, as --check reports it.
type Problem struct {
	Err error
	// Environment says that the machine cannot do it at all, as opposed to what an operator has set up otherwise.
	Environment bool
}

// Check looks for what would keep Open from succeeding, and changes nothing.
func Check(cfg Config) []Problem {
	var out []Problem
	daemons, err := ipvs.OpenDaemons()
	if err != nil {
		return append(out, Problem{err, true})
	}
	defer daemons.Close()
	if err := checkDaemons(daemons, cfg.Device); err != nil {
		out = append(out, Problem{err, false})
	}
	if err := cfg.checkBackupOnly(); err != nil {
		out = append(out, Problem{err, errors.Is(err, os.ErrNotExist)})
	}
	if cfg.Sysctl == SysctlCheck {
		if err := cfg.checkSysctls(); err != nil {
			out = append(out, Problem{err, false})
		}
	}
	if _, err := guard.Check(cfg.guard()); err != nil {
		out = append(out, Problem{fmt.Errorf("look at nftables, which guards the tap: %w", err), true})
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		out = append(out, Problem{fmt.Errorf("open the TUN driver (modprobe tun): %w", err), true})
	} else {
		f.Close()
	}
	return out
}

// checkDaemons looks for sync threads that are not on our device.
func checkDaemons(daemons ipvs.Daemons, device string) error {
	running, err := daemons.List()
	if err != nil {
		return err
	}
	return refuseForeign(running, device)
}

func refuseForeign(running []ipvs.Daemon, device string) error {
	var foreign, stop []string
	for _, d := range running {
		if d.Interface != device {
			foreign = append(foreign, fmt.Sprintf("%s on %s with syncid %d", d.State, d.Interface, d.SyncID))
			stop = append(stop, "`ipvsadm --stop-daemon "+d.State.String()+"`")
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	return fmt.Errorf("%w (%s), and there can be only one: stop it with %s, or take lvs_sync_daemon out of keepalived.conf",
		ErrForeignDaemon, strings.Join(foreign, ", "), strings.Join(stop, " and "))
}

func (c *Config) checkBackupOnly() error {
	const name = "net/ipv4/vs/backup_only"
	bad, err := c.store().Check([]sysctl.Setting{{Name: name, Value: "0"}})
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w, which turns IPVS off beside a backup thread: sysctl -w net.ipv4.vs.backup_only=0", ErrBackupOnly)
	}
	return nil
}

func (c *Config) checkSysctls() error {
	differing, err := c.store().Check(Settings())
	if err != nil {
		return err
	}
	if len(differing) == 0 {
		return nil
	}
	var list []string
	for _, d := range differing {
		list = append(list, fmt.Sprintf("%s is %q, needs %q", strings.ReplaceAll(d.Name, "/", "."), d.Old, d.New))
	}
	return fmt.Errorf("--sysctl check: %s", strings.Join(list, "; "))
}

func (c *Config) applySysctls() error {
	switch c.Sysctl {
	case SysctlCheck:
		return c.checkSysctls()
	case SysctlApply:
		changes, err := c.store().Apply(Settings())
		for _, ch := range changes {
			c.Log.Info("sysctl changed", "name", ch.Name, "old", ch.Old, "new", ch.New)
		}
		return err
	}
	return nil
}

// startThreads makes both threads run on the device. Threads that are there are kept, unless fresh says that they were started on an
// earlier device of that name: they stay bound to an interface index that is gone (ip_vs_sync.c, start_sync_thread).
func (k *Kernel) startThreads(fresh bool) error {
	running, err := k.daemons.List()
	if err != nil {
		return err
	}
	want := map[ipvs.DaemonState]ipvs.Daemon{}
	ids := rand.Perm(255) // so that another sync daemon's messages, should they ever get here, are ignored
	for i, state := range []ipvs.DaemonState{ipvs.Master, ipvs.Backup} {
		d := ipvs.Daemon{State: state, Interface: k.cfg.Device, SyncID: uint8(ids[i] + 1), Group: group.Addr(), Port: group.Port(), TTL: 1}
		if state == ipvs.Master {
			d.MaxLen = masterMaxLen
		}
		want[state] = d
	}
	for _, d := range running {
		w, same := want[d.State], d
		same.SyncID, same.TTL = w.SyncID, w.TTL
		if d.State == ipvs.Backup {
			same.MaxLen = w.MaxLen // derived from the MTU
		}
		if !fresh && same == w {
			want[d.State] = d
			k.cfg.Log.Info("kernel thread found", "state", d.State, "interface", d.Interface, "syncid", d.SyncID)
			continue
		}
		if err := k.daemons.Stop(d.State); err != nil && !errors.Is(err, ipvs.ErrNotRunning) {
			return err
		}
	}
	for _, state := range []ipvs.DaemonState{ipvs.Backup, ipvs.Master} {
		if err := k.daemons.Start(want[state]); err != nil && !errors.Is(err, ipvs.ErrExists) {
			return err
		}
	}
	k.syncID.Store(uint32(want[ipvs.Backup].SyncID))
	return nil
}

// tick returns the service of the tap's own connection, whose real server is the tap's other end.
func (c *Config) tick() (ipvs.Service, ipvs.Destination) {
	return ipvs.Service{Protocol: protoTCP, Address: c.Local, Port: port, Scheduler: "rr"},
		ipvs.Destination{Address: c.peer(), Port: port, Method: ipvs.MethodMasq, Weight: 1}
}

func (k *Kernel) addTickService() error {
	s, d := k.cfg.tick()
	if err := k.services.AddService(s); err != nil && !errors.Is(err, ipvs.ErrExists) {
		return fmt.Errorf("add the tick's virtual service: %w", err)
	}
	if err := k.services.AddDestination(s, d); err != nil && !errors.Is(err, ipvs.ErrExists) {
		return fmt.Errorf("add the tick's real server: %w", err)
	}
	return nil
}

// Service is a virtual service with its real servers.
type Service struct {
	ipvs.Service
	Destinations []ipvs.Destination
}

// Mend puts back what somebody took away: threads (ipvsadm --stop-daemon) and the tick's service (ipvsadm -C). It returns the virtual
// services without the tick's. ErrForeignDaemon: somebody has started a thread elsewhere in place of one of ours, as keepalived
// does when its role changes. Call it every second.
func (k *Kernel) Mend() ([]Service, error) {
	running, err := k.daemons.List()
	if err != nil {
		return nil, err
	}
	if err := refuseForeign(running, k.cfg.Device); err != nil {
		return nil, err
	}
	if len(running) < 2 {
		if err := k.startThreads(false); err != nil {
			return nil, err
		}
		k.cfg.Log.Warn("kernel threads started again: somebody had stopped them", "running", len(running))
	}
	out, ticks, err := k.list()
	if err != nil {
		return nil, err
	}
	if !ticks {
		if err := k.addTickService(); err != nil {
			return nil, err
		}
		tick, _ := k.cfg.tick()
		k.cfg.Log.Warn("the tick's virtual service was added again: somebody had removed it", "service", tick)
	}
	return out, nil
}

// Services returns the virtual services without the tick's.
func (k *Kernel) Services() ([]Service, error) {
	out, _, err := k.list()
	return out, err
}

// list returns the virtual services without the tick's, and whether that is there.
func (k *Kernel) list() (out []Service, ticks bool, err error) {
	list, err := k.services.Services()
	if err != nil {
		return nil, false, err
	}
	tick, _ := k.cfg.tick()
	for _, s := range list {
		if s.Key() == tick.Key() {
			ticks = true
			continue
		}
		dests, err := k.services.Destinations(s)
		if errors.Is(err, ipvs.ErrNotFound) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, false, err
		}
		out = append(out, Service{s, dests})
	}
	return out, ticks, nil
}
