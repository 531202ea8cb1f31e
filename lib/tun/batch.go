package tun

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reader reads many packets at a time from a device. It is not safe for concurrent use, and it is the only way to read from the device while
// it is used.
type Reader struct {
	d    *Device
	raw  syscall.RawConn
	step func(fd uintptr) bool // made once, so that a call does not allocate

	bufs [][]byte
	n    []int
	got  int
	err  error
}

// NewReader returns a reader.
func (d *Device) NewReader() (*Reader, error) {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Reader{d: d, raw: raw}
	r.step = func(fd uintptr) bool {
		for r.got < len(r.bufs) {
			n, err := unix.Read(int(fd), r.bufs[r.got])
			if err == unix.EINTR {
				continue
			}
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				r.err = err
				return true
			}
			r.n[r.got] = n
			r.got++
		}
		return r.got > 0
	}
	return r, nil
}

// Read waits for a packet and then takes what is there, at most len(bufs): packet i is in bufs[i][:n[i]]. It returns how many
// there are. After 1 or more the device had nothing left, or bufs is full. Errors are those of Device.Read.
func (r *Reader) Read(bufs [][]byte, n []int) (int, error) {
	r.bufs, r.n, r.got, r.err = bufs, n, 0, nil
	err := r.raw.Read(r.step)
	if r.got > 0 {
		return r.got, nil // an error comes again
	}
	if err == nil {
		err = r.err
	}
	if err == nil {
		err = os.ErrClosed
	}
	return 0, r.d.ioError("read from", err)
}
