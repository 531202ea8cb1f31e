package syncd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"saru/syncd/engine"
	"saru/syncd/transfer"
)

// A reload with another group, which needs a restart, changes nothing of what is sent: the keys are those of the group that the daemon is
// in. A key that was added is used.
func TestReloadKeepsGroup(t *testing.T) {
	dir := t.TempDir()
	key, conf := filepath.Join(dir, "keys"), filepath.Join(dir, "syncd.conf")
	write := func(group, keys string) {
		t.Helper()
		if err := os.WriteFile(key, []byte(keys), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte("interface lo\nkey_file "+key+"\ngroup "+group+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := "1 "+strings.Repeat("5a", 32)+"\n", "2 "+strings.Repeat("a5", 32)+"\n"
	write("224.0.0.81:8848", first+second) // the first key signs
	args := []string{"--config", conf}
	o, err := ParseOptions(args)
	if err != nil {
		t.Fatal(err)
	}
	others, err := o.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	write("224.0.0.81:8848", first)
	mine, err := o.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	m := loneMirrorer(t, "a", newBrokenTap())
	m.With(func(e *engine.Engine) { e.SetKeys(mine.auth, mine.ring) })
	d := &daemon{Mirrorer: m, options: o, args: args, changed: make(chan struct{}, 1), teaches: transfer.NewServer(replica{m}, m.sessionAuth(), m.log)}
	now := time.Now()
	for _, step := range []struct {
		keys   string
		signer uint8
	}{{first, 1}, {second + first, 2}} {
		write("224.0.0.82:8849", step.keys)
		if err := d.reload(); err != nil {
			t.Fatal(err)
		}
		m.out.swap(nil)
		now = now.Add(engine.HeartbeatInterval)
		m.With(func(e *engine.Engine) { e.Tick(now) })
		items := m.out.swap(nil)
		if len(items) == 0 {
			t.Fatal("no heartbeat")
		}
		if err := others.ring.Verify(step.signer, items[0]); err != nil {
			t.Errorf("what the daemon sends to %v: %v", d.options.Group, err)
		}
	}
	if got := o.Group.String(); d.options.Group.String() != got {
		t.Errorf("the options say %v, the daemon is in %v", d.options.Group, got)
	}
}
