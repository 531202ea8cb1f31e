package vm

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Config describes one run.
type Config struct {
	Root    string        // top folder of the checkout
	Kernel  string        // bookworm, trixie, sid
	Timeout time.Duration // limit of the program's run
	Program string        // binary on the host; libraries are added if it is dynamic
	Args    []string      // its arguments
	Dir     string        // its working directory: recreated in the guest, with testdata
	Name    string        // results go to out/NAME of the checkout
	Memory  string        // as QEMU's -m takes it; default 2G

	// Segments plugs the guest into virtual hubs ("GROUP:PORT" of QEMU's
	// multicast sockets): guests that name the same one share an Ethernet
	// segment on which every frame reaches everybody. Meant for scenarios in
	// which a director must lose power, or freeze, together with its kernel.
	Segments []string

	Stdout, Stderr io.Writer
	Log            io.Writer // progress lines
}

const (
	defaultMemory = "2G"
	guestCPUs     = 2
	// bootAllowance is added to the time limit for boot and delivery, slow
	// emulation included (a boot takes 4 s).
	bootAllowance = 90 * time.Second
)

// Fetch downloads and prepares everything that a run with the given kernel
// needs, so that later runs need no network.
func Fetch(ctx context.Context, root, kernelName string, log io.Writer) error {
	c, err := OpenCache(root, log)
	if err != nil {
		return err
	}
	_, _, _, err = c.prepare(ctx, kernelName)
	return err
}

func (c *Cache) prepare(ctx context.Context, kernelName string) (q *qemu, k *kernel, base string, err error) {
	if q, err = c.qemu(ctx); err != nil {
		return nil, nil, "", err
	}
	if k, err = c.kernel(ctx, kernelName); err != nil {
		return nil, nil, "", err
	}
	if base, err = c.base(ctx, k); err != nil {
		return nil, nil, "", err
	}
	return q, k, base, nil
}

// Run boots a guest, runs the program in it and returns its exit status.
// Errors are about the guest, not about the program; [ErrTimeout] comes with
// the exit status that the program had after it was stopped.
func Run(ctx context.Context, cfg Config) (exit int, err error) {
	c, err := OpenCache(cfg.Root, cfg.Log)
	if err != nil {
		return 0, err
	}
	q, k, base, err := c.prepare(ctx, cfg.Kernel)
	if err != nil {
		return 0, err
	}
	accel, err := c.accelerator(ctx, q, k, base)
	if err != nil {
		return 0, err
	}
	initrds := []string{base}
	for tool := range strings.SplitSeq(os.Getenv(EnvTools), ",") {
		if tool == "" {
			continue
		}
		extra, err := c.extra(ctx, tool)
		if err != nil {
			return 0, err
		}
		initrds = append(initrds, extra)
	}
	dir, remove, err := c.scratch()
	if err != nil {
		return 0, err
	}
	defer remove()
	j := cfg.job()
	own := filepath.Join(dir, "own.cpio")
	if err := writeArchive(own, func(a *archive) error { return cfg.fill(a, j) }); err != nil {
		return 0, err
	}
	out := filepath.Join(cfg.Root, "out", cfg.Name)
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return 0, fmt.Errorf("results: %w", err)
	}
	b := &boot{
		machine: machine{kernel: k.image, accel: accel, memory: cfg.memory(), cpus: guestCPUs, segments: cfg.Segments, name: cfg.Name},
		qemu:    q, dir: dir, initrds: append(initrds, own),
		stdout: cfg.Stdout, stderr: cfg.Stderr, files: out, limit: j.Timeout + bootAllowance,
	}
	return b.run(ctx)
}

func (cfg *Config) memory() string {
	if cfg.Memory != "" {
		return cfg.Memory
	}
	return defaultMemory
}

// job describes the run to the guest.
func (cfg *Config) job() *job {
	j := &job{
		Program: filepath.Join(guestBin, filepath.Base(cfg.Program)), Dir: cfg.Dir,
		Hostname: "lab", Timeout: cfg.Timeout, Network: len(cfg.Segments) > 0,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LAB_OUT=" + guestOut, "LAB_KERNEL=" + cfg.Kernel},
	}
	if terminal(cfg.Stdout) {
		j.Env = append(j.Env, "LAB_TTY=1") // in the guest output is a pipe
	}
	for _, a := range cfg.Args {
		// go test's record of the files that a test opened is for its result
		// cache; the path does not exist in the guest.
		if !strings.HasPrefix(a, "-test.testlogfile=") {
			j.Args = append(j.Args, a)
		}
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "SARU_"), name == "GOMAXPROCS", name == "GOTRACEBACK", name == "GODEBUG",
			name == "GORACE", name == "GOGC", name == "CI", name == "TERM", name == "COLUMNS", name == "NO_COLOR":
			j.Env = append(j.Env, kv)
		}
	}
	return j
}

