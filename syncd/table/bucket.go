package table

import (
	"net/netip"
	"time"

	"saru/lib/flow"
	"saru/proto/ipvssync"
)

// Buckets is the number of buckets by which directors compare their replicas, whatever share function saru uses.
const Buckets = 4096

// BucketOf returns the bucket of a record: that of flow.Default.
func BucketOf(r *ipvssync.Record) uint16 { return uint16(flow.Default.Bucket(r.Client, r.Virtual)) }

func (k *key[A]) bucket() uint16 {
	client, virtual := netip.AddrPortFrom(addrOf(k.client), k.clientPort), netip.AddrPortFrom(addrOf(k.virtual), k.virtualPort)
	return uint16(flow.Default.Bucket(client, virtual))
}

// BucketLen is how many entries a bucket has.
func (t *Table) BucketLen(bucket uint16) int {
	if bucket >= Buckets {
		return 0
	}
	return int(t.v4.sizes[bucket] + t.v6.sizes[bucket])
}

// Bucket calls fn for every entry of a bucket until it returns false. The entry is fn's for the time of the call only, and fn must not change
// the table.
func (t *Table) Bucket(now time.Time, bucket uint16, fn func(*Entry) bool) {
	if bucket < Buckets && eachOf(t, t.v4, now, bucket, fn) {
		eachOf(t, t.v6, now, bucket, fn)
	}
}

func eachOf[A address](t *Table, s *store[A], now time.Time, bucket uint16, fn func(*Entry) bool) bool {
	i := s.buckets[bucket]
	if i == none {
		return true
	}
	e := new(Entry) // one for all calls
	for ; i != none; i = s.at(i).after {
		if *e = export(t, s, now, i); !fn(e) {
			return false
		}
	}
	return true
}
