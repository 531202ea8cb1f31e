package flow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// MaxBuckets is how many buckets a function may have: their numbers are kept in 16 bits.
const MaxBuckets = 1 << 16

// Function is a share function: it gives each flow a bucket. All directors of a farm must have the same one.
type Function struct {
	Sense   Sense
	Buckets uint32
	// Seed must not be 0: google/nftables leaves a seed of 0 out, and the kernel then draws one (nft_hash.c, nft_jhash_init).
	Seed uint32
	// Mask4 and Mask6 are how many bits of the source address count; 32 and 128 are all.
	Mask4, Mask6 uint8
}

// DefaultSeed is the seed of Default: "saru".
const DefaultSeed = 0x73617275

// Default is the share function of a farm that has not been told another one.
var Default = Function{Sense: SenseOf(SrcAddr, SrcPort), Buckets: 4096, Seed: DefaultSeed, Mask4: 32, Mask6: 128}

// Check says what is wrong with the function.
func (f *Function) Check() error {
	switch {
	case f.Sense == 0 || f.Sense > allFields:
		return errors.New("share function without a field")
	case f.Buckets == 0 || f.Buckets > MaxBuckets:
		return fmt.Errorf("share function of %d buckets: 1 to %d", f.Buckets, MaxBuckets)
	case f.Seed == 0:
		return errors.New("share function with seed 0: the kernel would draw one")
	case f.Mask4 == 0 || f.Mask4 > 32:
		return fmt.Errorf("share function with %d bits of an IPv4 address: 1 to 32", f.Mask4)
	case f.Mask6 == 0 || f.Mask6 > 128:
		return fmt.Errorf("share function with %d bits of an IPv6 address: 1 to 128", f.Mask6)
	}
	return nil
}

// maxKey is the longest key: two IPv6 addresses and two ports, each padded to 4 bytes.
const maxKey = 2*16 + 2*4

// Bucket returns the bucket of a flow from src, the client, to dst, the virtual service. An IPv4-mapped IPv6 address is an IPv6 address; zones
// do not count.
func (f *Function) Bucket(src, dst netip.AddrPort) uint32 {
	var key [maxKey]byte
	k := key[:0]
	if f.Sense.Has(SrcAddr) {
		k = f.mask(appendAddr(k, src.Addr()))
	}
	if f.Sense.Has(SrcPort) {
		k = appendPort(k, src.Port())
	}
	if f.Sense.Has(DstAddr) {
		k = appendAddr(k, dst.Addr())
	}
	if f.Sense.Has(DstPort) {
		k = appendPort(k, dst.Port())
	}
	if f.Sense == 1<<SrcPort || f.Sense == 1<<DstPort {
		k = k[:2] // a lone field is not padded
	}
	return scale(jhash(k, f.Seed), f.Buckets)
}

func appendAddr(k []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(k, b[:]...)
	}
	b := a.As16()
	return append(k, b[:]...)
}

func appendPort(k []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(k, port), 0, 0)
}

// mask clears what does not count of the source address that is the key so far.
func (f *Function) mask(k []byte) []byte {
	keep := int(f.Mask4)
	if len(k) == 16 {
		keep = int(f.Mask6)
	}
	if keep >= 8*len(k) {
		return k
	}
	k[keep/8] &= ^byte(0xff >> (keep % 8))
	clear(k[keep/8+1:])
	return k
}

// scale is the kernel's reciprocal_scale: it maps a hash to 0 up to n-1.
func scale(hash, n uint32) uint32 { return uint32(uint64(hash) * uint64(n) >> 32) }
