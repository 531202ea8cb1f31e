package tap

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
)

// procSocket is a row of /proc/net/udp (net/ipv4/udp.c, udp4_format_sock).
type procSocket struct {
	local, remote netip.AddrPort
	queued        uint64 // bytes in the receive queue, as sk_buff truesize
	drops         uint64
	uid           uint64
	inode         uint64
}

// readSockets reads the UDP sockets of this network namespace.
func readSockets(path string, fn func(procSocket) bool) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Scan() // heading
	for sc.Scan() {
		// sl local rem st tx:rx tr:tm retrnsmt uid timeout inode ref pointer drops
		f := bytes.Fields(sc.Bytes())
		if len(f) < 13 {
			continue
		}
		var s procSocket
		var ok1, ok2 bool
		s.local, ok1 = procEndpoint(f[1])
		s.remote, ok2 = procEndpoint(f[2])
		_, rx, ok3 := bytes.Cut(f[4], []byte(":"))
		if !ok1 || !ok2 || !ok3 {
			continue
		}
		var e1, e2, e3, e4 error
		s.queued, e1 = strconv.ParseUint(string(rx), 16, 64)
		s.uid, e2 = strconv.ParseUint(string(f[7]), 10, 32)
		s.drops, e3 = strconv.ParseUint(string(f[12]), 10, 64)
		s.inode, e4 = strconv.ParseUint(string(f[9]), 10, 64)
		if e1 != nil || e2 != nil || e3 != nil || e4 != nil {
			continue
		}
		if !fn(s) {
			break
		}
	}
	return sc.Err()
}

// procEndpoint reads AABBCCDD:PPPP: the address is a word of network order that the kernel printed as a number of its own order.
func procEndpoint(b []byte) (netip.AddrPort, bool) {
	a, p, ok := bytes.Cut(b, []byte(":"))
	word, e1 := strconv.ParseUint(string(a), 16, 32)
	port, e2 := strconv.ParseUint(string(p), 16, 16)
	if !ok || len(a) != 8 || e1 != nil || e2 != nil {
		return netip.AddrPort{}, false
	}
	var raw [4]byte
	binary.NativeEndian.PutUint32(raw[:], uint32(word))
	return netip.AddrPortFrom(netip.AddrFrom4(raw), uint16(port)), true
}
