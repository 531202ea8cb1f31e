package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var testFamily = genetlink.Family{ID: 0x23, Name: "IPVS", Version: 1}

// fakeConn adds what genltest lacks.
type fakeConn struct {
	*genetlink.Conn
	deadlines int
	closes    int
}

func (f *fakeConn) SetDeadline(t time.Time) error {
	if d := time.Until(t); d <= 0 || d > 10*time.Second {
		return fmt.Errorf("deadline in %v", d)
	}
	f.deadlines++
	return nil
}

func (f *fakeConn) Close() error {
	f.closes++
	return f.Conn.Close()
}

// fakeKernel answers the requests for the family by fn.
func fakeKernel(t *testing.T, fn genltest.Func) (*genl, *[]*fakeConn) {
	t.Helper()
	var conns []*fakeConn
	g, err := openGenl(func() (conn, error) {
		c := &fakeConn{Conn: genltest.Dial(genltest.ServeFamily(testFamily, fn))}
		conns = append(conns, c)
		return c, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, &conns
}

// reply is an answer of the kernel with these attributes.
func reply(attrs ...netlink.Attribute) genetlink.Message {
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err)
	}
	return genetlink.Message{Header: genetlink.Header{Command: 9, Version: 1}, Data: b}
}

func attr(typ uint16, data []byte) netlink.Attribute { return netlink.Attribute{Type: typ, Data: data} }

func nest(typ uint16, attrs ...netlink.Attribute) netlink.Attribute {
	return attr(typ|unix.NLA_F_NESTED, reply(attrs...).Data)
}

