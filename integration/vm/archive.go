package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// archive writes an initramfs. Every path is merged into /usr, parents are
// written before their children (the kernel does not create them), and a path
// that was written once is not written again.
type archive struct {
	w    *cpio.Writer
	seen map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: cpio.NewWriter(w), seen: map[string]bool{"/": true}}
}

// merged moves /bin, /sbin, /lib and /lib64 under /usr, as Debian installs them.
func merged(name string) string {
	name = path.Clean("/" + name)
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		if name == d || strings.HasPrefix(name, d+"/") {
			return "/usr" + name
		}
	}
	return name
}

// enter claims name, writing its parents; false if it was there already.
func (a *archive) enter(name string) (string, bool, error) {
	name = merged(name)
	if a.seen[name] {
		return name, false, nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return name, false, err
	}
	a.seen[name] = true
	return name, true, nil
}

func (a *archive) header(name string, mode cpio.FileMode, size int64) error {
	err := a.w.WriteHeader(&cpio.Header{Name: name[1:], Mode: mode, Size: size})
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// dir adds a folder.
func (a *archive) dir(name string) error {
	name, ok, err := a.enter(name)
	if err != nil || !ok {
		return err
	}
	return a.header(name, cpio.TypeDir|0o755, 0)
}

// text adds a small file.
func (a *archive) text(name, content string) error {
	name, ok, err := a.enter(name)
	if err != nil || !ok {
		return err
	}
	if err := a.header(name, cpio.TypeReg|0o644, int64(len(content))); err != nil {
		return err
	}
	if _, err := io.WriteString(a.w, content); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// link adds a symbolic link; its target is the entry's body.
func (a *archive) link(name, target string) error {
	name, ok, err := a.enter(name)
	if err != nil || !ok {
		return err
	}
	if err := a.header(name, cpio.TypeSymlink|0o777, int64(len(target))); err != nil {
		return err
	}
	if _, err := io.WriteString(a.w, target); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// file adds the host's file src as name.
func (a *archive) file(name, src string) error {
	name, ok, err := a.enter(name)
	if err != nil || !ok {
		return err
	}
	f, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	if err := a.header(name, cpio.TypeReg|cpio.FileMode(st.Mode().Perm()), st.Size()); err != nil {
		return err
	}
	if _, err := io.Copy(a.w, f); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// copy adds src, a file or a whole folder, as name.
func (a *archive) copy(name, src string) error {
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		to := path.Join(name, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			return a.dir(to)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return fmt.Errorf("initramfs: %w", err)
			}
			return a.link(to, target)
		case d.Type().IsRegular():
			return a.file(to, p)
		}
		return nil
	})
}

// program adds the program at name in tree t, with its libraries, as to.
func (a *archive) program(t tree, name, to string) error {
	src, err := t.resolve(name)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	if isELF(src) {
		libs, err := t.libraries(name)
		if err != nil {
			return fmt.Errorf("initramfs: libraries of %w", err)
		}
		for _, lib := range libs {
			p, err := t.resolve(lib)
			if err != nil {
				return fmt.Errorf("initramfs: %w", err)
			}
			if err := a.file(lib, p); err != nil {
				return err
			}
		}
	}
	return a.file(to, src)
}

func (a *archive) close() error {
	if err := a.w.Close(); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return nil
}

// writeArchive creates file and lets fill write the archive.
func writeArchive(file string, fill func(*archive) error) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	b := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(b)
	return errors.Join(fill(a), a.close(), b.Flush(), f.Close())
}
