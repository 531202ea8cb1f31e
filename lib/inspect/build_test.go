package inspect

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"saru/proto/ipvssync"
	"saru/proto/mirror"
)

var (
	sender  = netip.MustParseAddrPort("192.0.2.1:40001")
	group   = ipvssync.DefaultGroup()
	sender6 = netip.MustParseAddrPort("[fe80::1]:40001")
	group6  = netip.MustParseAddrPort("[ff02::81]:8848")
	// began is the time of the first packet of every capture here.
	began = time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC)
)

// udp4 makes an IPv4 packet. Checksums are zero: nobody looks at them.
func udp4(src, dst netip.AddrPort, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 1, protoUDP, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(b, udpBytes(src, dst, payload)...)
}

func udp6(src, dst netip.AddrPort, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 0, protoUDP, 1}
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(b, udpBytes(src, dst, payload)...)
}

func udpBytes(src, dst netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// fragment4 cuts an IPv4 packet into pieces of at most n bytes of payload, a multiple of 8.
func fragment4(packet []byte, n int) [][]byte {
	var out [][]byte
	data := packet[20:]
	for off := 0; off < len(data); off += n {
		piece := data[off:min(off+n, len(data))]
		b := append(bytes.Clone(packet[:20]), piece...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		frag := uint16(off / 8)
		if off+n < len(data) {
			frag |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], frag)
		out = append(out, b)
	}
	return out
}

// fragment6 does the same to an IPv6 packet.
func fragment6(packet []byte, n int) [][]byte {
	var out [][]byte
	data := packet[40:]
	for off := 0; off < len(data); off += n {
		piece := data[off:min(off+n, len(data))]
		b := bytes.Clone(packet[:40])
		b[6] = protoFragment
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(piece)))
		frag := uint16(off)
		if off+n < len(data) {
			frag |= 1
		}
		b = append(b, protoUDP, 0)
		b = binary.BigEndian.AppendUint16(b, frag)
		b = append(b, 0, 0, 0, 77)
		out = append(out, append(b, piece...))
	}
	return out
}

// withLink puts a link header in front of an IP packet.
func withLink(linkType layers.LinkType, proto uint16, packet []byte) []byte {
	var b []byte
	switch linkType {
	case layers.LinkTypeEthernet:
		b = append(b, 1, 0, 0x5e, 0, 0, 0x51, 2, 0, 0, 0, 0, 1)
		b = binary.BigEndian.AppendUint16(b, proto)
	case layers.LinkTypeLinuxSLL:
		b = append(b, 0, 4, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0)
		b = binary.BigEndian.AppendUint16(b, proto)
	case layers.LinkTypeLinuxSLL2:
		b = binary.BigEndian.AppendUint16(b, proto)
		b = append(b, 0, 0, 0, 0, 0, 3, 0, 1, 4, 6, 2, 0, 0, 0, 0, 1, 0, 0)
	case layers.LinkTypeNull:
		b = append(b, 2, 0, 0, 0)
	}
	return append(b, packet...)
}

// writePcap writes packets, a second apart, into a file.
func writePcap(t testing.TB, linkType layers.LinkType, packets ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(1<<16, linkType); err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		ci := gopacket.CaptureInfo{Timestamp: began.Add(time.Duration(i) * time.Second), CaptureLength: len(p), Length: len(p)}
		if err := w.WritePacket(ci, p); err != nil {
			t.Fatal(err)
		}
	}
	return writeFile(t, b.Bytes())
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "capture.pcap")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tcp4() ipvssync.Record {
	return ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, Flags: ipvssync.FlagDRoute | ipvssync.FlagNoOutput, State: ipvssync.TCPEstablished, Timeout: 900,
		Client: ap("10.1.0.2:40000"), Virtual: ap("10.0.0.254:80"), Real: ap("10.2.0.3:80"),
	}
}

// variety has one record of every sort.
func variety() []ipvssync.Record {
	seq := tcp4()
	seq.Flags, seq.Fwmark, seq.HasSeq = ipvssync.FlagSeqMask, 7, true
	seq.In, seq.Out = ipvssync.Seq{Init: 100, Delta: 5}, ipvssync.Seq{Init: 200, Delta: ^uint32(2), PrevDelta: 1}
	return []ipvssync.Record{
		tcp4(),
		{
			Protocol: ipvssync.ProtocolUDP, Flags: ipvssync.FlagTunnel, Timeout: 300,
			Client: ap("[2001:db8::2]:53"), Virtual: ap("[2001:db8::fe]:53"), Real: ap("[2001:db8:1::3]:53"),
		},
		seq,
		{
			Protocol: ipvssync.ProtocolUDP, Flags: ipvssync.FlagTemplate, State: ipvssync.TemplateAssured, Timeout: 360,
			Client: ap("10.1.0.2:0"), Virtual: ap("10.0.0.254:5060"), Real: ap("10.2.0.3:5060"),
			PEName: []byte("sip"), PEData: []byte("call\x1b[2J@x"),
		},
		{
			Protocol: ipvssync.ProtocolUDP, Flags: ipvssync.FlagTemplate, Timeout: 360,
			Client: ap("10.1.0.2:0"), Virtual: ap("10.0.0.254:5060"), Real: ap("10.2.0.3:5060"),
			PEName: []byte("s p"), PEData: []byte{0xff, 0},
		},
	}
}

