package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"saru/lib/seal"
	"saru/lib/tun/nstest"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

func TestMain(m *testing.M) {
	time.Local = time.UTC // text shows local times
	nstest.Main(m)
}

// show runs over a capture and returns what was written.
func show(t testing.TB, cfg Config) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cfg.Out = &out
	err := Run(t.Context(), cfg)
	return out.String(), err
}

// verify knows key 3 and distrusts key 4.
func verify(keyID uint8, datagram []byte) error {
	switch keyID {
	case 3:
		return nil
	case 4:
		return seal.ErrForged
	}
	return seal.ErrUnknownKey
}

// TestGolden compares the whole output over a capture that has everything.
func TestGolden(t *testing.T) {
	file := writePcap(t, layers.LinkTypeEthernet, farm(t)...)
	for _, form := range []string{"text", "json"} {
		t.Run(form, func(t *testing.T) {
			got, err := show(t, Config{File: file, JSON: form == "json", Verify: verify})
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", form+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
			for _, c := range got {
				if c < ' ' && c != '\n' || c == 0x7f {
					t.Fatalf("control character %q in the output", c)
				}
			}
		})
	}
}

// TestContract has the field names that scripts rely on.
func TestContract(t *testing.T) {
	file := writePcap(t, layers.LinkTypeEthernet, farm(t)...)
	got, err := show(t, Config{File: file, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	records := 0
	for text := range strings.Lines(got) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		for _, name := range []string{"time", "link", "source", "destination", "sender", "version", "syncid", "size", "count"} {
			if _, ok := line[name]; !ok {
				t.Errorf("no %s in %s", name, text)
			}
		}
		if _, ok := line["record"]; !ok {
			continue
		}
		records++
		for _, name := range []string{"family", "protocol", "client", "virtual", "real", "state", "flags", "origin", "expires_s", "fwmark"} {
			if _, ok := line[name]; !ok {
				t.Errorf("no %s in %s", name, text)
			}
		}
	}
	if records != 15 {
		t.Errorf("%d record lines", records)
	}
}

func TestLinkTypes(t *testing.T) {
	msg := kernelMessage(t, tcp4())
	four, six := udp4(sender, group, msg), udp6(sender6, group6, msg)
	vlan := append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0}, four...)
	padded := append(withLink(layers.LinkTypeEthernet, etherIPv4, udp4(sender, group, kernelMessage(t))), make([]byte, 10)...)
	for _, tt := range []struct {
		name     string
		linkType layers.LinkType
		packet   []byte
		want     int // messages
	}{
		{"Ethernet IPv4", layers.LinkTypeEthernet, withLink(layers.LinkTypeEthernet, etherIPv4, four), 1},
		{"Ethernet IPv6", layers.LinkTypeEthernet, withLink(layers.LinkTypeEthernet, etherIPv6, six), 1},
		{"Ethernet with two VLAN tags", layers.LinkTypeEthernet, vlan, 1},
		{"Ethernet with padding", layers.LinkTypeEthernet, padded, 1},
		{"Ethernet ARP", layers.LinkTypeEthernet, withLink(layers.LinkTypeEthernet, 0x0806, four), 0},
		{"Ethernet cut off", layers.LinkTypeEthernet, make([]byte, 13), 0},
		{"raw IPv4", layers.LinkTypeRaw, four, 1},
		{"raw IPv6", layers.LinkTypeRaw, six, 1},
		{"raw IPv4 by its own number", layers.LinkTypeIPv4, four, 1},
		{"raw IPv6 by its own number", layers.LinkTypeIPv6, six, 1},
		{"raw IPv4 of old files", linkRawBSD, four, 1},
		{"raw empty", layers.LinkTypeRaw, nil, 0},
		{"raw of another version", layers.LinkTypeRaw, []byte{0x10}, 0},
		{"Linux cooked IPv4", layers.LinkTypeLinuxSLL, withLink(layers.LinkTypeLinuxSLL, etherIPv4, four), 1},
		{"Linux cooked IPv6", layers.LinkTypeLinuxSLL, withLink(layers.LinkTypeLinuxSLL, etherIPv6, six), 1},
		{"Linux cooked cut off", layers.LinkTypeLinuxSLL, make([]byte, 15), 0},
		{"Linux cooked 2 IPv4", layers.LinkTypeLinuxSLL2, withLink(layers.LinkTypeLinuxSLL2, etherIPv4, four), 1},
		{"Linux cooked 2 IPv6", layers.LinkTypeLinuxSLL2, withLink(layers.LinkTypeLinuxSLL2, etherIPv6, six), 1},
		{"Linux cooked 2 cut off", layers.LinkTypeLinuxSLL2, make([]byte, 19), 0},
		{"BSD loopback", layers.LinkTypeNull, withLink(layers.LinkTypeNull, etherIPv4, four), 1},
		{"unknown link type", layers.LinkTypeIEEE802_11, four, 0},
		{"IPv4 header too short", layers.LinkTypeRaw, four[:19], 0},
		{"IPv4 header length 4", layers.LinkTypeRaw, append([]byte{0x41}, four[1:]...), 0},
		{"IPv6 header too short", layers.LinkTypeRaw, six[:39], 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := show(t, Config{File: writePcap(t, tt.linkType, tt.packet)})
			if n := strings.Count(got, "kernel v1 syncid 7"); err != nil || n != tt.want || strings.Contains(got, "MALFORMED") {
				t.Errorf("%d messages, %v:\n%s", n, err, got)
			}
		})
	}
}

