package scenarios

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"saru/integration/farm"
)

// A farmFault is done to director i, and undone.
type farmFault struct {
	name string
	// loses: the director goes without warning, and with it what it has not mirrored yet.
	loses bool
	do    func(a *activeFarm, i int, length time.Duration)
}

var farmFaults = []farmFault{
	{"SIGKILL of saru", false, func(a *activeFarm, i int, length time.Duration) {
		_ = a.saru[i].Signal(syscall.SIGKILL)
		time.Sleep(length)
		a.saru[i] = launchSaru(a.t, a.farm.Directors[i])
	}},
	{"SIGSTOP of saru", false, func(a *activeFarm, i int, length time.Duration) { signalled(a.saru[i].Process, length) }},
	{"SIGKILL of syncd", false, func(a *activeFarm, i int, length time.Duration) {
		_ = a.syncd[i].Signal(syscall.SIGKILL)
		time.Sleep(length)
		a.syncd[i] = launchSyncd(a.t, a.farm.Directors[i], "")
		a.syncd[i].waitSynced(a.t)
	}},
	{"SIGSTOP of syncd", false, func(a *activeFarm, i int, length time.Duration) { signalled(a.syncd[i].Process, length) }},
	{"death and return", true, func(a *activeFarm, i int, length time.Duration) {
		must(a.t, a.farm.Directors[i].PowerOff())
		time.Sleep(length)
		a.switchOn(i)
	}},
	{"all cables pulled", true, func(a *activeFarm, i int, length time.Duration) {
		d := a.farm.Directors[i]
		cables := func(up bool) {
			for _, s := range []farm.Segment{farm.Front, farm.Sync, farm.Inside} {
				must(a.t, d.SetLink(s, up))
			}
		}
		cables(false)
		time.Sleep(length)
		cables(true)
	}},
	{"one heartbeat link pulled", false, func(a *activeFarm, i int, length time.Duration) {
		d := a.farm.Directors[i]
		must(a.t, d.SetLink(farm.Sync, false))
		time.Sleep(length)
		must(a.t, d.SetLink(farm.Sync, true))
	}},
	// The packets of the virtual address still come in all these: nothing but the filter keeps two directors from taking one.
	{"deaf on one heartbeat link", false, cutBeats(true, false, farm.Front)},
	{"mute on one heartbeat link", false, cutBeats(false, true, farm.Sync)},
	{"deaf on all heartbeat links", false, cutBeats(true, false, farm.Front, farm.Sync)},
	{"mute on all heartbeat links", false, cutBeats(false, true, farm.Front, farm.Sync)},
	{"cut on all heartbeat links", false, cutBeats(true, true, farm.Front, farm.Sync)},
	{"loss", false, func(a *activeFarm, i int, length time.Duration) {
		for _, d := range a.on() {
			must(a.t, d.Impair(farm.Sync, "loss 20% delay 2ms 2ms reorder 25%"))
			must(a.t, d.Impair(farm.Front, "loss 5%"))
		}
		time.Sleep(length)
		for _, d := range a.on() {
			must(a.t, d.Impair(farm.Sync, ""))
			must(a.t, d.Impair(farm.Front, ""))
		}
	}},
	{"drain and undrain", false, func(a *activeFarm, i int, length time.Duration) {
		a.saructl(i, "drain")
		time.Sleep(length)
		a.saructl(i, "undrain")
	}},
	{"drain of two", false, func(a *activeFarm, i int, length time.Duration) {
		j := (i + 1) % a.always
		a.saructl(i, "drain")
		a.saructl(i, "drain", a.farm.Directors[j].Name) // from afar
		time.Sleep(length)
		a.saructl(j, "undrain")
		a.saructl(j, "undrain", a.farm.Directors[i].Name)
	}},
	{"orderly restart of saru", false, func(a *activeFarm, i int, length time.Duration) {
		a.stop(a.saru[i].Process)
		time.Sleep(length)
		a.saru[i] = launchSaru(a.t, a.farm.Directors[i])
	}},
	{"rolling restart", false, func(a *activeFarm, i int, length time.Duration) {
		for k := range a.always {
			j := (i + k) % a.always
			a.stop(a.saru[j].Process)
			a.stop(a.syncd[j].Process)
			time.Sleep(length / time.Duration(a.always))
			a.syncd[j] = launchSyncd(a.t, a.farm.Directors[j], "")
			a.syncd[j].waitSynced(a.t)
			a.saru[j] = launchSaru(a.t, a.farm.Directors[j])
			a.whole()
		}
	}},
	{"join of one more, and its leave", false, func(a *activeFarm, _ int, length time.Duration) {
		more := a.always // it is off otherwise
		a.switchOn(more)
		a.whole()
		time.Sleep(length)
		a.stop(a.saru[more].Process)
		a.stop(a.syncd[more].Process)
		must(a.t, a.farm.Directors[more].PowerOff())
		a.saru[more], a.syncd[more] = nil, nil
	}},
}

func signalled(p *farm.Process, length time.Duration) {
	_ = p.Signal(syscall.SIGSTOP)
	time.Sleep(length)
	_ = p.Signal(syscall.SIGCONT)
}

// stop ends a daemon in good order.
func (a *activeFarm) stop(p *farm.Process) {
	a.t.Helper()
	_ = p.Signal(syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		a.t.Errorf("after SIGTERM: %v", err)
	}
}

// saructl tells the farm something by director i.
func (a *activeFarm) saructl(i int, args ...string) {
	a.t.Helper()
	d := a.farm.Directors[i]
	if out, err := d.Run("saructl", append(args, "--control", saruSocket)...); err != nil {
		a.t.Errorf("saructl %s on %s: %v\n%s", strings.Join(args, " "), d.Name, err, out)
	}
}

// cutBeats makes a director deaf or mute, or both, for the coordinators' datagrams on some segments: saru's packets only, as the table stands in its own namespace
// beside saru's.
func cutBeats(deaf, mute bool, segments ...farm.Segment) func(a *activeFarm, i int, length time.Duration) {
	return func(a *activeFarm, i int, length time.Duration) {
		var rules string
		for _, s := range segments {
			if deaf {
				rules += fmt.Sprintf("add rule inet cut in iifname %s udp dport 8850 drop\n", s)
			}
			if mute {
				rules += fmt.Sprintf("add rule inet cut out oifname %s udp dport 8850 drop\n", s)
			}
		}
		d := a.farm.Directors[i]
		_, err := d.RunInput("add table inet cut\nadd chain inet cut in { type filter hook prerouting priority -450; }\n"+
			"add chain inet cut out { type filter hook output priority -450; }\n"+rules, "nft", "-f", "-")
		must(a.t, err)
		time.Sleep(length)
		_, err = d.Run("nft", "delete", "table", "inet", "cut")
		must(a.t, err)
	}
}
