package inspect

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"saru/proto/ipvssync"
)

// piece is a fragment of a UDP datagram with 40 bytes of payload.
type piece struct {
	from, to int
	more     bool
}

func TestReassembler(t *testing.T) {
	a, b, c := piece{0, 16, true}, piece{16, 32, true}, piece{32, 48, false}
	for _, tt := range []struct {
		name   string
		pieces []piece
		whole  int
		lost   []string
	}{
		{"in order", []piece{a, b, c}, 1, nil},
		{"last first", []piece{c, b, a}, 1, nil},
		{"first last", []piece{b, c, a}, 1, nil},
		{"copies", []piece{b, b, a, b, a, c}, 1, nil},
		{"the same id again", []piece{a, b, c, c, a, b}, 2, nil},
		{"middle missing", []piece{a, c}, 0, []string{"fragments missing"}},
		{"last missing", []piece{a, b}, 0, []string{"fragments missing"}},
		{"overlap with what precedes", []piece{a, {8, 32, true}}, 0, []string{"fragments that overlap"}},
		{"overlap with what follows", []piece{b, {0, 24, true}}, 0, []string{"fragments that overlap"}},
		{"covering all", []piece{b, {0, 48, false}}, 0, []string{"fragments that overlap"}},
		{"beyond the end", []piece{c, {48, 56, true}}, 0, []string{"fragments that do not fit together"}},
		{"end before what is there", []piece{c, {16, 24, false}}, 0, []string{"fragments that do not fit together"}},
		{"empty", []piece{{16, 16, true}}, 0, []string{"fragment of a wrong length"}},
		{"odd length", []piece{{0, 15, true}}, 0, []string{"fragment of a wrong length"}},
		{"too long", []piece{{65528, 65536, false}}, 0, []string{"fragments beyond 65535 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := make([]byte, 1<<17)
			copy(data, udpBytes(sender, group, bytes.Repeat([]byte("x"), 40)))
			r := newReassembler()
			whole := 0
			var lost []string
			lose := func(ds []datagram) {
				for _, d := range ds {
					lost = append(lost, d.defect)
				}
			}
			for _, p := range tt.pieces {
				g := datagram{time: began, source: sender, destination: netip.AddrPortFrom(group.Addr(), 0)}
				ip := ipPacket{src: sender.Addr(), dst: group.Addr(), proto: protoUDP, fragment: true, offset: p.from, more: p.more, data: data[p.from:p.to]}
				gone, ready, ok := r.add(g, &ip)
				lose(gone)
				if ok {
					if whole++; !bytes.Equal(ready.payload, data[:48]) {
						t.Errorf("payload %x", ready.payload)
					}
				}
			}
			lose(r.drain())
			if diff := cmp.Diff(tt.lost, lost); diff != "" || whole != tt.whole {
				t.Errorf("%d whole, want %d; lost (-want +got):\n%s", whole, tt.whole, diff)
			}
			if len(r.waiting)+len(r.order) > 0 {
				t.Error("something is left behind")
			}
		})
	}
}

// TestFragments takes fragments of a real size through all headers.
func TestFragments(t *testing.T) {
	payload := kernelMessage(t, slices.Repeat([]ipvssync.Record{tcp4()}, 60)...) // 2168 bytes
	for _, family := range []struct {
		name   string
		proto  uint16
		group  netip.Addr
		pieces [][]byte
	}{
		{"IPv4", etherIPv4, group.Addr(), fragment4(udp4(sender, group, payload), 512)},
		{"IPv6", etherIPv6, group6.Addr(), fragment6(udp6(sender6, group6, payload), 512)},
	} {
		for _, tt := range []struct {
			name   string
			skip   int // fragment that is missing
			group  bool
			cutOff bool
			want   []string // defect of each datagram, "" for a whole one
		}{
			{"whole", -1, true, false, []string{""}},
			{"whole, any group", -1, false, false, []string{""}},
			{"last missing", 4, false, false, []string{"fragments missing"}},
			{"first missing", 0, true, false, []string{"fragments missing"}},
			{"first missing, any group: nobody knows the port", 0, false, false, nil},
			{"cut off by the capture", -1, true, true, []string{"fragment cut off by the capture"}},
		} {
			t.Run(family.name+"/"+tt.name, func(t *testing.T) {
				dis := newDissector(netip.Addr{}, group.Port())
				if tt.group {
					dis.group = family.group
				}
				var got []string
				take := func(ds []datagram) {
					for _, d := range ds {
						got = append(got, d.defect)
						if d.defect == "" && (!bytes.Equal(d.payload, payload) || d.source.Port() != sender.Port()) {
							t.Errorf("payload or source differ: %s", d.source)
						}
					}
				}
				for i, p := range family.pieces {
					if i != tt.skip && (i == 0 || !tt.cutOff) {
						take(dis.add(packet{time: began, proto: family.proto, data: p, cutOff: tt.cutOff}))
					}
				}
				take(dis.flush())
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestFragmentsExpire(t *testing.T) {
	first := fragment4(udp4(sender, group, make([]byte, 100)), 64)[0]
	dis := newDissector(netip.Addr{}, group.Port())
	if got := dis.add(packet{time: began, proto: etherIPv4, data: first}); len(got) > 0 {
		t.Fatalf("first fragment: %v", got)
	}
	if got := dis.add(packet{time: began.Add(fragTimeout), proto: etherIPv4}); len(got) > 0 {
		t.Fatalf("expired early: %v", got)
	}
	if got := dis.add(packet{time: began.Add(fragTimeout + time.Second), proto: etherIPv4}); len(got) != 1 || got[0].defect == "" {
		t.Fatalf("did not expire: %v", got)
	}
	// A flood of first fragments pushes the oldest out.
	shown := 0
	for i := range fragLimit + 3 {
		p := bytes.Clone(first)
		p[4], p[5] = 1, byte(i)
		shown += len(dis.add(packet{time: began, proto: etherIPv4, data: p}))
	}
	if shown != 3 || len(dis.frags.waiting) != fragLimit {
		t.Errorf("%d shown, %d waiting", shown, len(dis.frags.waiting))
	}
}