func TestFilters(t *testing.T) {
	msg := kernelMessage(t, tcp4())
	file := writePcap(t, layers.LinkTypeRaw,
		udp4(sender, group, msg),
		udp4(sender, netip.AddrPortFrom(group.Addr(), 8849), msg),
		udp4(sender, ap("239.1.1.1:8848"), msg),
		udp6(sender6, group6, msg),
		udp4(sender, ap("239.1.1.1:53"), []byte("not for us")),
	)
	for _, tt := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"by default the port alone", Config{}, []string{"224.0.0.81:8848", "239.1.1.1:8848", "[ff02::81]:8848"}},
		{"another port", Config{Port: 8849}, []string{"224.0.0.81:8849"}},
		{"a group", Config{Group: netip.MustParseAddr("239.1.1.1")}, []string{"239.1.1.1:8848"}},
		{"an IPv6 group", Config{Group: group6.Addr()}, []string{"[ff02::81]:8848"}},
		{"nothing", Config{Group: netip.MustParseAddr("239.1.1.2")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.File = file
			got, err := show(t, tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			var dsts []string
			for line := range strings.Lines(got) {
				if before, after, ok := strings.Cut(line, " > "); ok && !strings.HasPrefix(before, " ") {
					dsts = append(dsts, strings.Fields(after)[0])
				}
			}
			if diff := cmp.Diff(tt.want, dsts); diff != "" {
				t.Errorf("destinations (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPcapng reads a file with two interfaces of different link types.
func TestPcapng(t *testing.T) {
	var b bytes.Buffer
	msg := kernelMessage(t, tcp4())
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{Name: "eth0", LinkType: layers.LinkTypeEthernet}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	tun, err := w.AddInterface(pcapgo.NgInterface{Name: "syncd0", LinkType: layers.LinkTypeRaw})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range [][]byte{withLink(layers.LinkTypeEthernet, etherIPv4, udp4(sender, group, msg)), udp4(sender, group, msg)} {
		ci := gopacket.CaptureInfo{Timestamp: began, CaptureLength: len(p), Length: len(p), InterfaceIndex: i * tun}
		if err := w.WritePacket(ci, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := show(t, Config{File: writeFile(t, b.Bytes())})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2026-11-22 12:00:00.123456 eth0 192.0.2.1:40001 > 224.0.0.81:8848 kernel", "123456 syncd0 192"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestFileErrors(t *testing.T) {
	whole, err := os.ReadFile(writePcap(t, layers.LinkTypeRaw, udp4(sender, group, kernelMessage(t, tcp4())), udp4(sender, group, kernelMessage(t, tcp4()))))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		file  string
		want  error  // wrapped
		text  string // in the error
		shown int    // messages before the error
	}{
		{"missing", filepath.Join(t.TempDir(), "none.pcap"), os.ErrNotExist, "open capture", 0},
		{"empty", writeFile(t, nil), nil, "no capture file", 0},
		{"something else", writeFile(t, []byte("#!/bin/sh\necho this is no capture file\n")), nil, "agic", 0},
		{"cut off within a packet", writeFile(t, whole[:len(whole)-1]), ErrCutOff, "ends within a packet", 1},
		{"cut off within a packet header", writeFile(t, whole[:24+16+72+3]), ErrCutOff, "ends within a packet", 1},
		{"pcapng cut off", writeFile(t, []byte{0x0a, 0x0d, 0x0d, 0x0a, 0, 0}), nil, "capture", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := show(t, Config{File: tt.file})
			if err == nil || !strings.Contains(err.Error(), tt.text) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.text)
			}
			if n := strings.Count(got, "kernel v1"); n != tt.shown {
				t.Errorf("%d messages shown, want %d", n, tt.shown)
			}
		})
	}
}

// TestSnapLength reads packets that the capture shortened.
func TestSnapLength(t *testing.T) {
	p := udp4(sender, group, kernelMessage(t, tcp4(), tcp4()))
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(64, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: began, CaptureLength: 64, Length: len(p)}, p[:64]); err != nil {
		t.Fatal(err)
	}
	got, err := show(t, Config{File: writeFile(t, b.Bytes())})
	if err != nil || !strings.Contains(got, "MALFORMED: cut off by the capture") {
		t.Errorf("%v, %s", err, got)
	}
}

// failingWriter refuses to write after some bytes.
type failingWriter struct{ left int }

var errWriter = errors.New("no space")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errWriter
	}
	return len(b), nil
}

