package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// udpRow is a row of /proc/net/udp.
func udpRow(local string, queued, uid, inode, drops int) string {
	return fmt.Sprintf("  1: %s 00000000:0000 07 00000000:%08X 00:00000000 00000000 %d 0 %d 2 0000000000000000 %d\n", local, queued, uid, inode, drops)
}

// What waits for the backup thread is told apart from what waits for others, and its loss from nothing.
func TestQueued(t *testing.T) {
	a := group.Addr().As4()
	in, other := fmt.Sprintf("%08X:2290", binary.NativeEndian.Uint32(a[:])), "00000000:2290"
	proc := filepath.Join(t.TempDir(), "udp")
	tap := &TUN{proc: proc, receivers: receivers{own: func() (map[uint64]bool, error) { return map[uint64]bool{5: true, 6: true}, nil }}}
	heading := "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
	for _, step := range []struct {
		name            string
		rows            []string
		queued, dropped uint64
		err             error
	}{
		{"no socket", nil, 0, 0, ErrNoThread},
		{"others only", []string{udpRow(other, 1, 0, 1, 1), udpRow(in, 2, 1000, 2, 2), udpRow(in, 3, 0, 5, 3)}, 0, 0, ErrNoThread},
		{"the thread's beside them", []string{udpRow(in, 2, 1000, 2, 2), udpRow(in, 3, 0, 5, 3), udpRow(in, 0, 0, 7, 0)}, 0, 0, nil},
		{"it has something to do", []string{udpRow(in, 3, 0, 5, 3), udpRow(in, 99, 0, 7, 4)}, 99, 4, nil},
		{"a probe comes", []string{udpRow(in, 3, 0, 5, 3), udpRow(in, 1000, 0, 6, 1000), udpRow(in, 9, 0, 7, 4)}, 9, 4, nil},
		{"it was stopped", []string{udpRow(in, 3, 0, 5, 3)}, 0, 0, ErrNoThread},
		{"another was started", []string{udpRow(in, 3, 0, 5, 3), udpRow(in, 0, 0, 8, 0)}, 0, 5, nil},
		{"nothing happens", []string{udpRow(in, 0, 0, 8, 0)}, 0, 5, nil},
		{"it drops", []string{udpRow(in, 10, 0, 8, 2)}, 10, 7, nil},
		{"another takes over unseen", []string{udpRow(in, 0, 0, 9, 0)}, 0, 8, nil},
	} {
		if err := os.WriteFile(proc, []byte(heading+strings.Join(step.rows, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		queued, dropped, err := tap.Queued()
		if queued != step.queued || dropped != step.dropped || !errors.Is(err, step.err) || (err == nil) != (step.err == nil) {
			t.Errorf("%s: queued %d, dropped %d, error %v; want %d, %d, %v", step.name, queued, dropped, err, step.queued, step.dropped, step.err)
		}
	}
	if err := os.Remove(proc); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tap.Queued(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: %v", err)
	}
}

func TestOwnSockets(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if own, err := ownSockets(); err != nil || !own[st.Ino] {
		t.Errorf("socket %d is not among %v, error %v", st.Ino, own, err)
	}
	unix.Close(fd)
	if own, err := ownSockets(); err != nil || own[st.Ino] {
		t.Errorf("socket %d was closed and is among %v, error %v", st.Ino, own, err)
	}
}