func u16(v uint16) []byte   { return binary.NativeEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte   { return binary.NativeEndian.AppendUint32(nil, v) }
func be16(v uint16) []byte  { return binary.BigEndian.AppendUint16(nil, v) }
func text0(s string) []byte { return append([]byte(s), 0) }

func TestDaemonsList(t *testing.T) {
	group6 := netip.MustParseAddr("ff02::81")
	g, conns := fakeKernel(t, genltest.CheckRequest(testFamily.ID, cmdGetDaemon, netlink.Request|netlink.Dump,
		func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return []genetlink.Message{
				reply(nest(attrDaemon,
					attr(attrState, u32(2)), attr(attrIfname, text0("syncd0")), attr(attrSyncID, u32(0)), attr(attrMaxLen, u16(9188)),
					attr(attrPort, u16(8848)), attr(attrTTL, []byte{1}), attr(attrGroup6, group6.AsSlice()), attr(99, []byte("news")))),
				reply(attr(77, nil), nest(attrDaemon, // of a kernel before 4.3
					attr(attrState, u32(1)), attr(attrIfname, text0("eth0")), attr(attrSyncID, u32(200)))),
			}, nil
		}))
	d := daemons{g}
	got, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	want := []Daemon{
		{State: Master, Interface: "eth0", SyncID: 200},
		{State: Backup, Interface: "syncd0", MaxLen: 9188, Group: group6, Port: 8848, TTL: 1},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if n := (*conns)[0].deadlines; n != 3 {
		t.Errorf("%d deadlines were set, want one for the family, one for sending and one for the answer", n)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDaemonsNone(t *testing.T) {
	g, _ := fakeKernel(t, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) { return nil, io.EOF })
	if got, err := (daemons{g}).List(); len(got) != 0 || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDaemonsBadReply(t *testing.T) {
	for name, m := range map[string]genetlink.Message{
		"empty":        reply(),
		"short number": reply(nest(attrDaemon, attr(attrState, []byte{1}))),
		"not nested":   reply(attr(attrDaemon, []byte{1, 2, 3})),
		"cut off":      {Data: []byte{200, 0, 3, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := fakeKernel(t, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
				return []genetlink.Message{m}, nil
			})
			if got, err := (daemons{g}).List(); err == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestDaemonsStartStop(t *testing.T) {
	var seen []string
	g, _ := fakeKernel(t, func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
		seen = append(seen, fmt.Sprintf("command %d flags %v:% x", m.Header.Command, n.Header.Flags, m.Data))
		return nil, io.EOF
	})
	d := daemons{g}
	full := Daemon{State: Master, Interface: "syncd0", SyncID: 7, MaxLen: 1, Group: netip.MustParseAddr("224.0.0.81"), Port: 8848, TTL: 1}
	if err := errors.Join(d.Start(full), d.Start(Daemon{State: Backup, Interface: "eth0"}), d.Stop(Backup)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"command 9 flags request|acknowledge:40 00 03 80 " +
			"08 00 01 00 01 00 00 00 0b 00 02 00 73 79 6e 63 64 30 00 00 08 00 03 00 07 00 00 00 " +
			"06 00 04 00 01 00 00 00 08 00 05 00 e0 00 00 51 06 00 07 00 90 22 00 00 05 00 08 00 01 00 00 00",
		"command 9 flags request|acknowledge:20 00 03 80 " +
			"08 00 01 00 02 00 00 00 09 00 02 00 65 74 68 30 00 00 00 00 08 00 03 00 00 00 00 00",
		"command 10 flags request|acknowledge:0c 00 03 80 08 00 01 00 02 00 00 00",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(these bytes are for little-endian machines)\n%s", diff)
	}
}

func TestDaemonsErrors(t *testing.T) {
	var errno unix.Errno
	g, _ := fakeKernel(t, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		return nil, genltest.Error(int(errno))
	})
	d := daemons{g}
	good := Daemon{State: Master, Interface: "syncd0"}
	for _, tt := range []struct {
		errno unix.Errno
		want  error
	}{
		{unix.EEXIST, ErrExists}, {unix.ENODEV, unix.ENODEV}, {unix.ENETUNREACH, unix.ENETUNREACH}, {unix.EPERM, unix.EPERM},
	} {
		errno = tt.errno
		if err := d.Start(good); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), `master sync thread on "syncd0"`) {
			t.Errorf("Start with %v: %v", tt.errno, err)
		}
	}
	errno = unix.ESRCH
	if err := d.Stop(Backup); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Stop: %v", err)
	}
	errno = 0
	for name, bad := range map[string]Daemon{
		"state":     {Interface: "syncd0"},
		"interface": {State: Master},
		"long name": {State: Master, Interface: "abcdefghijklmnop"},
		"group":     {State: Master, Interface: "syncd0", Group: netip.MustParseAddr("10.0.0.1")},
	} {
		if err := d.Start(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestNotAvailable(t *testing.T) {
	closed := 0
	_, err := openGenl(func() (conn, error) {
		c := &fakeConn{Conn: genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(unix.ENOENT))
		})}
		closed++
		return c, nil
	})
	if !errors.Is(err, ErrNotAvailable) {
		t.Errorf("got %v", err)
	}
}

// TestThisKernel asks the real kernel, which may have IPVS or not; without it nothing may look like success.
func TestThisKernel(t *testing.T) {
	err := Probe()
	if err != nil && !errors.Is(err, ErrNotAvailable) {
		t.Fatalf("Probe: %v", err)
	}
	s, serr := OpenServices()
	d, derr := OpenDaemons()
	if err == nil {
		if cerr := errors.Join(serr, derr); cerr != nil {
			t.Fatalf("the kernel has IPVS: %v", cerr)
		}
		if cerr := errors.Join(s.Close(), d.Close()); cerr != nil {
			t.Error(cerr)
		}
		return
	}
	if !errors.Is(serr, ErrNotAvailable) || !errors.Is(derr, ErrNotAvailable) {
		t.Errorf("OpenServices: %v, OpenDaemons: %v", serr, derr)
	}
}

// TestTimeoutReconnects gives no answer once: the late answer must not be taken for the next request's.
func TestTimeoutReconnects(t *testing.T) {
	calls := 0
	g, conns := fakeKernel(t, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		if calls++; calls == 1 {
			return nil, os.ErrDeadlineExceeded
		}
		return nil, io.EOF
	})
	d := daemons{g}
	if _, err := d.List(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if _, err := d.List(); err != nil {
		t.Fatal(err)
	}
	if n := len(*conns); n != 2 || (*conns)[0].closes != 1 {
		t.Errorf("%d connections, the first closed %d times", n, (*conns)[0].closes)
	}
}

// TestStopWithoutAnswer stops a thread so early that the kernel does not answer.
func TestStopWithoutAnswer(t *testing.T) {
	running := []genetlink.Message{}
	g, _ := fakeKernel(t, func(m genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		if m.Header.Command == cmdDelDaemon {
			return nil, os.ErrDeadlineExceeded
		}
		if len(running) == 0 {
			return nil, io.EOF
		}
		return running, nil
	})
	d := daemons{g}
	if err := d.Stop(Backup); err != nil {
		t.Errorf("no thread is left, and yet: %v", err)
	}
	running = append(running, reply(nest(attrDaemon, attr(attrState, u32(2)), attr(attrIfname, text0("syncd0")))))
	if err := d.Stop(Backup); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the thread still runs, and yet: %v", err)
	}
}
