package vm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// moduleDirs are taken whole: everything of the network stack that a farm, a
// filter or a load balancer may need.
var moduleDirs = []string{
	"kernel/net/netfilter", "kernel/net/ipv4", "kernel/net/ipv6", "kernel/net/bridge", "kernel/net/sched",
	"kernel/net/llc", "kernel/net/802", "kernel/net/8021q", "kernel/net/core", "kernel/net/packet", "kernel/net/sctp", "kernel/net/l3mdev", "kernel/net/vrf",
	"kernel/drivers/virtio",
}

// moduleNames are taken one by one, whatever their folder.
var moduleNames = []string{
	"virtio_pci", "virtio_console", "virtio_net", "virtio_rng", "net_failover", "failover",
	"veth", "tun", "dummy", "macvlan", "ifb", "nlmon", "vrf", "bonding", "rng-core", "af_packet",
}

// preload are loaded by /init; what else is needed the kernel asks modprobe
// for. virtio comes first: without it the guest is mute.
var preload = []string{
	"virtio_pci", "virtio_console", "veth", "tun", "bridge", "macvlan",
	"nf_tables", "nf_conntrack", "ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_wlc", "ip_vs_sh",
}

// baseFormat is part of the name of a prepared archive: raise it when what
// goes into the archive changes in a way that its inputs do not show.
const baseFormat = "1"

// base returns the part of the initramfs that all runs with kernel k share:
// tools and modules.
func (c *Cache) base(ctx context.Context, k *kernel) (string, error) {
	t, err := c.tools(ctx)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, baseFormat, k.version, programs, moduleDirs, moduleNames, etc, aliases)
	name := filepath.Join("base", k.version+"-"+hex.EncodeToString(sum.Sum(nil))[:12]+".cpio")
	return c.once(ctx, name, func(tmp string) error {
		c.logf("preparing the initramfs for Linux %s", k.version)
		return writeArchive(tmp, func(a *archive) error {
			for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
				// Written as is: these are the links that merged() relies on.
				a.seen["/"+d] = true
				if err := a.dir("/usr/" + d); err != nil {
					return err
				}
				if err := a.rawLink("/"+d, "usr/"+d); err != nil {
					return err
				}
			}
			if err := a.addTools(ctx, t); err != nil {
				return err
			}
			return a.addModules(ctx, k, t)
		})
	})
}

// rawLink writes a link without merging its path into /usr.
func (a *archive) rawLink(name, target string) error {
	if err := a.header(name, 0o120777, int64(len(target))); err != nil {
		return err
	}
	if _, err := a.w.Write([]byte(target)); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// addModules adds the chosen modules, what they depend on, and the indexes
// that modprobe reads. Kernel packages carry no modules.dep: depmod writes it.
func (a *archive) addModules(ctx context.Context, k *kernel, t tree) error {
	if err := t.depmod(ctx, k); err != nil {
		return err
	}
	deps, err := readModulesDep(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for file, needs := range deps {
		if !chosen(file) {
			continue
		}
		want[file] = true
		for _, n := range needs {
			want[n] = true
		}
	}
	top := "/usr/lib/modules/" + k.version
	for file := range want {
		if err := a.file(path.Join(top, file), filepath.Join(k.modules, file)); err != nil {
			return err
		}
	}
	indexes, err := filepath.Glob(filepath.Join(k.modules, "modules.*"))
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	for _, index := range indexes {
		if err := a.file(path.Join(top, filepath.Base(index)), index); err != nil {
			return err
		}
	}
	return nil
}

// chosen tells whether the module file (a path below the modules folder) goes
// into the guest.
func chosen(file string) bool {
	for _, d := range moduleDirs {
		if strings.HasPrefix(file, d+"/") {
			return true
		}
	}
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return slices.Contains(moduleNames, name) || slices.Contains(moduleNames, strings.ReplaceAll(name, "-", "_"))
}

// depmod runs the tree's own kmod under the tree's own loader, so that the
// host needs neither.
func (t tree) depmod(ctx context.Context, k *kernel) error {
	if _, err := os.Stat(filepath.Join(k.modules, "modules.dep")); err == nil {
		return nil
	}
	at, err := t.find("kmod", pathDirs)
	if err != nil {
		return fmt.Errorf("depmod: %w", err)
	}
	// depmod looks for lib/modules/VERSION below -b; newer kernels unpack to
	// usr/lib/modules.
	root := strings.TrimSuffix(strings.TrimSuffix(k.modules, "lib/modules/"+k.version), "usr/")
	if _, err := os.Stat(filepath.Join(root, "lib")); err != nil {
		if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
			return fmt.Errorf("depmod: %w", err)
		}
	}
	cmd, err := t.command(ctx, at, "-b", root, k.version)
	if err != nil {
		return err
	}
	// kmod behaves by the name that it is called by.
	cmd.Args = slices.Concat(cmd.Args[:1], []string{"--argv0", "depmod"}, cmd.Args[1:])
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("depmod for Linux %s: %w\n%s", k.version, err, tail(out, 5))
	}
	return nil
}

// command runs a program of the tree with the tree's loader and libraries.
func (t tree) command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	loader, err := t.find("ld-linux-x86-64.so.2", libraryDirs)
	if err != nil {
		return nil, err
	}
	loader, err = t.resolve(loader)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, d := range libraryDirs {
		dirs = append(dirs, filepath.Join(string(t), d))
	}
	program, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, loader, append([]string{"--library-path", strings.Join(dirs, ":"), program}, args...)...), nil
}

// readModulesDep reads "file: needed needed ..." lines.
func readModulesDep(file string) (map[string][]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	defer f.Close()
	deps := map[string][]string{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), ":")
		if ok {
			deps[name] = strings.Fields(rest)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	if len(deps) == 0 {
		return nil, fmt.Errorf("modules: %s is empty: %w", file, fs.ErrInvalid)
	}
	return deps, nil
}
