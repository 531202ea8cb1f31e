package syncd

import (
	"io"
	"log/slog"

	"saru/lib/logging"
	"saru/lib/program"
	"saru/lib/seal"
	"saru/syncd/engine"
	"saru/syncd/tap"
)

// keyRing is what --key_file, --insecure and --auth come to.
type keyRing struct {
	ring *seal.Ring // nil with --insecure
	auth engine.Auth
}

func (k keyRing) signer() uint8 {
	if k.ring == nil || k.auth == engine.ReceiveOnly {
		return 0
	}
	return k.ring.Signer()
}

func (o *Options) loadKeys() (keyRing, error) {
	k := keyRing{auth: map[string]engine.Auth{
		AuthEnforce: engine.Enforce, AuthPermissive: engine.Permissive, AuthReceiveOnly: engine.ReceiveOnly,
	}[o.Auth]}
	if o.Insecure {
		return k, nil
	}
	var err error
	k.ring, err = program.LoadKeys(o.KeyFile, "syncd", o.Group)
	return k, err
}

// check is --check: it prints what is missing and changes nothing.
func check(o Options, stdout, stderr io.Writer) int {
	var findings []error
	note := func(err error) {
		if err != nil {
			findings = append(findings, err)
		}
	}
	note(logging.CheckFacility(o.LogFacility))
	_, err := o.loadKeys()
	note(err)
	findings = append(findings, program.InterfaceFindings(o.Interfaces)...)
	if err := program.CheckPrivileges(); err != nil {
		note(err)
	} else {
		cfg := o.tapConfig(slog.New(slog.DiscardHandler))
		for _, p := range tap.Check(cfg) {
			note(p.Err)
		}
	}
	var warnings []string
	if o.Insecure {
		warnings = append(warnings, insecure)
	}
	return program.Report("syncd", warnings, findings, stdout, stderr)
}

const insecure = "--insecure: whoever can send on the segment can create, redirect and end every connection"

// needsRestart names the options that differ from those of the running daemon and that a reload does not change.
func (o Options) needsRestart(running Options) []string {
	return append(o.NeedRestart(running.Common), program.Differing(
		program.Option{Name: "tap", Same: o.Tap == running.Tap},
		program.Option{Name: "tap_address", Same: o.TapAddress == running.TapAddress},
		program.Option{Name: "sysctl", Same: o.Sysctl == running.Sysctl},
		program.Option{Name: "syncid", Same: o.SyncID == running.SyncID},
		program.Option{Name: "kernel_entries", Same: o.KernelEntries == running.KernelEntries},
		program.Option{Name: "join", Same: o.Join == running.Join && o.JoinOff == running.JoinOff},
	)...)
}
