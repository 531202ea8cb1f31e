package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// state is the content of the state file.
type state struct {
	// BootID tells whether the values are from this boot; after a reboot the kernel has its own values again.
	BootID string `json:"boot_id,omitempty"`
	// Values are the old ones in the order in which they were first changed.
	Values []Setting `json:"old_values"`
}

// bootID is empty where the root has none, in tests.
func (s *Store) bootID() string {
	b, err := os.ReadFile(filepath.Join(s.root, "kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// load returns an empty state when there is no file, or one of an earlier boot.
func (s *Store) load() (state, error) {
	fresh := state{BootID: s.bootID()}
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read the old sysctl values: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return state{}, fmt.Errorf("old sysctl values in %s are damaged (delete the file to go on without them): %w", s.path, err)
	}
	if st.BootID != fresh.BootID {
		return fresh, nil
	}
	return st, nil
}

// save replaces the file at once, so that a crash leaves the old or the new content.
func (s *Store) save(st state) error {
	if err := s.replace(st); err != nil {
		return fmt.Errorf("keep the old sysctl values: %w", err)
	}
	return nil
}

func (s *Store) replace(st state) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(s.path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *Store) discard() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old sysctl values: %w", err)
	}
	return nil
}
