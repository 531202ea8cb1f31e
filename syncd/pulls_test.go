package syncd

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"saru/lib/flow"
	"saru/lib/tun/nstest"
	"saru/proto/ipvssync"
	"saru/syncd/engine"
	"saru/syncd/table"
	"saru/syncd/transfer"
)

// TestCrowdedBucket: a bucket into which somebody has put thousands of connections is compared and taught in turns, and as any other.
func TestCrowdedBucket(t *testing.T) {
	nstest.New(t)
	nstest.Veth(t, "a0", []string{"192.0.2.10/24"}, nstest.Other(t), "b0", nil)
	a := startMemory(t, "a", "a0")
	eventually(t, "synced", synced(a))
	const bucket, many = 7, crowd + 100
	virtual := netip.MustParseAddrPort("10.0.0.100:80")
	r := ipvssync.Record{
		Protocol: ipvssync.ProtocolTCP, State: ipvssync.TCPEstablished, Timeout: 900, Virtual: virtual, Real: netip.MustParseAddrPort("10.1.0.2:80"),
	}
	for n, found := uint32(0), 0; found < many; n++ {
		var address [4]byte
		binary.BigEndian.PutUint32(address[:], 192<<24|n>>12)
		r.Client = netip.AddrPortFrom(netip.AddrFrom4(address), uint16(n<<4|1))
		if flow.Default.Bucket(r.Client, virtual) == bucket {
			found++
			a.With(func(e *engine.Engine) { e.Found(time.Now(), &r, 0) })
		}
	}
	var cut, sum uint64
	var count uint32
	a.With(func(e *engine.Engine) {
		cut = e.Cut(time.Now().Add(time.Hour))
		sum, count = e.Digest(bucket, cut)
	})
	got := replica{a.Mirrorer}.Digests(cut, []uint16{bucket - 1, bucket, bucket + 1}, nil)
	want := []transfer.Digest{{Bucket: bucket - 1}, {Bucket: bucket, Count: count, Sum: sum}, {Bucket: bucket + 1}}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] || count != many {
		t.Errorf("%v, want %v with %d entries", got, want, many)
	}
	taught := map[netip.AddrPort]bool{}
	replica{a.Mirrorer}.Bucket(bucket, func(e *table.Entry) bool {
		taught[e.Record.Client] = true
		return true
	})
	if len(taught) != many {
		t.Errorf("%d of %d entries", len(taught), many)
	}
	n := 0
	replica{a.Mirrorer}.Bucket(bucket, func(*table.Entry) bool { n++; return n < 10 })
	if n != 10 {
		t.Errorf("%d entries after it was stopped at the tenth", n)
	}
}