func TestOutputErrors(t *testing.T) {
	file := writePcap(t, layers.LinkTypeEthernet, farm(t)...)
	for _, room := range []int{0, 5000} {
		if err := Run(t.Context(), Config{File: file, Out: &failingWriter{room}}); !errors.Is(err, errWriter) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if err := Run(ctx, Config{File: writePcap(t, layers.LinkTypeEthernet, farm(t)...), Out: &out}); err != nil || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
}

// FuzzRun feeds packets of any link type and content, whole and in two fragments' places, to everything behind the file reader.
func FuzzRun(f *testing.F) {
	for _, p := range farm(f) {
		f.Add(uint16(layers.LinkTypeEthernet), p, uint8(0))
	}
	for i, p := range fragment4(udp4(sender, group, kernelMessage(f, variety()...)), 64) {
		f.Add(uint16(layers.LinkTypeRaw), p, uint8(i))
	}
	for i, p := range fragment6(udp6(sender6, group6, kernelMessage(f, variety()...)), 64) {
		f.Add(uint16(layers.LinkTypeRaw), p, uint8(i))
	}
	f.Fuzz(func(t *testing.T, linkType uint16, p []byte, cut uint8) {
		dis := newDissector(netip.Addr{}, 8848)
		dec := decoder{names: make(map[uint64]string), verify: verify}
		var out bytes.Buffer
		use := func(ds []datagram) {
			for _, d := range ds {
				m := dec.decode(d)
				if err := printText(&out, m); err != nil {
					t.Fatal(err)
				}
				if err := printJSON(&out, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		pieces := [][]byte{p, p}
		if n := int(cut); n < len(p) {
			pieces = append(pieces, p[:n], p[n:])
		}
		for i, piece := range pieces {
			if proto, data, ok := stripLink(layers.LinkType(linkType), piece); ok {
				use(dis.add(packet{time: began.Add(time.Duration(i) * 20 * time.Second), proto: proto, data: data, cutOff: cut&1 != 0}))
			}
		}
		use(dis.flush())
		for _, c := range out.Bytes() {
			if c < ' ' && c != '\n' {
				t.Fatalf("control character %q in %s", c, fmt.Sprintf("%q", out.String()))
			}
		}
	})
}
