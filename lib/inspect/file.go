package inspect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// pcapngMagic begins a section header block, and so a pcapng file, in either byte order.
const pcapngMagic = 0x0a0d0d0a

// fileSource reads a capture file.
type fileSource struct {
	name   string
	closer io.Closer
	read   func() ([]byte, gopacket.CaptureInfo, error)
	// iface returns link type and name of the interface of a packet.
	iface func(ci gopacket.CaptureInfo) (layers.LinkType, string)
}

func openFile(name string) (source, error) {
	f := os.Stdin
	if name != stdin {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, fmt.Errorf("open capture: %w", err)
		}
	}
	src, err := newFileSource(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return src, nil
}

func newFileSource(name string, f io.ReadCloser) (*fileSource, error) {
	r := bufio.NewReader(f)
	magic, err := r.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("capture %s: no capture file: %w", name, err)
	}
	s := &fileSource{name: name, closer: f}
	if binary.BigEndian.Uint32(magic) != pcapngMagic {
		pr, err := pcapgo.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("capture %s: %w", name, err)
		}
		s.read = pr.ZeroCopyReadPacketData
		s.iface = func(gopacket.CaptureInfo) (layers.LinkType, string) { return pr.LinkType(), "" }
		return s, nil
	}
	nr, err := pcapgo.NewNgReader(r, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", name, err)
	}
	s.read = nr.ZeroCopyReadPacketData
	s.iface = func(ci gopacket.CaptureInfo) (layers.LinkType, string) {
		ifc, err := nr.Interface(ci.InterfaceIndex)
		if err != nil {
			return nr.LinkType(), ""
		}
		return ifc.LinkType, ifc.Name
	}
	return s, nil
}

func (s *fileSource) close() error { return s.closer.Close() }

func (s *fileSource) next() (packet, error) {
	for {
		data, ci, err := s.read()
		switch {
		case errors.Is(err, io.EOF):
			return packet{}, io.EOF
		case errors.Is(err, io.ErrUnexpectedEOF):
			return packet{}, fmt.Errorf("capture %s: %w", s.name, ErrCutOff)
		case err != nil:
			return packet{}, fmt.Errorf("capture %s: %w", s.name, err)
		}
		linkType, name := s.iface(ci)
		p := packet{time: ci.Timestamp, link: name, cutOff: ci.CaptureLength < ci.Length}
		var ok bool
		if p.proto, p.data, ok = stripLink(linkType, data); ok {
			return p, nil
		}
	}
}

// Numbers of link types that the layers package lacks or names otherwise (tcpdump.org/linktypes.html).
const (
	linkRawBSD  = 12 // DLT_RAW as old files have it
	linkRawBSD2 = 14 // DLT_RAW of OpenBSD
)

// EtherTypes.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

// stripLink removes the link header and tells the EtherType of what follows. It reports false for what carries neither
// IPv4 nor IPv6 and for link types that are not known.
func stripLink(linkType layers.LinkType, b []byte) (proto uint16, data []byte, ok bool) {
	switch linkType {
	case layers.LinkTypeEthernet:
		if len(b) < 14 {
			return 0, nil, false
		}
		proto, data = binary.BigEndian.Uint16(b[12:]), b[14:]
	case layers.LinkTypeLinuxSLL: // protocol in the last 2 of 16 bytes
		if len(b) < 16 {
			return 0, nil, false
		}
		proto, data = binary.BigEndian.Uint16(b[14:]), b[16:]
	case layers.LinkTypeLinuxSLL2: // protocol in the first 2 of 20 bytes
		if len(b) < 20 {
			return 0, nil, false
		}
		proto, data = binary.BigEndian.Uint16(b), b[20:]
	case layers.LinkTypeNull, layers.LinkTypeLoop: // address family, in either byte order and with system-dependent numbers for IPv6
		if len(b) < 4 {
			return 0, nil, false
		}
		proto, data = byVersion(b[4:]), b[4:]
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, linkRawBSD, linkRawBSD2:
		proto, data = byVersion(b), b
	default:
		return 0, nil, false
	}
	for (proto == etherVLAN || proto == etherQinQ) && len(data) >= 4 {
		proto, data = binary.BigEndian.Uint16(data[2:]), data[4:]
	}
	return proto, data, proto == etherIPv4 || proto == etherIPv6
}

// byVersion tells the EtherType of a packet by the version in its IP header.
func byVersion(b []byte) uint16 {
	if len(b) > 0 {
		switch b[0] >> 4 {
		case 4:
			return etherIPv4
		case 6:
			return etherIPv6
		}
	}
	return 0
}
