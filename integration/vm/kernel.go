package vm

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// kernels are the kernels that the lab can boot: Debian's for cloud machines
// (small, and with everything that IPVS, nftables and farms need).
var kernels = map[string]suite{"bookworm": bookworm, "trixie": trixie, "sid": sid}

// Kernels lists the names that Run and Fetch accept.
func Kernels() []string { return slices.Sorted(maps.Keys(kernels)) }

// kernelPackage depends on the image of the current version.
const kernelPackage = "linux-image-cloud-amd64"

// kernel is an unpacked kernel.
type kernel struct {
	name    string // bookworm, trixie, sid
	image   string // the bootable file
	version string // as uname -r says
	modules string // the folder of the kernel's modules
}

// kernel returns the kernel called name, fetching it when needed.
func (c *Cache) kernel(ctx context.Context, name string) (*kernel, error) {
	s, ok := kernels[name]
	if !ok {
		return nil, fmt.Errorf("unknown kernel %q: one of %s", name, strings.Join(Kernels(), ", "))
	}
	dir, err := c.once(ctx, filepath.Join("kernel", name), func(tmp string) error {
		a := c.apt(s)
		want, err := kernelPackages(ctx, a, kernelPackage)
		if err != nil {
			return err
		}
		if len(want) == 0 {
			return fmt.Errorf("kernel of Debian %s: %s names no image", name, kernelPackage)
		}
		return a.unpack(ctx, tmp, "kernel "+strings.TrimPrefix(want[0], "linux-image-")+" of Debian "+name, false, want...)
	})
	if err != nil {
		return nil, err
	}
	return findKernel(name, dir)
}

// kernelPackages follows the dependencies from the meta package to those that
// carry the image and its modules. Since 2026 sid splits them into
// linux-image-V, linux-binary-V and linux-modules-V.
func kernelPackages(ctx context.Context, a *apt, pkg string) ([]string, error) {
	deps, err := a.depends(ctx, pkg)
	if err != nil {
		return nil, err
	}
	var want []string
	for _, d := range deps {
		for _, prefix := range []string{"linux-image-", "linux-binary-", "linux-modules-"} {
			if !strings.HasPrefix(d, prefix) || slices.Contains(want, d) {
				continue
			}
			want = append(want, d)
			more, err := kernelPackages(ctx, a, d)
			if err != nil {
				return nil, err
			}
			for _, m := range more {
				if !slices.Contains(want, m) {
					want = append(want, m)
				}
			}
		}
	}
	return want, nil
}

// findKernel locates image and modules in an unpacked kernel; their places
// differ between releases.
func findKernel(name, dir string) (*kernel, error) {
	for _, base := range []string{"usr/lib/modules", "lib/modules"} {
		entries, err := os.ReadDir(filepath.Join(dir, base))
		if err != nil {
			continue
		}
		for _, e := range entries {
			k := &kernel{name: name, version: e.Name(), modules: filepath.Join(dir, base, e.Name())}
			for _, image := range []string{filepath.Join(dir, "boot", "vmlinuz-"+k.version), filepath.Join(k.modules, "vmlinuz")} {
				if _, err := os.Stat(image); err == nil {
					k.image = image
					return k, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("no kernel image below %s: remove that folder and run again", dir)
}
