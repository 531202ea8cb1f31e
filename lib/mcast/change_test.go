package mcast

import (
	"errors"
	"net/netip"
	"os"
	"saru/lib/tun/nstest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestDownAndUp(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": group4, "IPv6": wide6} {
		t.Run(name, func(t *testing.T) {
			peer := segment(t)
			link, _ := netlink.LinkByName("a0")
			if err := netlink.LinkSetDown(link); err != nil {
				t.Fatal(err)
			}
			a := open(t, Config{Interfaces: []string{"a0"}, Group: group}) // may be down
			b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group})
			if n, err := a.Links()[0].WriteBatch([][]byte{{1}}); n != 0 || !isDown(err) {
				t.Fatalf("sent %d on an interface that is down: %v", n, err)
			}
			// A sender that comes back loses the source address of IPv6: it is flushed.
			if err := netlink.LinkSetUp(link); err != nil {
				t.Fatal(err)
			}
			linkLocal(t, "a0")
			write(t, a.Links()[0], "up again")
			read(t, b.Links()[0], 1)
			// A receiver that goes down and up still is a member.
			peer.Do(t, func() {
				link, _ := netlink.LinkByName("b0")
				if err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetUp(link)); err != nil {
					t.Fatal(err)
				}
				linkLocal(t, "b0")
			})
			linkLocal(t, "a0")
			write(t, a.Links()[0], "and again")
			if got := read(t, b.Links()[0], 1); got[0].Data != "and again" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func isDown(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// TestRejoin deletes the interface under a reader that blocks and creates it again.
func TestRejoin(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4})
	l := a.Links()[0]
	before := l.Index()
	if stale, err := l.Stale(); stale || err != nil {
		t.Fatalf("at first stale: %v, %v", stale, err)
	}
	got := make(chan string, 1)
	go func() {
		msgs := messages(1, 100)
		if _, err := l.ReadBatch(msgs); err != nil {
			got <- err.Error()
			return
		}
		got <- string(msgs[0].Buf[:msgs[0].N])
	}()
	link, _ := netlink.LinkByName("a0")
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if err := l.Rejoin(); err == nil || !strings.Contains(err.Error(), `"a0"`) {
		t.Fatalf("Rejoin without the interface: %v", err)
	}
	if _, err := l.Stale(); err == nil {
		t.Error("Stale has not seen that the interface is gone")
	}
	nstest.Veth(t, "filler0", nil, peer, "filler1", nil) // takes the next indexes
	nstest.Veth(t, "a0", []string{"10.0.0.9/24"}, peer, "b0", []string{"10.0.0.2/24"})
	if stale, err := l.Stale(); !stale || err != nil {
		t.Fatalf("after a new interface stale: %v, %v", stale, err)
	}
	if err := l.Rejoin(); err != nil {
		t.Fatal(err)
	}
	if l.Index() == before || l.Local().String() != "10.0.0.9" {
		t.Errorf("index %d as before %d, local %v", l.Index(), before, l.Local())
	}
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4})
	write(t, b.Links()[0], "hello again")
	if s := <-got; s != "hello again" {
		t.Errorf("the reader got %q", s)
	}
	write(t, l, "answer")
	if diff := cmp.Diff([]text{{Data: "answer", From: "10.0.0.9"}}, read(t, b.Links()[0], 1)); diff != "" {
		t.Error(diff)
	}
	// Nothing has changed now; the membership must survive it.
	if err := l.Rejoin(); err != nil {
		t.Fatal(err)
	}
	write(t, b.Links()[0], "still there")
	read(t, l, 1)
}

