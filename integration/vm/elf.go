package vm

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is the root of an unpacked system; "/" is the host.
type tree string

// libraryDirs are the folders that the loader of Debian amd64 searches. Both
// spellings, because unpacked packages are not merged into /usr.
var libraryDirs = []string{
	"/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib",
}

// resolve follows symbolic links inside the tree and returns the file's path
// on the host.
func (t tree) resolve(name string) (string, error) {
	const maxLinks = 16
	for range maxLinks {
		p := filepath.Join(string(t), name)
		st, err := os.Lstat(p)
		if err != nil {
			return "", err
		}
		if st.Mode()&os.ModeSymlink == 0 {
			return p, nil
		}
		to, err := os.Readlink(p)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		name = to
	}
	return "", fmt.Errorf("%s: too many symbolic links", name)
}

// find returns the first of dirs that has name, as a path inside the tree.
func (t tree) find(name string, dirs []string) (string, error) {
	for _, d := range dirs {
		p := path.Join(d, name)
		if _, err := t.resolve(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not in %s of %s: %w", name, strings.Join(dirs, ":"), t, fs.ErrNotExist)
}

// libraries returns, as paths inside the tree, everything that the loader
// needs to run file (a path inside the tree): the interpreter and all shared
// libraries. It is ldd without running anything, so it works on an unpacked
// tree of another release. A static program needs nothing.
func (t tree) libraries(file string) ([]string, error) {
	var need []string
	seen := map[string]bool{}
	var walk func(file string) error
	walk = func(file string) error {
		p, err := t.resolve(file)
		if err != nil {
			return err
		}
		f, err := elf.Open(p)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		defer f.Close()
		if interp := interpreter(f); interp != "" && !seen[interp] {
			seen[interp] = true
			need = append(need, interp)
		}
		libs, err := f.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: libraries: %w", p, err)
		}
		dirs := libraryDirs
		for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
			if paths, err := f.DynString(tag); err == nil && len(paths) > 0 {
				dirs = slices.Concat(strings.Split(strings.ReplaceAll(paths[0], "$ORIGIN", path.Dir(file)), ":"), dirs)
			}
		}
		for _, lib := range libs {
			if seen[lib] || strings.HasPrefix(lib, "ld-linux") {
				continue
			}
			seen[lib] = true
			at, err := t.find(lib, dirs)
			if err != nil {
				return fmt.Errorf("%s needs %w", file, err)
			}
			need = append(need, at)
			if err := walk(at); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk(file)
	return need, err
}

// interpreter returns the loader that a dynamic program asks for.
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err == nil {
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}

// isELF tells programs and libraries from scripts.
func isELF(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
