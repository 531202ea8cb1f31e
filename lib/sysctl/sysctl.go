// Package sysctl sets kernel parameters and remembers what they were, across crashes, until they are put back.
//
// Parameters of the network belong to a network namespace: the one of the calling thread counts.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// DefaultRoot is where the kernel has its parameters.
const DefaultRoot = "/proc/sys"

// Setting is a parameter and its value.
type Setting struct {
	// Name is relative to the root, with slashes: net/ipv4/vs/sync_threshold.
	Name string `json:"name"`
	// Value is compared with white space made equal: "3 50" is what the kernel shows as "3\t50".
	Value string `json:"value"`
}

// Change is a parameter that differs, or has been changed.
type Change struct {
	Name     string
	Old, New string
}

// String is for a log line.
func (c Change) String() string {
	return fmt.Sprintf("%s %q -> %q", c.Name, c.Old, c.New)
}

// Store applies settings and remembers the old values. Its methods may be called from several goroutines, but only one
// process may use a state file.
type Store struct {
	root, path string

	mu sync.Mutex
}

// Open returns a store. The root is DefaultRoot, but for tests. The state file is made when it is needed, with mode
// 0600, and its folder as well; it belongs on a file system that ends with the boot, such as /run.
func Open(root, statePath string) *Store {
	return &Store{root: root, path: statePath}
}

// Check returns what differs from the settings: Old is the present value, New the wanted one. A parameter that does not
// exist is an error for which errors.Is(err, fs.ErrNotExist) holds; the others are checked nevertheless.
func (s *Store) Check(settings []Setting) ([]Change, error) {
	var changes []Change
	var errs []error
	for _, set := range settings {
		old, err := s.read(set.Name)
		if err != nil {
			errs = append(errs, err)
		} else if !equal(old, set.Value) {
			changes = append(changes, Change{set.Name, old, set.Value})
		}
	}
	return changes, errors.Join(errs...)
}

// Apply sets what differs and returns what it has changed, also together with an error. The value that a parameter had
// when it was first changed is kept in the state file until Restore, whatever happens in between. It is written there
// before the parameter is changed.
func (s *Store) Apply(settings []Setting) ([]Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	todo, err := s.Check(settings)
	if err != nil || len(todo) == 0 {
		return nil, err
	}
	st, err := s.load()
	if err != nil {
		return nil, err
	}
	before := len(st.Values)
	for _, c := range todo {
		if !slices.ContainsFunc(st.Values, func(v Setting) bool { return v.Name == c.Name }) {
			st.Values = append(st.Values, Setting{c.Name, c.Old})
		}
	}
	if len(st.Values) != before {
		if err := s.save(st); err != nil {
			return nil, err
		}
	}
	return s.writeAll(todo)
}

// Restore writes the old values back, the last change first, removes the state file and returns what it has changed.
// Without a state file there is nothing to do. A parameter that has disappeared, with its module, is passed over. What
// cannot be written stays in the state file, and the error tells.
func (s *Store) Restore() ([]Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.load()
	if err != nil {
		return nil, err
	}
	var done []Change
	var errs []error
	var left []Setting
	for _, v := range slices.Backward(st.Values) {
		changes, err := s.Check([]Setting{v})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			changes, err = s.writeAll(changes)
		}
		if err != nil {
			errs = append(errs, err)
			left = append(left, v)
			continue
		}
		done = append(done, changes...)
	}
	if len(left) > 0 {
		slices.Reverse(left)
		st.Values = left
		return done, errors.Join(append(errs, s.save(st))...)
	}
	return done, s.discard()
}

// writeAll stops at the first error.
func (s *Store) writeAll(changes []Change) ([]Change, error) {
	for i, c := range changes {
		if err := s.write(c.Name, c.New); err != nil {
			return changes[:i], err
		}
	}
	return changes, nil
}

func (s *Store) file(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("sysctl %q: not a name below %s", name, s.root)
	}
	return filepath.Join(s.root, name), nil
}

func (s *Store) read(name string) (string, error) {
	path, err := s.file(name)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// write sets a parameter and looks whether the kernel has taken the value as it is: some are cut to a range in silence.
func (s *Store) write(name, value string) error {
	path, err := s.file(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", name, err)
	}
	_, err = f.WriteString(value + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sysctl %s: set to %q: %w", name, value, err)
	}
	now, err := s.read(name)
	if err != nil {
		return err
	}
	if !equal(now, value) {
		return fmt.Errorf("sysctl %s: set to %q, but the kernel made it %q", name, value, now)
	}
	return nil
}

// equal compares values as lists of words.
func equal(a, b string) bool {
	return slices.Equal(strings.Fields(a), strings.Fields(b))
}
