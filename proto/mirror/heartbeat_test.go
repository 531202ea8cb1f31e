package mirror

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var heartbeats = []struct {
	name   string
	h      Heartbeat
	echoes []Echo
	hex    string
}{
	{
		name: "all fields",
		h: Heartbeat{
			Uptime: 0x0102, Stream: 0x0304, Oldest: 0x0203, Teaches: netip.MustParseAddrPort("192.0.2.1:8849"), Entries: 0x0506, Name: "lvs1",
		},
		echoes: []Echo{
			{Node: 1, Incarnation: 2, Control: 3, Stream: 4, Confirmed: 5, Age: 6, Flags: EchoCounts},
			{Node: 7, Age: 8},
		},
		hex: `0000000000000102 0000000000000304 0000000000000203 00000000000000000000ffffc0000201 2291 02 04 00000506
			0000000000000001 0000000000000002 0000000000000003 0000000000000004 0000000000000005 00000006 01 000000
			0000000000000007 0000000000000000 0000000000000000 0000000000000000 0000000000000000 00000008 00 000000
			6c767331`,
	},
	{
		name: "teaches on IPv6",
		h:    Heartbeat{Oldest: 1, Teaches: netip.MustParseAddrPort("[2001:db8::1]:80"), Name: "a"},
		hex: `0000000000000000 0000000000000000 0000000000000001 20010db8000000000000000000000001 0050 00 01 00000000
			61000000`,
	},
	{
		name: "says nothing",
		hex:  `0000000000000000 0000000000000000 0000000000000000 00000000000000000000000000000000 0000 00 00 00000000`,
	},
}

func TestHeartbeat(t *testing.T) {
	for _, tt := range heartbeats {
		t.Run(tt.name, func(t *testing.T) {
			b, err := AppendHeartbeat([]byte{9}, &tt.h, tt.echoes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]byte{9}, unhex(t, tt.hex)...), b); diff != "" {
				t.Fatalf("AppendHeartbeat (-want +got):\n%s", diff)
			}
			b = b[1:]
			got, err := ParseHeartbeat(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.h, got, cmpopts.IgnoreUnexported(Heartbeat{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("ParseHeartbeat (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.echoes, slices.Collect(got.Echoes())); diff != "" {
				t.Errorf("Echoes (-want +got):\n%s", diff)
			}
			for n := range len(b) {
				if _, err := ParseHeartbeat(b[:n]); !errors.Is(err, ErrBody) {
					t.Errorf("truncated to %d bytes: error %v", n, err)
				}
			}
		})
	}
}

func TestHeartbeatLimits(t *testing.T) {
	h := Heartbeat{Name: strings.Repeat("n", MaxName), Teaches: netip.MustParseAddrPort("192.0.2.1:8849")}
	full, err := AppendHeartbeat(nil, &h, make([]Echo, MaxEchoes))
	if err != nil || headerLen+Length(len(full)) > MaxDatagram {
		t.Errorf("largest heartbeat: %d bytes, error %v", headerLen+Length(len(full)), err)
	}
	if _, err := AppendHeartbeat(nil, &h, make([]Echo, MaxEchoes+1)); !errors.Is(err, ErrBody) {
		t.Errorf("too many echoes: error %v", err)
	}
	h.Name += "n"
	if _, err := AppendHeartbeat(nil, &h, nil); !errors.Is(err, ErrBody) {
		t.Errorf("name too long: error %v", err)
	}
	for _, teaches := range []string{"0.0.0.0:80", "[::]:80", "192.0.2.1:0", "224.0.0.81:80", "[ff02::81]:80", "[::ffff:0.0.0.0]:80"} {
		h := Heartbeat{Teaches: netip.MustParseAddrPort(teaches)}
		if b, err := AppendHeartbeat([]byte{1}, &h, nil); !errors.Is(err, ErrBody) || len(b) != 1 {
			t.Errorf("teaches on %s: %d bytes, error %v", teaches, len(b), err)
		}
	}
	// Two forms of an address are one on the wire.
	h = Heartbeat{Teaches: netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")}
	b, err := AppendHeartbeat(nil, &h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseHeartbeat(b); err != nil || got.Teaches.String() != "192.0.2.1:80" {
		t.Errorf("IPv4-mapped address: %v, error %v", got.Teaches, err)
	}
}

func TestParseHeartbeatHostile(t *testing.T) {
	good := unhex(t, heartbeats[0].hex)
	set := func(off int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[off:], v)
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"one echo more than there is", set(42, 3)},
		{"one echo fewer", set(42, 1)},
		{"255 echoes", set(42, 255)},
		{"name longer than the body", set(43, 5)},
		{"name longer than a name", set(43, 255)},
		{"padding not zero", set(43, 3)},
		{"name with a control character", set(len(good)-1, '\n')},
		{"name with a space", set(len(good)-1, ' ')},
		{"name not ASCII", set(len(good)-1, 0x80)},
		{"reserved in an echo", set(48+47, 1)},
		{"port without an address", set(24, make([]byte, 16)...)},
		{"address without a port", set(40, 0, 0)},
		{"teaches on a group", set(36, 224)},
		{"teaches on 0.0.0.0", set(36, 0, 0, 0, 0)},
		{"more behind the name", append(slices.Clone(good), 0, 0, 0, 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseHeartbeat(tt.b); !errors.Is(err, ErrBody) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzParseHeartbeat(f *testing.F) {
	for _, tt := range heartbeats {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeartbeat(b)
		if err != nil {
			return
		}
		echoes := slices.Collect(h.Echoes())
		if len(echoes) > MaxEchoes {
			return // longer than any datagram
		}
		got, err := AppendHeartbeat(nil, &h, echoes)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("parsed %x, appended %x, error %v", b, got, err)
		}
	})
}
