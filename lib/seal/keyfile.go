// Package seal authenticates datagrams: key files with key ids, keys derived per protocol, group and id, and the truncated
// HMAC-SHA256 that both daemons put behind their messages.
package seal

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Limits of a key in bytes. The lower one is the output of SHA-256 (RFC 2104 section 3 discourages shorter keys), the upper one
// its block: longer keys are hashed first and gain nothing.
const (
	MinKeyLen = 32
	MaxKeyLen = 64
)

// Errors of a key file.
var (
	ErrPermissions = errors.New("key file is readable by others")
	ErrKeyFile     = errors.New("key file malformed")
)

// maxKeyFile bounds what is read: 255 keys with their longest lines and room for comments.
const maxKeyFile = 256 << 10

// Key is one line of a key file.
type Key struct {
	ID     uint8
	Secret []byte
}

// ReadFile reads the key file at path. Its mode must give nothing to group and others, for whoever reads it can forge any
// connection of the farm.
func ReadFile(path string) ([]Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat key file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("key file %s is no regular file: %w", path, ErrKeyFile)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: %w; chmod 0600 %s", path, st.Mode().Perm(), ErrPermissions, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", path, maxKeyFile, ErrKeyFile)
	}
	keys, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return keys, nil
}

// Parse reads the text of a key file: lines `ID HEX` and `#` comments. The first key signs, all of them verify. Errors begin
// with the line's number and never contain the line, which may hold a secret.
func Parse(text []byte) ([]Key, error) {
	var keys []Key
	seen := map[uint8]bool{}
	sc := bufio.NewScanner(bytes.NewReader(text))
	n := 0
	for sc.Scan() {
		n++
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 2 {
			return nil, fmt.Errorf("%d: %w: want `ID HEX`", n, ErrKeyFile)
		}
		id, err := strconv.ParseUint(f[0], 10, 8)
		if err != nil || id == 0 {
			return nil, fmt.Errorf("%d: %w: the key id must be a number from 1 to 255", n, ErrKeyFile)
		}
		secret, err := hex.DecodeString(f[1])
		if err != nil {
			return nil, fmt.Errorf("%d: %w: the key is not hexadecimal", n, ErrKeyFile)
		}
		if len(secret) < MinKeyLen || len(secret) > MaxKeyLen {
			return nil, fmt.Errorf("%d: %w: the key has %d bytes, want %d to %d", n, ErrKeyFile, len(secret), MinKeyLen, MaxKeyLen)
		}
		if seen[uint8(id)] {
			return nil, fmt.Errorf("%d: %w: key id %d stands twice", n, ErrKeyFile, id)
		}
		seen[uint8(id)] = true
		keys = append(keys, Key{ID: uint8(id), Secret: secret})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%d: %w: %w", n+1, ErrKeyFile, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%d: %w: it holds no key; `saructl genkey` makes one", n, ErrKeyFile)
	}
	return keys, nil
}
