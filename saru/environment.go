package saru

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"

	"saru/lib/ipvs"
	"saru/lib/logging"
	"saru/lib/program"
	"saru/lib/seal"
	"saru/netfilter/share"
)

const insecure = "--insecure: whoever can send on the segment can take the virtual addresses away from all directors"

// loadKeys reads the keys; nil with --insecure.
func (o *Options) loadKeys() (*seal.Ring, error) {
	if o.Insecure {
		return nil, nil
	}
	return program.LoadKeys(o.KeyFile, "saru", o.Group)
}

// checkEnvironment looks at interfaces, then at privileges.
func (o *Options) checkEnvironment() error {
	if err := o.checkInside(); err != nil {
		return err
	}
	return program.CheckMachine(o.Interfaces)
}

func (o *Options) checkInside() error {
	if o.Inside == "" {
		return nil
	}
	if _, err := net.InterfaceByName(o.Inside); err != nil {
		return fmt.Errorf("--inside %s: there is no such interface", o.Inside)
	}
	return nil
}

// degrading are the beginnings of what netfilter/share finds to be missing, and does without.
var degrading = []string{"defragmentation before the filter", "protection of the table"}

// checkKernel asks the kernel for what the filter needs, and for IPVS if the addresses come from there. It changes nothing. Warnings are what saru does without.
func (o *Options) checkKernel() (warnings []string, findings []error) {
	lacking, err := share.Check(o.filterConfig(nil, slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, []error{err}
	}
	for _, f := range lacking {
		if slices.ContainsFunc(degrading, func(begin string) bool { return strings.HasPrefix(string(f), begin) }) {
			warnings = append(warnings, "this kernel lacks "+string(f))
		} else {
			findings = append(findings, fmt.Errorf("this kernel lacks %s", f))
		}
	}
	if o.VirtualAuto {
		if err := ipvs.Probe(); err != nil {
			findings = append(findings, fmt.Errorf("--virtual auto: %w", err))
		}
	}
	return warnings, findings
}

// check is --check: it prints what is missing and changes nothing.
func check(o Options, stdout, stderr io.Writer) int {
	var warnings []string
	var findings []error
	note := func(err error) {
		if err != nil {
			findings = append(findings, err)
		}
	}
	note(logging.CheckFacility(o.LogFacility))
	_, err := o.loadKeys()
	note(err)
	if o.Insecure {
		warnings = append(warnings, insecure)
	}
	findings = append(findings, program.InterfaceFindings(o.Interfaces)...)
	note(o.checkInside())
	if err := program.CheckPrivileges(); err != nil {
		note(err)
	} else {
		w, f := o.checkKernel()
		warnings, findings = append(warnings, w...), append(findings, f...)
	}
	w, err := o.segmentWarnings()
	note(err)
	return program.Report("saru", append(warnings, w...), findings, stdout, stderr)
}

// segmentWarnings tell where heartbeats would not notice what happens to the virtual addresses, and where --mac is not what the interfaces have. Which
// interfaces have no MAC address but the shared one cannot be told without --mac.
func (o *Options) segmentWarnings() ([]string, error) {
	var warnings []string
	var near []netip.Prefix
	for _, name := range o.Interfaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			continue // said already
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return nil, fmt.Errorf("--interface %s: read its addresses: %w", name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				near = append(near, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked())
			}
		}
		if o.MAC != "" && ifi.HardwareAddr.String() == o.MAC {
			warnings = append(warnings, fmt.Sprintf("--interface %s: it has the shared MAC address %s, so directors do not reach each other over it by unicast, "+
				"which syncd needs to teach: add another --interface", name, o.MAC))
		}
	}
	for _, v := range o.Virtuals {
		if !slices.ContainsFunc(near, func(p netip.Prefix) bool { return p.Contains(v) }) {
			warnings = append(warnings, fmt.Sprintf("--virtual %s: no --interface has an address of its network, so the loss of its segment alone would go unnoticed", v))
		}
	}
	if o.MAC == "" {
		return append(warnings, "--mac is not given: each director forwards frames that reach the shared MAC address by chance, those for another director's own address again and again"), nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("--mac: list the interfaces: %w", err)
	}
	if !slices.ContainsFunc(all, func(i net.Interface) bool { return i.HardwareAddr.String() == o.MAC }) && !multicastMAC(o.MAC) {
		warnings = append(warnings, fmt.Sprintf("--mac %s: no interface has it, so this director gets no packets of the virtual addresses", o.MAC))
	}
	return warnings, nil
}

// multicastMAC reports whether a MAC address is a group's, which no interface has as its own.
func multicastMAC(s string) bool {
	a, err := net.ParseMAC(s)
	return err == nil && a[0]&1 != 0
}
