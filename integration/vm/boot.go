package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// boot is one run of QEMU.
type boot struct {
	machine        machine
	qemu           *qemu
	dir            string   // scratch folder
	initrds        []string // concatenated to one
	stdout, stderr io.Writer
	files          string // folder for the guest's files; empty: dropped
	limit          time.Duration
}

// run starts QEMU and waits for the guest's report. However it ends, QEMU is
// gone afterwards.
func (b *boot) run(ctx context.Context) (exit int, err error) {
	b.machine.initrd = filepath.Join(b.dir, "initrd")
	if err := concatenate(b.machine.initrd, b.initrds); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, fmt.Errorf("the guest said nothing for %v: %w", b.limit, ErrTimeout))
	defer cancel()
	args := append(b.qemu.prefix[:len(b.qemu.prefix):len(b.qemu.prefix)], b.machine.args()...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = b.qemu.env
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	ours, err := b.sockets(cmd)
	if err != nil {
		return 0, err
	}
	wait, err := startTied(cmd)
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		for _, f := range ours {
			f.Close()
		}
		return 0, fmt.Errorf("start QEMU: %w", err)
	}

	console := &keepTail{}
	var rep *report
	var filesErr error
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(b.stdout, ours[0]) }) //nolint:errcheck // ends with QEMU
	wg.Go(func() { io.Copy(b.stderr, ours[1]) }) //nolint:errcheck // ends with QEMU
	wg.Go(func() { rep = readReport(ours[2]) })
	wg.Go(func() { filesErr = b.receiveFiles(ours[3]) })
	wg.Go(func() { io.Copy(console, ours[4]) }) //nolint:errcheck // ends with QEMU
	runErr := wait()
	wg.Wait()
	for _, f := range ours {
		f.Close()
	}
	switch {
	case rep == nil && ctx.Err() != nil:
		return 0, fmt.Errorf("%w%s", context.Cause(ctx), console.quote())
	case rep == nil:
		if runErr == nil {
			runErr = errors.New("it ended in good order")
		}
		return 0, fmt.Errorf("the guest died; QEMU: %w %s%s", runErr, bytes.TrimSpace(said.Bytes()), console.quote())
	case rep.Error != "":
		return rep.Exit, fmt.Errorf("in the guest: %s", rep.Error)
	case rep.TimedOut:
		return rep.Exit, ErrTimeout
	}
	return rep.Exit, filesErr
}

// sockets makes one socket pair for each port and one for the console; QEMU's
// ends become its descriptors 3 and up.
func (b *boot) sockets(cmd *exec.Cmd) ([]*os.File, error) {
	var ours []*os.File
	for range len(ports) + 1 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("socket pair: %w", err)
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			return nil, fmt.Errorf("socket pair: %w", err)
		}
		ours = append(ours, os.NewFile(uintptr(fds[0]), "port"))
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fds[1]), "port"))
	}
	return ours, nil
}

// startTied starts cmd so that the kernel kills it when this process dies,
// even by SIGKILL. That signal is sent at the death of the thread that forked,
// so one thread is kept for it until the end.
func startTied(cmd *exec.Cmd) (wait func() error, err error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return func() error { return <-ended }, nil
}

// readReport reads the guest's last word; nil if there was none.
func readReport(r io.Reader) *report {
	var rep report
	if err := json.NewDecoder(r).Decode(&rep); err != nil {
		return nil
	}
	return &rep
}

// receiveFiles unpacks what the guest left in $LAB_OUT.
func (b *boot) receiveFiles(r io.Reader) error {
	if b.files == "" {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	root, err := os.OpenRoot(b.files)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	defer root.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// Keep reading: QEMU must not block on what follows the archive.
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o755)
		case tar.TypeReg:
			err = receiveFile(root, filepath.Clean(h.Name), t)
		}
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
}

func receiveFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// concatenate joins archives; the kernel unpacks one after the other. Each
// starts at a multiple of 4.
func concatenate(dst string, parts []string) (err error) {
	w, err := os.Create(dst)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, p := range parts {
		r, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		n, err := io.Copy(w, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		if _, err := w.Write(make([]byte, (4-n%4)%4)); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	return nil
}

// keepTail remembers the end of what was written to it.
type keepTail struct{ b []byte }

const tailSize = 16 << 10

func (k *keepTail) Write(p []byte) (int, error) {
	k.b = append(k.b, p...)
	if len(k.b) > 2*tailSize {
		k.b = append([]byte(nil), k.b[len(k.b)-tailSize:]...)
	}
	return len(p), nil
}

// quote renders the kernel's last lines for an error message.
func (k *keepTail) quote() string {
	if len(bytes.TrimSpace(k.b)) == 0 {
		return "; the console is empty"
	}
	return "; the console's last lines:\n" + tail(k.b, 40)
}