// TestMovedAndBack takes the interface to another namespace and back: same index, memberships gone.
func TestMovedAndBack(t *testing.T) {
	for name, group := range map[string]netip.AddrPort{"IPv4": group4, "IPv6": group6} {
		t.Run(name, func(t *testing.T) {
			peer := segment(t)
			linkLocal(t, "a0")
			a := open(t, Config{Interfaces: []string{"a0"}, Group: group})
			b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group})
			l := a.Links()[0]
			before := l.Index()
			away := nstest.Other(t)
			link, _ := netlink.LinkByName("a0")
			here, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = here.Close() }()
			if err := netlink.LinkSetNsFd(link, away.Fd()); err != nil {
				t.Fatal(err)
			}
			away.Do(t, func() {
				link, _ := netlink.LinkByName("a0")
				if err := netlink.LinkSetNsFd(link, int(here.Fd())); err != nil {
					t.Fatal(err)
				}
			})
			nstest.Up(t, "a0", "10.0.0.1/24")
			linkLocal(t, "a0")
			if err := l.Rejoin(); err != nil {
				t.Fatal(err)
			}
			t.Logf("index %d, before %d", l.Index(), before)
			write(t, b.Links()[0], "back")
			read(t, l, 1)
			write(t, l, "forth")
			read(t, b.Links()[0], 1)
		})
	}
}

func TestAddressChange(t *testing.T) {
	peer := segment(t)
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4})
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4})
	l := a.Links()[0]
	link, _ := netlink.LinkByName("a0")
	old, _ := netlink.ParseAddr("10.0.0.1/24")
	fresh, _ := netlink.ParseAddr("10.0.0.77/24")
	vip, _ := netlink.ParseAddr("10.0.0.100/32")
	// A virtual IP beside it changes nothing.
	if err := netlink.AddrAdd(link, vip); err != nil {
		t.Fatal(err)
	}
	if stale, err := l.Stale(); stale || err != nil {
		t.Errorf("with a second address stale: %v, %v", stale, err)
	}
	if err := errors.Join(netlink.AddrDel(link, vip), netlink.AddrDel(link, old), netlink.AddrAdd(link, fresh)); err != nil {
		t.Fatal(err)
	}
	if stale, err := l.Stale(); !stale || err != nil {
		t.Errorf("with another address stale: %v, %v", stale, err)
	}
	if err := l.Rejoin(); err != nil {
		t.Fatal(err)
	}
	write(t, l, "x")
	if got := read(t, b.Links()[0], 1); got[0].From != "10.0.0.77" {
		t.Errorf("sent from %s", got[0].From)
	}
}

// TestStuckLink: an interface that does not send holds a writer up once, for WriteWait; and when it sends again, nothing remains of it.
func TestStuckLink(t *testing.T) {
	peer := segment(t)
	const wait = 200 * time.Millisecond
	a := open(t, Config{Interfaces: []string{"a0"}, Group: group4, WriteBuffer: 64 << 10, WriteWait: wait})
	b := openIn(t, peer, Config{Interfaces: []string{"b0"}, Group: group4})
	l := a.Links()[0]
	link, err := netlink.LinkByName("a0")
	if err != nil {
		t.Fatal(err)
	}
	plug := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       1000, Buffer: 2e9 / 64, Limit: 1 << 30, // a datagram a second; the bucket is given by the time in ticks that it takes to fill
	}
	if err := netlink.QdiscReplace(plug); err != nil {
		t.Fatal(err)
	}
	bufs := make([][]byte, 64)
	for i := range bufs {
		bufs[i] = make([]byte, 1000)
	}
	var waits []time.Duration
	for len(waits) < 3 {
		begin := time.Now()
		switch n, err := l.WriteBatch(bufs); {
		case errors.Is(err, os.ErrDeadlineExceeded) && n < len(bufs):
			waits = append(waits, time.Since(begin))
		case err != nil:
			t.Fatal(err)
		case time.Since(begin) > 10*time.Second:
			t.Fatal("everything is sent")
		}
	}
	if waits[0] < wait || waits[2] > wait/2 {
		t.Errorf("writing waited for %v, want %v and then hardly at all", waits, wait)
	}
	if err := netlink.QdiscDel(plug); err != nil {
		t.Fatal(err)
	}
	write(t, l, "again")
	again := func(got text) bool { return got.Data == "again" }
	for !slices.ContainsFunc(read(t, b.Links()[0], 1), again) {
	}
}
