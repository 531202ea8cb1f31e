package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Environment variables that people may set on the host.
const (
	EnvCache   = "SARU_LAB_CACHE"   // cache folder instead of .lab of the checkout
	EnvKernel  = "SARU_LAB_KERNEL"  // default of --kernel
	EnvMemory  = "SARU_LAB_MEMORY"  // guest memory, as QEMU's -m takes it
	EnvTimeout = "SARU_LAB_TIMEOUT" // limit of one guest, as time.ParseDuration takes it
	EnvTools   = "SARU_LAB_TOOLS"   // further tools, comma separated: tshark
	EnvFiles   = "SARU_LAB_FILES"   // further files, "src:dst,src:dst"; folders are copied whole
	EnvAccel   = "SARU_LAB_ACCEL"   // tcg or kvm; default: kvm where a trial boot works
)

// Cache is the folder that keeps what was fetched and built: kernels, QEMU,
// tools and prepared archives. Several processes may share one.
type Cache struct {
	dir string
	log io.Writer
}

// OpenCache returns the cache of the checkout whose top folder is root, or of
// $SARU_LAB_CACHE. Progress lines go to log.
func OpenCache(root string, log io.Writer) (*Cache, error) {
	dir := os.Getenv(EnvCache)
	if dir == "" {
		dir = filepath.Join(root, ".lab")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	return &Cache{dir: dir, log: log}, nil
}

// Root finds the top folder of the checkout (the one with go.mod) at or above
// dir.
func Root(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find checkout: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no go.mod in %s or above it: run this inside the checkout", dir)
		}
	}
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c *Cache) logf(format string, args ...any) {
	fmt.Fprintf(c.log, "labrun: "+format+"\n", args...)
}

// lockPoll is how often a waiting process looks again for the lock of another.
const lockPoll = 200 * time.Millisecond

// lock serialises writers of the cache across processes.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(c.path(name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock cache %s: %w", c.dir, err)
		}
		if !told {
			c.logf("waiting for another labrun that uses %s", c.dir)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// once builds folder or file name unless it exists: build writes to a
// temporary path, which is renamed when complete, so that an interrupted run
// leaves nothing half done behind.
func (c *Cache) once(ctx context.Context, name string, build func(tmp string) error) (string, error) {
	final := c.path(name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	unlock, err := c.lock(ctx, "cache")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp := final + ".partial"
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	return final, nil
}

// scratch makes a folder for one run. It is locked while it is used, so that
// a later run can remove what one left behind that was killed.
func (c *Cache) scratch() (dir string, remove func(), err error) {
	old, err := filepath.Glob(c.path("run-*"))
	if err != nil {
		return "", nil, fmt.Errorf("run folder: %w", err)
	}
	for _, d := range old {
		if f, err := os.Open(d); err == nil {
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				os.RemoveAll(d)
			}
			f.Close()
		}
	}
	if dir, err = os.MkdirTemp(c.dir, "run-"); err != nil {
		return "", nil, fmt.Errorf("run folder: %w", err)
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("run folder: %w", err), os.RemoveAll(dir))
	}
	return dir, func() { os.RemoveAll(dir); f.Close() }, nil
}
