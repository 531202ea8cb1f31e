package engine

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"saru/lib/peer"
	"saru/proto/ipvssync"
)

// What stock kernels send, by version and by mode.
func TestStockKernel(t *testing.T) {
	recs := []ipvssync.Record{conn(1), conn(2)}
	v1, v0 := kernelMessage(t, recs...), ipvssync.AppendHeaderV0(nil, 1)
	v1[1] = 1
	for i := range recs {
		var err error
		if v0, err = ipvssync.AppendRecordV0(v0, 0, &recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := ipvssync.FinishV0(v0, 0, len(recs)); err != nil {
		t.Fatal(err)
	}
	change := func(b []byte, off int, v byte) []byte { b = slices.Clone(b); b[off] = v; return b }
	const unsigned = "permissive receive-only insecure"
	for _, tt := range []struct {
		name  string
		b     []byte
		modes string
		want  Counter
	}{
		{"version 1", v1, "enforce", DropUnsigned},
		{"version 0", v0, "enforce", DropUnsigned},
		{"version 1, no records", kernelMessage(t), "enforce", DropUnsigned},
		{"version 1, other syncid", change(v1, 1, 9), unsigned, DropSyncID},
		{"version 0, other syncid", change(v0, 1, 9), unsigned, DropSyncID},
		{"version 1, other syncid", change(v1, 1, 9), "enforce", DropUnsigned},
		{"version 1, size too small", change(v1, 3, v1[3]-1), "enforce " + unsigned, DropTruncated},
		{"version 0, size too large", change(v0, 3, v0[3]+1), "enforce " + unsigned, DropTruncated},
		{"nothing", nil, "enforce " + unsigned, DropTruncated},
		{"a byte", []byte{1}, "enforce " + unsigned, DropTruncated},
		{"version 1, a record more", change(v1, 4, 3), unsigned, DropStock},
		{"version 0, a record more", change(v0, 0, 3), unsigned, DropStock},
		{"version 1, last record of an unknown type", change(v1, 8+36, 2), unsigned, DropStock},
		{"version 1, record of version 1", change(v1, 8+2, 0x10), unsigned, DropStock},
		{"version 1, record of length 0", change(v1, 8+3, 0), unsigned, DropStock},
	} {
		for _, mode := range strings.Fields(tt.modes) {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				f.all["b"].refuses(t, tt.name, slices.Clone(tt.b), tt.want)
			})
		}
	}
	for name, msg := range map[string][]byte{"version 0": v0, "version 1": v1} {
		for _, mode := range strings.Fields(unsigned) {
			t.Run(name+" is believed/"+mode, func(t *testing.T) {
				f := pair(t, mode)
				b, before := f.all["b"], f.all["b"].counters
				b.FromNetwork(f.now, 0, stockA, msg)
				want := map[string]uint64{
					"accepted_unsigned": 1, "received_datagrams": 1, "received_bytes": uint64(len(msg)), "remote_records": 2, "injected": 2,
				}
				if diff := cmp.Diff(want, b.changed(before)); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				e := b.entry(t, conn(1))
				if e.Origin != peer.IDOf("kernel 192.0.2.9") || e.Record.Timeout != 900 {
					t.Errorf("entry %+v", e)
				}
			})
		}
	}
}