// kernelMessage is what a stock kernel sends.
func kernelMessage(t testing.TB, recs ...ipvssync.Record) []byte {
	t.Helper()
	var w ipvssync.Builder
	w.Reset(nil, 7, 0)
	for i := range recs {
		if err := w.Add(&recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	b, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mirrorMessage is what this suite sends, with a tag that only fits if verify of the test says so.
func mirrorMessage(t testing.TB, tr mirror.Trailer, recs ...ipvssync.Record) []byte {
	t.Helper()
	var w ipvssync.Builder
	w.Reset(nil, 1, 0)
	for i := range recs {
		if err := w.Add(&recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	b, err := mirror.AppendTrailer(w.Padded(), &tr)
	if err != nil {
		t.Fatal(err)
	}
	if err := ipvssync.FinishV1(b, 0, w.Count()); err != nil {
		t.Fatal(err)
	}
	return b
}

// farm is a capture of everything that there is, good and bad.
func farm(t testing.TB) [][]byte {
	node := nodeID("director-a")
	common := mirror.Trailer{KeyID: 3, Sender: node, Incarnation: 0xa1, Origin: node, Sequence: 41, Clock: 1_000_000, Grant: mirror.NewGrant(2, 5)}
	with := func(f func(*mirror.Trailer)) mirror.Trailer {
		tr := common
		f(&tr)
		return tr
	}
	beat, err := mirror.AppendHeartbeat(nil, &mirror.Heartbeat{
		Uptime: 12345, Stream: 41, Oldest: 30, Teaches: ap("192.0.2.1:8849"), Entries: 1000, Name: "director-a",
	}, []mirror.Echo{
		{Node: nodeID("director-b"), Incarnation: 0xb2, Control: 9, Stream: 8, Confirmed: 7, Age: 100, Flags: mirror.EchoCounts},
		{Node: nodeID("director-c"), Incarnation: 0xc3, Control: 1, Age: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	liar, err := mirror.AppendHeartbeat(nil, &mirror.Heartbeat{Name: "not\nme"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := mirror.AppendHeartbeat(nil, &mirror.Heartbeat{Oldest: 1, Name: "director-a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask, err := mirror.AppendRequest(nil, &mirror.Request{Node: node, Incarnation: 0xa1}, []mirror.Range{{First: 12, Count: 1}, {First: 30, Count: 4}})
	if err != nil {
		t.Fatal(err)
	}
	udp := variety()[1]

	v0 := ipvssync.AppendHeaderV0(nil, 9)
	rec := tcp4()
	if v0, err = ipvssync.AppendRecordV0(v0, 0, &rec); err != nil {
		t.Fatal(err)
	}
	if err := ipvssync.FinishV0(v0, 0, 1); err != nil {
		t.Fatal(err)
	}
	trailing := append(kernelMessage(t, tcp4()), 1, 2, 3, 4)
	binary.BigEndian.PutUint16(trailing[2:], uint16(len(trailing)))
	broken := kernelMessage(t, tcp4(), tcp4())
	broken[8+36] = 2 // type of the second record
	skipped := bytes.Clone(kernelMessage(t, variety()[2]))
	skipped[8+36] = 9 // the sequence option becomes an unknown one
	displaced := mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind = mirror.KindRecords }), tcp4())
	displaced[4] = 0 // no records
	badVersion := mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind = mirror.KindRecords }))
	badVersion[len(badVersion)-mirror.MinLen+4] = 9

	payloads := [][]byte{
		kernelMessage(t, variety()...),
		v0,
		kernelMessage(t),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Flags = mirror.KindRecords, mirror.FlagSynced }), tcp4()),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body, tr.Flags = mirror.KindHeartbeat, beat, mirror.FlagSynced })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body, tr.Flags = mirror.KindHeartbeat, quiet, mirror.FlagConfirm })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body, tr.Sender = mirror.KindRequest, ask, nodeID("director-b") })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Flags = mirror.KindRecords, mirror.FlagRepeat }), tcp4(), udp),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.KeyID, tr.Origin = mirror.KindRecords, 0, nodeID("director-b") }), tcp4()),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.KeyID = 99, 4 })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.KeyID = mirror.KindRecords, 5 }), tcp4()),
		// what is wrong
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body, tr.Sender = mirror.KindHeartbeat, liar, 1 })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body = mirror.KindHeartbeat, beat[:8] })),
		mirrorMessage(t, with(func(tr *mirror.Trailer) { tr.Kind, tr.Body = mirror.KindRequest, ask[:16] })),
		displaced,
		badVersion,
		trailing,
		broken,
		skipped,
		[]byte("hello"),
		{},
	}
	packets := make([][]byte, len(payloads))
	for i, p := range payloads {
		packets[i] = withLink(layers.LinkTypeEthernet, etherIPv4, udp4(sender, group, p))
	}
	packets = append(packets, withLink(layers.LinkTypeEthernet, etherIPv6, udp6(sender6, group6, kernelMessage(t, udp))))
	packets = append(packets, withLink(layers.LinkTypeEthernet, etherIPv4, fragment4(udp4(sender, group, kernelMessage(t, tcp4())), 32)[0]))
	return packets
}
