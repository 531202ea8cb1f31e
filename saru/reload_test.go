package saru

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/flow"
	"saru/lib/ipvs"
	"saru/lib/mcast"
)

// configured returns a daemon that has read a configuration but runs nothing, and a function that writes another configuration and keys, and reloads.
func configured(t *testing.T, text, keys string) (*daemon, func(text, keys string) error) {
	t.Helper()
	dir := t.TempDir()
	keyFile, conf := filepath.Join(dir, "keys"), filepath.Join(dir, "saru.conf")
	write := func(text, keys string) {
		t.Helper()
		if err := os.WriteFile(keyFile, []byte(keys), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte("interface lo\nnode d1\nkey_file "+keyFile+"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text, keys)
	args := []string{"--config", conf}
	o, err := ParseOptions(args)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := o.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d := &daemon{
		daemonConfig: &daemonConfig{Options: o, Args: args, Ring: ring, Log: log}, log: log,
		virtuals: &virtuals{log: log}, pinger: &pinger{log: log}, look: make(chan struct{}, 1),
	}
	d.virtuals.configure(&o)
	d.pinger.configure(o.PingNodes)
	d.worker = newWorker(nil, nil, flow.Default.Buckets, o.Keepalive, d.virtuals.filter, log)
	d.coord = newCoordinator(o.coreConfig(), ring, &mcast.Conn{}, d.worker, log)
	return d, func(text, keys string) error {
		t.Helper()
		write(text, keys)
		return d.reload()
	}
}

func TestReload(t *testing.T) {
	first, second := "1 "+strings.Repeat("5a", 32)+"\n", "2 "+strings.Repeat("a5", 32)+"\n"
	const before = "virtual 192.0.2.1\nping_node 192.0.2.254\n"
	d, reload := configured(t, before, first)
	others, err := d.Options.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	signs := func(want uint8) {
		t.Helper()
		b := make([]byte, 64)
		d.coord.ring.Sign(b)
		if got := d.coord.ring.Signer(); got != want {
			t.Errorf("key %d signs, want %d", got, want)
		}
		if err := others.Verify(want, b); err != nil {
			t.Errorf("what it signs does not verify in the group that it is in: %v", err)
		}
	}
	signs(1)

	// All of what may change; and a group and a lease that may not. Other keys are derived for the group that it is in.
	const after = "virtual 192.0.2.2\nvirtual 192.0.2.3\nsense src-addr\nsense 192.0.2.3=src-port\nweight 7\nping_node 192.0.2.253\ngroup 224.0.0.82:8851\nlease 310ms\n"
	if err := reload(after, first+second); err != nil {
		t.Fatal(err)
	}
	if others, err = d.Options.loadKeys(); err != nil { // of both keys, for the old group
		t.Fatal(err)
	}
	signs(1)
	if err := reload(after, second+first); err != nil {
		t.Fatal(err)
	}
	signs(2)
	want := d.Options
	want.Virtuals = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	want.PingNodes = []netip.Addr{netip.MustParseAddr("192.0.2.253")}
	want.Weight, want.Lease = 7, defaultOptions().Lease
	want.Group = defaultOptions().Group
	if diff := cmp.Diff(want, d.Options, plain); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if _, err := d.virtuals.look(nil); err != nil {
		t.Fatal(err)
	}
	var senses []string
	for _, v := range d.virtuals.filter(nil) {
		senses = append(senses, v.Address.String()+" "+v.Sense.String())
	}
	if diff := cmp.Diff([]string{"192.0.2.2 src-addr", "192.0.2.3 src-port"}, senses); diff != "" {
		t.Errorf("addresses and senses (-want +got):\n%s", diff)
	}
	if len(d.look) != 1 {
		t.Error("nobody was told to look at the addresses")
	}

	// What is refused changes nothing.
	for _, bad := range []struct {
		text, keys, says string
		is               error
	}{
		{text: "virtual 192.0.2.1\nweight many\n", keys: first, says: "saru.conf:5: weight"},
		{text: "", keys: first, says: "--virtual"},
		{text: "virtual 192.0.2.1\nweight 9\n", keys: "1 beef\n", says: "--key_file"},
		{text: "virtual auto\nweight 9\n", keys: first, is: ipvs.ErrNotAvailable},
	} {
		err := reload(bad.text, bad.keys)
		if err == nil || !strings.Contains(err.Error(), bad.says) || bad.is != nil && !errors.Is(err, bad.is) {
			t.Errorf("%q: error %v, want %s%v", bad.text, err, bad.says, bad.is)
		}
		if diff := cmp.Diff(want, d.Options, plain); diff != "" {
			t.Errorf("%q: options (-want +got):\n%s", bad.text, diff)
		}
		signs(2)
	}
}
