package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// extraTools are too big to be in every guest.
var extraTools = map[string]struct {
	packages []string
	programs []string
	copied   []string // folders that the program reads at run time
}{
	"tshark": {
		packages: []string{"tshark"},
		programs: []string{"tshark", "dumpcap"},
		copied:   []string{"/usr/share/wireshark", "/usr/lib/x86_64-linux-gnu/wireshark"},
	},
}

// extra returns an archive with one optional tool.
func (c *Cache) extra(ctx context.Context, tool string) (string, error) {
	x, ok := extraTools[tool]
	if !ok {
		return "", fmt.Errorf("$%s: unknown tool %q", EnvTools, tool)
	}
	dir, err := c.once(ctx, filepath.Join("tree", tool), func(tmp string) error {
		return c.apt(bookworm).unpack(ctx, tmp, tool, true, x.packages...)
	})
	if err != nil {
		return "", err
	}
	t := tree(dir)
	return c.once(ctx, filepath.Join("base", tool+"-"+baseFormat+".cpio"), func(tmp string) error {
		return writeArchive(tmp, func(a *archive) error {
			// The shared archive comes first and brings these as links.
			for _, d := range []string{"/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64"} {
				if err := a.dir(d); err != nil {
					return err
				}
			}
			for _, p := range x.programs {
				at, err := t.find(p, pathDirs)
				if err != nil {
					return fmt.Errorf("initramfs: %w", err)
				}
				if err := a.program(t, at, at); err != nil {
					return err
				}
			}
			for _, d := range x.copied {
				src := filepath.Join(dir, d)
				if _, err := os.Stat(src); err == nil {
					if err := a.copy(d, src); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
}
