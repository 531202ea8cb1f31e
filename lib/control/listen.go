package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned by Listen if a live process listens on the path already.
var ErrInUse = errors.New("another process listens there")

// Listen opens a unix socket that only its owner (and root) may connect to, mode
// 0600. It creates the folder if that is missing. The socket of a dead process is
// replaced; that of a live one gives ErrInUse, and a file that is no socket is
// left alone. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("open control socket %q: %w", path, err)
	}
	return l, nil
}

func listen(path string) (net.Listener, error) {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	// Two daemons that start at once must not both find the socket dead and
	// replace each other's: the folder is locked meanwhile, which leaves no file.
	lock, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock its folder: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// bind gives the socket's file the mode of the socket's inode less the
		// umask (unix_bind_bsd in net/unix/af_unix.c): nobody else can connect
		// at any moment, and the umask of the process stays as it is.
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	return config.Listen(context.Background(), "unix", path)
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is no socket is in its place")
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		conn.Close()
		return ErrInUse
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, unix.EAGAIN): // its queue of connections is full: it lives, or hangs
		return ErrInUse
	}
	return err
}