// terminal tells whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// products are the project's own programs; they are put where a package would
// install them.
var products = []string{"syncd", "saru", "saructl"}

// fill writes the part of the initramfs that belongs to this run.
func (cfg *Config) fill(a *archive, j *job) error {
	text, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("job: %w", err)
	}
	if err := a.text(jobFile, string(text)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find labrun itself: %w", err)
	}
	host := tree("/")
	for _, p := range []struct{ src, dst string }{{self, "/init"}, {cfg.Program, j.Program}} {
		abs, err := filepath.Abs(p.src)
		if err != nil {
			return fmt.Errorf("program: %w", err)
		}
		if err := a.program(host, abs, p.dst); err != nil {
			return err
		}
	}
	for _, name := range products {
		src := filepath.Join(cfg.Root, "bin", name)
		if _, err := os.Stat(src); err == nil {
			if err := a.program(host, src, "/usr/sbin/"+name); err != nil {
				return err
			}
		}
	}
	if err := a.dir(j.Dir); err != nil {
		return err
	}
	testdata := filepath.Join(cfg.Dir, "testdata")
	if _, err := os.Stat(testdata); err == nil {
		if err := a.copy(testdata, testdata); err != nil {
			return err
		}
	}
	for pair := range strings.SplitSeq(os.Getenv(EnvFiles), ",") {
		if pair == "" {
			continue
		}
		src, dst, ok := strings.Cut(pair, ":")
		if !ok {
			return fmt.Errorf("$%s: %q is not src:dst", EnvFiles, pair)
		}
		if !filepath.IsAbs(src) {
			src = filepath.Join(cfg.Root, src)
		}
		if err := a.copy(dst, src); err != nil {
			return err
		}
	}
	return nil
}

// accelerator chooses between hardware virtualisation and emulation. The
// outcome of a trial boot is remembered until the host is booted again.
func (c *Cache) accelerator(ctx context.Context, q *qemu, k *kernel, base string) (string, error) {
	switch v := os.Getenv(EnvAccel); v {
	case "tcg", "kvm":
		return v, nil
	case "":
	default:
		return "", fmt.Errorf("$%s: %q is neither tcg nor kvm", EnvAccel, v)
	}
	if !hasVirtualisation() {
		return "tcg", nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "tcg", nil //nolint:nilerr // without it the trial could not be remembered
	}
	name := filepath.Join("kvm", fmt.Sprintf("%s-%x", k.name, sha256.Sum256(id))[:24])
	file, err := c.once(ctx, name, func(tmp string) error {
		verdict := "kvm"
		if err := c.trial(ctx, q, k, base); err != nil {
			c.logf("KVM does not work here (%v): using emulation", err)
			verdict = "tcg"
		}
		return os.WriteFile(tmp, []byte(verdict), 0o644)
	})
	if err != nil {
		return "", err
	}
	verdict, err := os.ReadFile(file)
	return string(verdict), err
}

// trialLimit bounds the trial boot; with working KVM it takes a second.
const trialLimit = 20 * time.Second

// trial boots a guest that does nothing.
func (c *Cache) trial(ctx context.Context, q *qemu, k *kernel, base string) error {
	dir, remove, err := c.scratch()
	if err != nil {
		return err
	}
	defer remove()
	own := filepath.Join(dir, "own.cpio")
	err = writeArchive(own, func(a *archive) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		text, err := json.Marshal(job{Hostname: "lab"})
		if err != nil {
			return err
		}
		return errors.Join(a.program("/", self, "/init"), a.text(jobFile, string(text)))
	})
	if err != nil {
		return err
	}
	b := &boot{
		machine: machine{kernel: k.image, accel: "kvm", memory: defaultMemory, cpus: guestCPUs},
		qemu:    q, dir: dir, initrds: []string{base, own}, stdout: io.Discard, stderr: io.Discard, limit: trialLimit,
	}
	_, err = b.run(ctx)
	return err
}
